"""Unix sockets at paths of any length: the kernel takes 107 bytes, a data folder can be longer."""

import os
import socket
from pathlib import Path

_LONGEST = 107  # sizeof(sun_path) - 1, unix(7)
_folders: dict[Path, int] = {}


def address(path: Path) -> str:
    """Return what to bind or connect to for the socket at path.

    A path that is too long is reached through a descriptor of its folder, which stays open.
    """
    text = str(path)
    if len(os.fsencode(text)) <= _LONGEST:
        return text
    if path.parent not in _folders:
        _folders[path.parent] = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{_folders[path.parent]}/{path.name}"


def listen(
    path: Path, mode: int = 0o660, backlog: int = 1024, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    """Make a non-blocking listening socket at path, in place of one that a former process left."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        listener.bind(address(path))
        path.chmod(mode)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
