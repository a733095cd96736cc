"""One end of a connection that a tunnel carries (tunnel.py), and the loop on which it waits.

A side is read only as far as the other one takes: what may be on its way in one direction is bounded by a
window, and who takes says so from time to time. Standard library only.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable
from typing import Protocol

OPEN, DATA, END, CLOSE, TAKEN = range(1, 6)
NUMBER = struct.Struct("!I")
READABLE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_WINDOW = 64 << 10  # bytes of a connection that may be on their way in one direction
_TELL = _WINDOW // 2  # bytes that were taken, after which this is told


class Broken(Exception):  # noqa: N818  it is the tunnel that is broken
    """The other end does not keep to what was agreed."""


class Loop:
    """Waits for descriptors, and calls whoever watches them."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._calls: dict[int, Callable[[int], None]] = {}

    def watch(self, descriptor: int, events: int, call: Callable[[int], None]) -> None:
        """Have `call` called with what happens. Nothing happens to a descriptor without `events`."""
        if not events:
            self.forget(descriptor)
        elif descriptor in self._calls:
            self._poll.modify(descriptor, events)
        else:
            self._poll.register(descriptor, events)
            self._calls[descriptor] = call

    def forget(self, descriptor: int) -> None:
        """Watch it no more; called before it is closed."""
        if self._calls.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def turn(self, seconds: float | None = None) -> None:
        """Wait until something happens, at most so long, and call who waits for it."""
        for descriptor, events in self._poll.poll(seconds):
            call = self._calls.get(descriptor)  # another one's, perhaps, which finds nothing then
            if call is not None:
                call(events)


class Carrier(Protocol):
    """What carries connections."""

    congested: bool
    """Whether so much waits for the other end that nothing more is to be read for it."""

    def say(self, number: int, kind: int, content: bytes = b"") -> None:
        """Tell the other end something of a connection."""
        ...

    def gone(self, number: int) -> None:
        """Take note that a connection has ended."""
        ...


class Connection:
    """This end of one: what is read here is said to the other end, what that says is written here."""

    def __init__(self, loop: Loop, carrier: Carrier, sock: socket.socket, number: int) -> None:
        """The socket does not block, and is the connection's from now on."""
        self._loop = loop
        self._carrier = carrier
        self._sock = sock
        self._number = number
        self.waiting = bytearray()  # to be written here
        self._credit = _WINDOW  # bytes that may still be said
        self._taken = 0  # bytes that were written here, which the other end does not know
        self.said_all = False  # nothing more is read here
        self._heard_all = False  # nothing more comes from the other end
        self._deaf = False  # who is here takes nothing more
        self._shut = False

    def watch(self) -> None:
        """Wait for what can be done."""
        events = (select.EPOLLIN if self._reads() else 0) | (select.EPOLLOUT if self.waiting else 0)
        self._loop.watch(self._sock.fileno(), events, self._move)

    def _reads(self) -> bool:
        return not self.said_all and self._credit > 0 and not self._carrier.congested

    def hear(self, kind: int, content: bytes) -> None:
        """Take what the other end says. Raises Broken, struct.error."""
        if kind == DATA:
            if len(self.waiting) + self._taken + len(content) > _WINDOW:
                raise Broken("more than the window was sent")
            if self._deaf:
                self._taken += len(content)
            else:
                self.waiting += content
        elif kind == END:
            self._heard_all = True
        elif kind == TAKEN:
            self._credit += NUMBER.unpack(content)[0]
            if self._credit > _WINDOW:
                raise Broken("more was taken than was sent")
        else:
            self.said_all = self._heard_all = True
        self._go_on()

    def end(self) -> None:
        """Say nothing more, as nobody hears it; what has come is still written."""
        self.said_all = self._heard_all = True
        self._go_on()

    def close(self) -> None:
        """Close it at once."""
        self._loop.forget(self._sock.fileno())
        self._sock.close()

    def _move(self, events: int) -> None:
        if events & READABLE and self._reads():
            try:
                data = self._sock.recv(self._credit)
            except BlockingIOError:
                data = None
            except OSError:
                data, self._deaf = b"", True
            if data:
                self._credit -= len(data)
                self._carrier.say(self._number, DATA, data)
            elif data is not None:
                self.said_all = True
                self._carrier.say(self._number, END)
        self._go_on()

    def _go_on(self) -> None:
        """Write what waits, tell what was taken, and end where all is done."""
        if self._sock.fileno() < 0:
            return  # the tunnel has ended meanwhile
        self._write()
        if self._taken >= _TELL:
            taken, self._taken = self._taken, 0
            self._carrier.say(self._number, TAKEN, NUMBER.pack(taken))
        if self._heard_all and not self.waiting and not self._shut:
            self._shut = True
            with contextlib.suppress(OSError):  # it is gone
                self._sock.shutdown(socket.SHUT_WR)
        if self._deaf and self.said_all and not self._heard_all:
            self._carrier.say(self._number, CLOSE)  # who speaks there must know that nobody listens
            self._heard_all = True
        if self.said_all and self._heard_all and not self.waiting:
            self.close()
            self._carrier.gone(self._number)
        elif self._sock.fileno() >= 0:
            self.watch()

    def _write(self) -> None:
        try:
            if self.waiting and not self._deaf:
                count = self._sock.send(self.waiting)
                del self.waiting[:count]
                self._taken += count
        except BlockingIOError:
            pass
        except OSError:
            self._deaf = True  # it may have said something before it went
        if self._deaf:
            self._taken += len(self.waiting)
            self.waiting.clear()
