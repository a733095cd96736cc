"""Process 1 of a container with a kernel of its own: it stands in for the engine, which is in another one.

Its standard input and output are the stream of a tunnel (tunnel.py). What is process 1 elsewhere (inside.py)
is its child, and finds the engine at the other end of a channel as always. This one ends as the child does,
and reaps what falls to process 1.

Standard library only, as inside.py.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time

from function_service.engines.docker import inside
from function_service.engines.docker.carried import Loop
from function_service.engines.docker.tunnel import Tunnel
from function_service.engines.embedded import init, messages, syscalls

_BACKLOG = 128
_LAST_WORDS = 1.0  # seconds for what has been said to go, once the function has ended


class Inner(Tunnel):
    """The container's end."""

    def _listener(self, number: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0pilotlight-{number}")  # the abstract namespace is the container's own, unix(7)
        listener.listen(_BACKLOG)
        return listener

    def _output_there(self) -> int:
        return os.dup(2)


def main() -> None:
    """Be process 1 until the child ends, or the stream."""
    ours, theirs = messages.pair()
    child = os.fork()
    if child == 0:
        ours.close()
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        inside.live(theirs)
        return
    theirs.close()
    stream = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
    syscalls.set_dumpable(False)  # what runs in the child is of the same user, and has no business in here
    inside.seal()
    _carry(child, stream, ours)


def _carry(child: int, stream: tuple[int, int], control: socket.socket) -> None:
    """Carry, and reap, until the end; never returns."""
    loop = Loop()
    tunnel = Inner(loop, stream, control, inner=True)
    ended: list[int] = []  # the wait status of the child
    wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def reap(events: int) -> None:  # noqa: ARG001
        os.read(wake, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == child:
                ended.append(status)

    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    os.write(wake_write, b"!")  # it may have ended before the handler was set
    loop.watch(wake, select.EPOLLIN, reap)
    while not ended and not tunnel.ended:
        loop.turn()
    deadline = time.monotonic() + _LAST_WORDS
    while not tunnel.said_all and (left := deadline - time.monotonic()) > 0:
        loop.turn(left)
    if ended:
        init.exit_with(ended[0])
    os._exit(0)  # nobody wants this one any more
