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
    CLOSE    nor in the other one: nobody listens
    TAKEN    how many bytes were taken, and may be sent beyond those of the window

What the other end says is not believed: one that does not keep to this, or to the limits below, ends the
tunnel. Standard library only, and one thread.
"""

from __future__ import annotations

import abc
import errno
import json
import os
import select
import socket
import struct
import time
from functools import partial
from typing import Any

from function_service.engines.docker.carried import (
    CLOSE,
    NUMBER,
    OPEN,
    READABLE,
    TAKEN,
    Broken,
    Connection,
    Loop,
)
from function_service.engines.embedded import messages

_HEAD = struct.Struct("!IBI")
_MESSAGE = 0
_CHUNK = 64 << 10  # bytes that are read at once
_CONGESTED = 512 << 10  # bytes that wait for the stream; nothing more is read for it then
_MOST_WAITING = 1 << 20  # bytes that wait for it; what is read makes no more of them
_MOST_CONNECTIONS = 256  # to either side
_MOST_LISTENERS = 8
_LONGEST = messages.MAX_MESSAGE + (4 << 10)  # bytes of a frame
_NUMBERS = 1 << 32
_PAUSE = 0.01  # seconds, where descriptors are short


class Tunnel(abc.ABC):
    """One end of a tunnel. It owns what it is given, and closes it when it is over."""

    def __init__(self, loop: Loop, stream: tuple[int, int], control: socket.socket, *, inner: bool) -> None:
        """`stream`: where to read and to write. `control`: the one whose other side this stands in for."""
        self._loop = loop
        self._reading, self._writing = stream
        self._control: socket.socket | None = control
        self._came = bytearray()
        self._out = bytearray()
        self._connections: dict[int, Connection] = {}
        self._next = 1 if inner else 0
        self._listeners: list[socket.socket] = []  # those that were sent here, by number
        self._places: list[Any] = []  # the addresses of those that stand for the other side's, by number
        self._mute = False  # nothing can be said any more
        self.congested = False
        self.ended = False  # nothing comes any more; what has come is still handed on
        self.closed = False
        for descriptor in {*stream, control.fileno()}:
            os.set_blocking(descriptor, False)
        loop.watch(control.fileno(), select.EPOLLIN, self._on_control)
        self._watch()

    # What the two ends do differently

    def _judge(self, data: bytes) -> bytes:
        """Return what of the stream's bytes is the tunnel's."""
        return data

    def _ready(self) -> bool:
        """Tell whether more of the stream can be taken."""
        return True

    @abc.abstractmethod
    def _listener(self, number: int) -> socket.socket:
        """Return what stands for a listener of the other side. Raises OSError."""

    def _take_output(self, descriptor: int) -> None:
        """Take over a descriptor that came with a message, and is no listener."""
        os.close(descriptor)

    def _output_there(self) -> int:
        """Return what stands for such a one of the other side."""
        raise Broken("only listeners are sent this way")

    # The stream

    def _watch(self) -> None:
        reading = select.EPOLLIN if not self.ended and self._ready() else 0
        writing = select.EPOLLOUT if self._out else 0
        if self._reading == self._writing:
            self._loop.watch(self._reading, reading | writing, self._on_stream)
        else:
            self._loop.watch(self._reading, reading, self._on_stream)
            self._loop.watch(self._writing, writing, self._on_stream)

    def _on_stream(self, events: int) -> None:
        try:
            if self._out:
                self._write()
            if events & READABLE and not self.ended and self._ready():
                self._read()
        except (Broken, struct.error) as error:
            self._break(error)
        if not self.closed:
            self._watch()

    def _read(self) -> None:
        try:
            data = os.read(self._reading, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
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

    def say(self, number: int, kind: int, content: bytes = b"") -> None:
        """Tell the other end something (see Carrier)."""
        if self._mute:
            return
        self._out += _HEAD.pack(number, kind, len(content))
        self._out += content
        self._write()
        if len(self._out) > _MOST_WAITING:
            self._break(Broken("it says much and takes nothing"))
        elif not self.closed:
            self._watch()

    def _write(self) -> None:
        try:
            del self._out[: os.write(self._writing, memoryview(self._out)[: 4 * _CHUNK])]
        except BlockingIOError:
            pass
        except OSError:  # what it has said before may still be there to be read
            self._mute = True
            self._out.clear()
        congested = len(self._out) > _CONGESTED
        if congested is not self.congested:
            self.congested = congested
            for connection in list(self._connections.values()):
                connection.watch()

    @property
    def said_all(self) -> bool:
        """Whether the other end has been sent all that was said on this side, where that has ended."""
        return self._mute or (not self._out and all(each.said_all for each in self._connections.values()))

    # What comes over it

    def _take(self, number: int, kind: int, content: bytes) -> None:
        if kind == _MESSAGE:
            self._pass_on(content)
        elif kind == OPEN:
            self._open(number, NUMBER.unpack(content)[0])
        elif kind > TAKEN:
            raise Broken(f"a frame of kind {kind}")
        elif (connection := self._connections.get(number)) is not None:  # else it is closed here already
            connection.hear(kind, content)

    def _pass_on(self, content: bytes) -> None:
        try:
            said = json.loads(content)
            message, sent = said["message"], said["sent"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Broken("a message can't be read") from error
        if not isinstance(message, dict) or not isinstance(sent, list):
            raise Broken("a message was not what it should be")
        if self._control is None or len(self._places) + len(sent) > _MOST_LISTENERS:
            raise Broken("nobody waits for a message, or for what comes with it")
        standing: list[int] = []
        try:
            for kind in sent:  # one after the other, as each is to be closed if a later one fails
                standing += [self._stand_in() if kind == "listener" else self._output_there()]
            messages.send(self._control, message, standing)
        except OSError as error:
            raise Broken(f"a message can't be passed on: {error}") from error
        finally:
            for descriptor in standing:
                os.close(descriptor)

    def _stand_in(self) -> int:
        listener = self._listener(len(self._places))
        self._places.append(listener.getsockname())
        return listener.detach()

    def _open(self, number: int, listener: int) -> None:
        if number in self._connections or number % 2 == self._next % 2 or listener >= len(self._places):
            raise Broken("a connection was opened that can't be")
        if len(self._connections) >= 2 * _MOST_CONNECTIONS:
            raise Broken("too many connections were opened")
        try:
            sock = socket.socket(socket.AF_UNIX)
        except OSError:  # descriptors are short
            self.say(number, CLOSE)
            return
        sock.setblocking(False)
        try:
            sock.connect(self._places[listener])
        except OSError:
            sock.close()
            self.say(number, CLOSE)
        else:
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
            self._loop.forget(self._control.fileno())
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
        self.say(0, _MESSAGE, json.dumps({"message": message, "sent": sent}).encode())
        self._watch_listeners()

    def _watch_listeners(self) -> None:
        accepting = select.EPOLLIN if len(self._connections) < _MOST_CONNECTIONS else 0
        for number, listener in enumerate(self._listeners):
            self._loop.watch(listener.fileno(), accepting, partial(self._accept, number, listener))

    def _accept(self, listener: int, of: socket.socket, events: int) -> None:  # noqa: ARG002
        try:
            sock, _ = of.accept()
        except OSError as error:  # else the caller has gone again
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_PAUSE)
            return
        sock.setblocking(False)
        while self._next in self._connections:
            self._next = (self._next + 2) % _NUMBERS
        number, self._next = self._next, (self._next + 2) % _NUMBERS
        self.say(number, OPEN, NUMBER.pack(listener))
        if self.closed:
            sock.close()
        else:
            self._add(sock, number)

    def _add(self, sock: socket.socket, number: int) -> None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[number] = Connection(self._loop, self, sock, number)
        self._connections[number].watch()
        self._watch_listeners()

    # Ends

    def gone(self, number: int) -> None:
        """Take note that a connection has ended (see Carrier)."""
        self._connections.pop(number, None)
        if not self.ended:
            self._watch_listeners()
        self._close_if_done()

    def _end(self) -> None:
        """Take note that the other end is gone; what it has said is still handed on."""
        self.ended = self._mute = True
        self._out.clear()
        self._drop_listeners()
        for connection in list(self._connections.values()):
            connection.end()
        self._drop_control()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.ended and not self._connections and self._ready():
            self.close()

    def _break(self, error: Exception) -> None:
        if not self.closed:
            os.write(2, f"A tunnel is broken: {error}\n".encode())
            self.close()

    def close(self) -> None:
        """Close everything."""
        if self.closed:
            return
        self.closed = self.ended = self._mute = True
        self._drop_listeners()
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._drop_control()
        for descriptor in {self._reading, self._writing}:
            self._loop.forget(descriptor)
            os.close(descriptor)

    def _drop_listeners(self) -> None:
        for listener in self._listeners:
            self._loop.forget(listener.fileno())
            listener.close()
        self._listeners.clear()

    def _drop_control(self) -> None:
        if self._control is not None:
            self._loop.forget(self._control.fileno())
            self._control.close()
            self._control = None


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
