"""A process that carries tunnels (tunnel.py): this machine's ends of those into containers.

Orders (see embedded/messages.py): `{"id": N, "carry": FOLDER}` with two descriptors, of the stream that
dockerd gives for a container, and of a channel to the engine. The answer is `{"id": N}`. It ends with the
channel. Standard library only, as it is small then.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import struct

from function_service.engines.docker.tunnel import Loop, Tunnel
from function_service.engines.embedded import messages, syscalls

_DOCKER_HEAD = struct.Struct("!B3xI")  # of what a container has printed, in Docker's API
_STDOUT = 1
_MOST_OUTPUT = 256 << 10  # bytes of output that wait; nothing more is read then
_BACKLOG = 128


class Outer(Tunnel):
    """This machine's end."""

    def __init__(self, loop: Loop, stream: int, control: socket.socket, folder: str) -> None:
        """Sockets that stand for listeners in the container are made in the folder, which is ours alone."""
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._output: int | None = None
        self._printed = b""  # and not handed on
        self._kind, self._left = 0, 0  # of the piece of the stream that is being read
        self._head = b""  # as far as it has come
        super().__init__(loop, (stream, stream), control, inner=False)

    def _listener(self, number: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        # The path itself may be too long, unix(7)
        listener.bind(f"/proc/self/fd/{self._folder}/{number}.sock")
        listener.listen(_BACKLOG)
        return listener

    def _judge(self, data: bytes) -> bytes:
        """Divide what process 1 says from what the function prints, as Docker marks it."""
        mine = bytearray()
        while data:
            if not self._left:
                missing = _DOCKER_HEAD.size - len(self._head)
                self._head, data = self._head + data[:missing], data[missing:]
                if len(self._head) == _DOCKER_HEAD.size:
                    self._kind, self._left = _DOCKER_HEAD.unpack(self._head)
                    self._head = b""
                continue
            piece, data = data[: self._left], data[self._left :]
            self._left -= len(piece)
            if self._kind == _STDOUT:
                mine += piece
            elif self._output is not None:
                self._printed += piece
        self._print(0)
        return bytes(mine)

    def _ready(self) -> bool:
        return not self._printed

    def _take_output(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._output = descriptor

    def _print(self, events: int) -> None:  # noqa: ARG002
        if self._output is None:
            return
        try:
            self._printed = self._printed[os.write(self._output, self._printed) :] if self._printed else b""
        except BlockingIOError:
            pass
        except OSError:  # nobody reads it any more
            self._let_go_of_output()
            return
        self._loop.watch(self._output, select.EPOLLOUT if self._printed else 0, self._printed_more)

    def _printed_more(self, events: int) -> None:
        self._print(events)
        if self._stream_ended:
            self._end_if_done()
        elif not self.closed:
            self._watch_stream()

    def _let_go_of_output(self) -> None:
        if self._output is not None:
            self._loop.forget(self._output)
            os.close(self._output)
            self._output, self._printed = None, b""

    def close(self) -> None:
        """Close everything (see Tunnel)."""
        if not self.closed:
            self._let_go_of_output()
            os.close(self._folder)
            super().close()


def main(channel_fd: int) -> None:
    """Carry tunnels until the channel is closed."""
    syscalls.die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    channel = socket.socket(fileno=channel_fd)
    loop = Loop()

    def ordered(events: int) -> None:  # noqa: ARG001
        try:
            order, descriptors = messages.receive(channel)
        except EOFError:
            raise SystemExit(0) from None
        stream, control = descriptors
        Outer(loop, stream, socket.socket(fileno=control), order["carry"])
        messages.send(channel, {"id": order["id"]})

    loop.watch(channel_fd, select.EPOLLIN, ordered)
    while True:
        loop.turn()
