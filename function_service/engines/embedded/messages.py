"""JSON messages with descriptors over a SOCK_SEQPACKET socket (unix(7)), one message a packet.

Standard library only, as it runs inside of the zygotes too. By the plainest calls, since a fork pays for each
page that their code lies on: neither socket.recv_fds nor json.loads is. One thread of a process receives.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE = 192 << 10  # below the kernel's default send buffer
_MAX_DESCRIPTORS = 16
_SPACE = socket.CMSG_SPACE(_MAX_DESCRIPTORS * struct.calcsize("i"))
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_buffer = bytearray(MAX_MESSAGE)  # one for all, as a new one of this size costs a mapping each time
_encode = json.JSONEncoder().encode
_decode = json.JSONDecoder().decode


def send(channel: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one message with descriptors. Raises OSError (EMSGSIZE for one that is too big to be received)."""
    data = _encode(message).encode()
    if len(data) > MAX_MESSAGE:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    if descriptors:
        channel.sendmsg([data], [(*_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))])
    else:
        channel.send(data)


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Wait for one message and its descriptors.

    Raises EOFError when the other side is gone, and OSError for what is no message of ours.
    """
    size, ancillary, flags, _ = channel.recvmsg_into([_buffer], _SPACE, socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, numbers in ancillary:
        if (level, kind) == _RIGHTS:
            descriptors += memoryview(numbers).cast("i")
    if not size or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in descriptors:
            os.close(descriptor)
        if not size:
            raise EOFError("the other side has closed the channel")
        raise OSError("a message was cut off")
    try:
        message = _decode(_buffer[:size].decode())
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
