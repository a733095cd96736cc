"""JSON messages with descriptors over a SOCK_SEQPACKET socket (unix(7)), one message a packet.

Standard library only, as it runs inside of the zygotes too.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE = 192 << 10  # below the kernel's default send buffer
_MAX_DESCRIPTORS = 16


def send(channel: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one message with descriptors. Raises OSError (EMSGSIZE for one that is too big to be received)."""
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    socket.send_fds(channel, [data], list(descriptors))


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Wait for one message and its descriptors.

    Raises EOFError when the other side is gone, and OSError for what is no message of ours.
    """
    data, descriptors, flags, _ = socket.recv_fds(
        channel, MAX_MESSAGE, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in descriptors:
            os.close(descriptor)
        if not data:
            raise EOFError("the other side has closed the channel")
        raise OSError("a message was cut off")
    try:
        message = json.loads(data)
        if isinstance(message, dict):
            return message, descriptors
    except (ValueError, RecursionError):
        pass
    for descriptor in descriptors:
        os.close(descriptor)
    raise OSError("a message was not what it should be")


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
