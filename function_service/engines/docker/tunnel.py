"""Connections and messages over one stream, between this machine and a container with a kernel of its own.

Such a kernel takes neither descriptors nor mounts from outside; what leads in is the standard input and
output of process 1, which dockerd carries. At both ends stands one of these in place of the other side. So
the engine and inside.py talk to each other as they do where a socket leads from one to the other
(embedded/messages.py): a message goes through as it is. A listener that comes with it is kept by the tunnel
to which it was sent; the other one passes on another, and whoever connects to the former is carried to
whoever accepts from the latter.

A frame is a connection's number, a kind, and the length of what follows (`_HEAD`):

    MESSAGE  a JSON object: `message`, and `sent`, what came with it: `listener` or `output`
    OPEN     somebody has connected to the listener whose number follows; they count from 0, in each direction
    DATA     what one has said to the other
    END      there will be no more of it in this direction
    CLOSE    the connection has failed
    TAKEN    how many bytes were taken, and may be sent beyond those of the window

A side is read only as far as the other one takes. What the other end says is not believed: one that does not
keep to this, or to the limits below, ends the tunnel. Standard library only, and one thread (see `Loop`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from function_service.engines.embedded import messages

_HEAD = struct.Struct("!IBI")
_NUMBER = struct.Struct("!I")
_MESSAGE, _OPEN, _DATA, _END, _CLOSE, _TAKEN = range(6)
_WINDOW = 256 << 10  # bytes of a connection that may be on their way in one direction
_TELL = _WINDOW // 4  # bytes that were taken, after which this is told
_CHUNK = 64 << 10  # bytes
_CONGESTED = 512 << 10  # bytes that wait for the stream; nothing more is read for it then
_MOST_WAITING = 1 << 20  # bytes that wait for it; what is read makes no more of them
_MOST_CONNECTIONS = 1000
_MOST_LISTENERS = 8
_LONGEST = messages.MAX_MESSAGE + (4 << 10)  # bytes of a frame
_LAST = 1 << 32
_READ = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR


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


class _Connection:
    """One end of a connection that is carried."""

    __slots__ = ("credit", "ended", "ending", "number", "pending", "sock", "taken")

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.pending = bytearray()  # waits to be taken here
        self.credit = _WINDOW  # bytes that may still be sent to the other end
        self.taken = 0  # bytes that were taken here, which the other end does not know
        self.ended = False  # nothing more is read here
        self.ending = False  # nothing more comes from the other end


class Tunnel:
    """One end of a tunnel. It owns what it is given, and closes it when it is over."""

    def __init__(
        self,
        loop: Loop,
        stream: tuple[int, int],
        control: socket.socket,
        *,
        inner: bool,
    ) -> None:
        """`stream`: where to read and to write. `control`: the one whose other side this stands in for."""
        self._loop = loop
        self._reading, self._writing = stream
        self._control: socket.socket | None = control
        self._came = bytearray()
        self._out = bytearray()
        self._connections: dict[int, _Connection] = {}
        self._next = 1 if inner else 0
        self._listeners: list[socket.socket] = []  # those that were sent here, by number
        self._places: list[Any] = []  # the addresses of those that stand for the other side's, by number
        self._congested = False
        self._stream_ended = False
        self.closed = False
        for descriptor in {*stream, control.fileno()}:
            os.set_blocking(descriptor, False)
        loop.watch(control.fileno(), select.EPOLLIN, self._on_control)
        self._watch_stream()

    # What the two ends do differently

    def _judge(self, data: bytes) -> bytes:
        """Return what of the stream's bytes is the tunnel's."""
        return data

    def _ready(self) -> bool:
        """Tell whether more of the stream can be taken."""
        return True

    def _listener(self, number: int) -> socket.socket:
        """Return what stands for a listener of the other side. Raises OSError."""
        raise NotImplementedError

    def _take_output(self, descriptor: int) -> None:
        """Take over a descriptor that came with a message, and is no listener."""
        os.close(descriptor)

    def _output_there(self) -> int:
        """Return what stands for such a one of the other side."""
        raise Broken("only listeners are sent this way")

    # The stream

    def _watch_stream(self) -> None:
        reading = select.EPOLLIN if not self._stream_ended and self._ready() else 0
        writing = select.EPOLLOUT if self._out else 0
        if self._reading == self._writing:
            self._loop.watch(self._reading, reading | writing, self._on_stream)
        else:
            self._loop.watch(self._reading, reading, self._on_stream)
            self._loop.watch(self._writing, writing, self._on_stream)

    def _on_stream(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._write()
            if events & _READ and not self._stream_ended and self._ready():
                self._read()
        except (Broken, OSError, struct.error) as error:
            self._fail(error)
            return
        if not self.closed:
            self._watch_stream()

    def _read(self) -> None:
        try:
            data = os.read(self._reading, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._end_stream()
            return
        self._came += self._judge(data)
        at = 0
        while len(self._came) - at >= _HEAD.size and not self.closed:
            number, kind, size = _HEAD.unpack_from(self._came, at)
            if size > _LONGEST:
                raise Broken(f"a frame of {size} bytes")
            if len(self._came) - at < _HEAD.size + size:
                break
            content = bytes(memoryview(self._came)[at + _HEAD.size : at + _HEAD.size + size])
            at += _HEAD.size + size
            self._take(number, kind, content)
        del self._came[:at]

    def _end_stream(self) -> None:
        """The other end is gone: what it has said is still handed on."""
        self._stream_ended = True
        self._out.clear()
        self._drop_control()
        for listener in self._listeners:
            self._loop.forget(listener.fileno())
            listener.close()
        for connection in list(self._connections.values()):
            connection.ended = connection.ending = True
            self._flush(connection)
        self._end_if_done()

    def _send(self, number: int, kind: int, content: bytes | bytearray = b"") -> None:
        if self._stream_ended or self.closed:
            return
        self._out += _HEAD.pack(number, kind, len(content))
        self._out += content
        try:
            self._write()
        except OSError as error:
            self._fail(error)
        if len(self._out) > _MOST_WAITING:
            self._fail(Broken("it says much and takes nothing"))

    def _write(self) -> None:
        if self._out:
            with contextlib.suppress(BlockingIOError):
                del self._out[: os.write(self._writing, memoryview(self._out)[: 4 * _CHUNK])]
        congested = len(self._out) > _CONGESTED
        if congested is not self._congested:
            self._congested = congested
            for connection in list(self._connections.values()):
                self._watch(connection)
        self._watch_stream()

    # What comes over it

    def _take(self, number: int, kind: int, content: bytes) -> None:
        if kind == _MESSAGE:
            self._pass_on(content)
        elif kind == _OPEN:
            self._open(number, _NUMBER.unpack(content)[0])
        elif kind > _TAKEN:
            raise Broken(f"a frame of kind {kind}")
        elif (connection := self._connections.get(number)) is not None:  # else it is closed here already
            self._hear(connection, kind, content)

    def _hear(self, connection: _Connection, kind: int, content: bytes) -> None:
        if kind == _DATA:
            connection.pending += content
            if len(connection.pending) + connection.taken > _WINDOW:
                raise Broken("more than the window was sent")
        elif kind == _END:
            connection.ending = True
        elif kind == _TAKEN:
            connection.credit += _NUMBER.unpack(content)[0]
            if connection.credit > _WINDOW:
                raise Broken("more was taken than was sent")
        else:
            self._drop(connection)
            return
        self._flush(connection)

    def _pass_on(self, content: bytes) -> None:
        try:
            said = json.loads(content)
            message, sent = said["message"], said["sent"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Broken("a message can't be read") from error
        if not isinstance(message, dict) or not isinstance(sent, list):
            raise Broken("a message was not what it should be")
        standing: list[int] = []
        try:
            for kind in sent:
                if len(standing) >= _MOST_LISTENERS:
                    raise Broken("too much came with a message")
                standing.append(self._stand_in() if kind == "listener" else self._output_there())
            if self._control is not None:
                messages.send(self._control, message, standing)
        except OSError:  # whom it is for is gone
            self._drop_control()
        finally:
            for descriptor in standing:
                os.close(descriptor)

    def _stand_in(self) -> int:
        if len(self._places) >= _MOST_LISTENERS:
            raise Broken("too many listeners came")
        listener = self._listener(len(self._places))
        self._places.append(listener.getsockname())
        return listener.detach()

    def _open(self, number: int, listener: int) -> None:
        if number in self._connections or number % 2 == self._next % 2 or listener >= len(self._places):
            raise Broken("a connection was opened that can't be")
        if len(self._connections) >= 2 * _MOST_CONNECTIONS:
            raise Broken("too many connections were opened")
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(self._places[listener])
        except OSError:
            sock.close()
            self._send(number, _CLOSE)
            return
        self._add(sock, number)

    # What comes from this side

    def _on_control(self, events: int) -> None:  # noqa: ARG002
        if self._control is None:
            return
        try:
            message, descriptors = messages.receive(self._control)
        except BlockingIOError:
            return
        except (EOFError, OSError):  # nobody on this side has more to say
            self._drop_control()
            return
        sent = []
        for descriptor in descriptors:
            if _listens(descriptor):
                sent.append("listener")
                listener = socket.socket(fileno=descriptor)
                listener.setblocking(False)
                self._listeners.append(listener)
            else:
                sent.append("output")
                self._take_output(descriptor)
        self._send(0, _MESSAGE, json.dumps({"message": message, "sent": sent}).encode())
        self._watch_listeners()

    def _watch_listeners(self) -> None:
        if self.closed or self._stream_ended:
            return
        accepting = select.EPOLLIN if len(self._connections) < _MOST_CONNECTIONS else 0
        for number, listener in enumerate(self._listeners):
            self._loop.watch(listener.fileno(), accepting, partial(self._accept, number, listener))

    def _accept(self, listener: int, of: socket.socket, events: int) -> None:  # noqa: ARG002
        try:
            sock, _ = of.accept()
        except OSError:
            return  # the caller has gone again
        sock.setblocking(False)
        while self._next in self._connections:
            self._next = (self._next + 2) % _LAST
        number, self._next = self._next, (self._next + 2) % _LAST
        self._send(number, _OPEN, _NUMBER.pack(listener))
        self._add(sock, number)

    def _add(self, sock: socket.socket, number: int) -> None:
        if self.closed or self._stream_ended:
            sock.close()
            return
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._connections[number] = _Connection(sock, number)
        self._watch(connection)
        self._watch_listeners()

    def _watch(self, connection: _Connection) -> None:
        reading = not connection.ended and connection.credit > 0 and not self._congested
        events = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if connection.pending else 0)
        self._loop.watch(connection.sock.fileno(), events, partial(self._move, connection))

    def _move(self, connection: _Connection, events: int) -> None:
        try:
            reading = not connection.ended and connection.credit > 0 and not self._congested
            if events & _READ and reading:
                data = connection.sock.recv(min(_CHUNK, connection.credit))
                connection.credit -= len(data)
                connection.ended = not data
                self._send(connection.number, _DATA if data else _END, data)
        except BlockingIOError:
            pass
        except OSError:
            self._fail_connection(connection)
            return
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        """Hand on what waits here, say what was taken, and close what is done."""
        if self._connections.get(connection.number) is not connection:
            return
        try:
            if connection.pending:
                with contextlib.suppress(BlockingIOError):
                    count = connection.sock.send(connection.pending)
                    del connection.pending[:count]
                    connection.taken += count
            if connection.taken >= _TELL:
                taken, connection.taken = connection.taken, 0
                self._send(connection.number, _TAKEN, _NUMBER.pack(taken))
            if connection.ending and not connection.pending:
                if connection.ended:
                    self._drop(connection)
                    return
                connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._fail_connection(connection)
            return
        if self._connections.get(connection.number) is connection:
            self._watch(connection)

    # Ends

    def _fail_connection(self, connection: _Connection) -> None:
        if self._connections.get(connection.number) is connection:
            self._send(connection.number, _CLOSE)
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.get(connection.number) is not connection:
            return
        del self._connections[connection.number]
        self._loop.forget(connection.sock.fileno())
        connection.sock.close()
        if self._stream_ended:
            self._end_if_done()
        else:
            self._watch_listeners()

    def _drop_control(self) -> None:
        if self._control is not None:
            self._loop.forget(self._control.fileno())
            self._control.close()
            self._control = None

    def _end_if_done(self) -> None:
        if not self._connections and self._ready():
            self.close()

    def _fail(self, error: Exception) -> None:
        if not self.closed:
            os.write(2, f"A tunnel is broken: {error}\n".encode())
            self.close()

    @property
    def said_all(self) -> bool:
        """Whether the other end has been sent all that was said on this side, where that has ended."""
        return self.closed or (not self._out and all(each.ended for each in self._connections.values()))

    def close(self) -> None:
        """Close everything."""
        if self.closed:
            return
        self.closed = True
        self._drop_control()
        for connection in self._connections.values():
            self._loop.forget(connection.sock.fileno())
            connection.sock.close()
        self._connections.clear()
        for listener in self._listeners:
            if listener.fileno() >= 0:
                self._loop.forget(listener.fileno())
                listener.close()
        for descriptor in {self._reading, self._writing}:
            self._loop.forget(descriptor)
            os.close(descriptor)


def _listens(descriptor: int) -> bool:
    """Tell whether a descriptor is a listening socket."""
    probe = None
    try:
        probe = socket.socket(fileno=descriptor)
        return bool(probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
    finally:
        if probe is not None:
            probe.detach()
