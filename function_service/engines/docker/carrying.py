"""A process that has tunnels carried (tunnel.py): this machine's ends of those into containers.

Orders (see embedded/messages.py): `{"id": N, "carry": FOLDER}` with two descriptors, of the stream that
dockerd gives for a container, and of a channel to the engine. The answer is `{"id": N}` with the pidfd of a
child that carries this tunnel, or with `error`. So what one container makes of its tunnel is no affair of the
others, and the system shares its time among them. A child ends when its tunnel is over, and all with the
parent, which ends with its channel. Standard library only, as they are small then.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback

from function_service.engines.docker.carried import Loop
from function_service.engines.docker.tunnel import Tunnel
from function_service.engines.embedded import messages, syscalls

_DOCKER_HEAD = struct.Struct("!B3xI")  # of what a container has printed, in Docker's API
_STDOUT = 1
_FIRST_WORDS = 4 << 10  # bytes that are kept until it is known where to
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
            else:
                self._printed += piece
        self._print()
        return bytes(mine)

    def _ready(self) -> bool:
        return self._output is None or not self._printed

    def _take_output(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._output = descriptor
        self._print()

    def _print(self) -> None:
        if self._output is None:
            self._printed = self._printed[:_FIRST_WORDS]
            return
        try:
            if self._printed:
                self._printed = self._printed[os.write(self._output, self._printed) :]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads it any more
            self._printed = b""
        if self.ended and not self._printed:
            self._let_go_of_output()
        else:
            self._loop.watch(self._output, select.EPOLLOUT if self._printed else 0, self._printed_more)

    def _printed_more(self, events: int) -> None:  # noqa: ARG002
        self._print()
        if self.ended:
            self._close_if_done()
        else:
            self._watch()

    def _let_go_of_output(self) -> None:
        if self._output is not None:
            self._loop.forget(self._output)
            os.close(self._output)
            self._output = None
        self._printed = b""

    def _end(self) -> None:
        self.ended = True
        self._print()  # before the engine hears of the end, and asks why
        super()._end()

    def close(self) -> None:
        """Close everything (see Tunnel)."""
        if not self.closed:
            self._let_go_of_output()
            os.close(self._folder)
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._reading)) as stream:
                stream.shutdown(socket.SHUT_RDWR)  # whoever else may hold it
            super().close()


def main(channel_fd: int) -> None:
    """Have tunnels carried until the channel is closed."""
    syscalls.die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    channel = socket.socket(fileno=channel_fd)
    parent = os.getpid()
    while True:
        try:
            order, descriptors = messages.receive(channel)
        except EOFError:
            return
        except OSError as error:  # descriptors are short: who has sent it hears nothing, and gives up
            sys.stderr.write(f"An order was not taken: {error}\n")
            continue
        answer, told = {"id": order["id"]}, []
        try:
            pid = os.fork()
            if pid == 0:
                channel.close()
                _carry(parent, order["carry"], descriptors)
            told.append(os.pidfd_open(pid))
        except OSError as error:
            answer["error"] = str(error)
        messages.send(channel, answer, told)
        for descriptor in (*descriptors, *told):
            os.close(descriptor)


def _carry(parent: int, folder: str, descriptors: list[int]) -> None:
    """In a forked child: carry one tunnel until it is over; never returns."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        if os.getppid() == parent:
            loop = Loop()
            stream, control = descriptors
            tunnel = Outer(loop, stream, socket.socket(fileno=control), folder)
            while not tunnel.closed:
                loop.turn()
    except BaseException:  # noqa: BLE001  the last frame of a process
        traceback.print_exc()
    finally:
        os._exit(0)
