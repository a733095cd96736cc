"""What passes between who opened a shell and the process that runs it, wherever that lies.

Both directions are frames: a length (4 bytes, big-endian), and so many bytes, the first of which is the kind.
Over a WebSocket each binary message is a frame without its length.

To the shell: INPUT with what was typed, END where nothing more comes (nothing follows), WINDOW with the
terminal's size (rows and columns, 2 bytes each, big-endian). From it: OUTPUT and, where there is no terminal,
ERRORS with what it printed. Its end is the end of the connection.

Standard library only, as sandboxes use it too.
"""

from __future__ import annotations

import struct

INPUT, END, WINDOW = 0, 1, 2
OUTPUT, ERRORS = 0, 1

LENGTH = struct.Struct(">I")
SIZE = struct.Struct(">HH")
LONGEST = 1 + (64 << 10)  # bytes of a frame, its kind included


def frame(kind: int, content: bytes = b"") -> bytes:
    """Return a frame without its length, as a WebSocket carries it."""
    return bytes((kind,)) + content


def packed(message: bytes) -> bytes:
    """Return a frame with its length before it."""
    return LENGTH.pack(len(message)) + message
