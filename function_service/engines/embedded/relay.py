"""A relay from a Unix listener to a TCP port, for programs that only serve the latter.

One thread, epoll, both directions with back-pressure: a side is read only while the other takes.
Standard library only: it runs as process 1 of native sandboxes.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable

_CHUNK = 256 << 10
_SPARE_SECONDS = 1.0  # a program's own patience with a silent connection is longer


class _End:
    """One end of a relayed connection, and what waits to be written to it."""

    __slots__ = ("closing", "other", "pending", "readable", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.other: _End = self
        self.pending = b""
        self.readable = True  # its reading side has not ended
        self.closing = False  # shut down for writing once pending is written


def begin(listener_fd: int, target: tuple[str, int]) -> None:
    """Fork a process that relays to target as long as this sandbox lives, with nothing else open."""
    if os.fork() == 0:
        try:
            os.closerange(3, listener_fd)
            os.closerange(listener_fd + 1, 4096)
            serve(socket.socket(fileno=listener_fd), target, lambda: None)
        finally:
            os._exit(1)
    os.close(listener_fd)


def serve(
    listener: socket.socket,
    target: tuple[str, int],
    child_ended: Callable[[], None],
    spare: socket.socket | None = None,
) -> None:
    """Relay each connection to target for ever; child_ended is called at each SIGCHLD.

    `spare` is a connection to target, by which was seen that it listens. The first caller gets it, since a
    program may have made a process for it; it is closed when a second has passed without any event.
    """
    wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    child_ended()  # it may have ended before the handler was set
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(wake, select.EPOLLIN)
    ends: dict[int, _End] = {}
    while True:
        happened = poll.poll(_SPARE_SECONDS if spare is not None else None)
        if not happened and spare is not None:
            spare.close()
            spare = None
        for descriptor, events in happened:
            if descriptor == wake:
                os.read(wake, 4096)
                child_ended()
            elif descriptor == listener.fileno():
                _accept(listener, target, poll, ends, spare)
                spare = None
            elif descriptor in ends:
                _move(ends[descriptor], events, poll, ends)


def _accept(
    listener: socket.socket,
    target: tuple[str, int],
    poll: select.epoll,
    ends: dict[int, _End],
    spare: socket.socket | None,
) -> None:
    try:
        inner, _ = listener.accept()
    except OSError:
        if spare is not None:
            spare.close()
        return  # the caller has gone again, or descriptors are short: the backlog keeps the others
    if spare is not None and _is_open(spare):
        outer = spare
    else:
        outer = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            outer.connect(target)  # loopback: it answers at once, with a connection or a refusal
        except OSError:
            inner.close()
            outer.close()
            return
    outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pair = _End(inner), _End(outer)
    for end, other in (pair, pair[::-1]):
        end.other = other
        end.sock.setblocking(False)
        ends[end.sock.fileno()] = end
        poll.register(end.sock, select.EPOLLIN)


def _is_open(sock: socket.socket) -> bool:
    """Tell whether the other side still has this connection; closes it where not."""
    try:
        if sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    sock.close()
    return False


def _move(end: _End, events: int, poll: select.epoll, ends: dict[int, _End]) -> None:
    try:
        if events & select.EPOLLOUT:
            _flush(end)
        if (
            events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR)
            and not end.other.pending
            and end.readable
        ):
            _read(end)
            _flush(end.other)
    except OSError:
        _drop(end, poll, ends)
        return
    if not end.readable and not end.other.readable and not end.pending and not end.other.pending:
        _drop(end, poll, ends)
        return
    for side in (end, end.other):
        wanted = select.EPOLLIN if side.readable and not side.other.pending else 0
        poll.modify(side.sock, wanted | (select.EPOLLOUT if side.pending else 0))


def _read(end: _End) -> None:
    try:
        data = end.sock.recv(_CHUNK)
    except BlockingIOError:
        return  # the event was that of a former connection with the same descriptor
    if data:
        end.other.pending = data
    else:
        end.readable = False
        end.other.closing = True


def _flush(end: _End) -> None:
    if end.pending:
        try:
            end.pending = end.pending[end.sock.send(end.pending) :]
        except BlockingIOError:
            return
    if end.closing and not end.pending:
        end.closing = False
        end.sock.shutdown(socket.SHUT_WR)


def _drop(end: _End, poll: select.epoll, ends: dict[int, _End]) -> None:
    for side in (end, end.other):
        if ends.pop(side.sock.fileno(), None) is not None:
            poll.unregister(side.sock)
            side.sock.close()
