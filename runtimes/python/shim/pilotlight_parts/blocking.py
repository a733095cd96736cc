"""The server for synchronous handlers: plain blocking calls, in one thread or in several that are alike.

Each thread waits on the same epoll for the listener and for idle connections, takes one, answers the
request on it, and gives it back. So there are never more calls than threads, any number of connections,
and with one thread nothing is handed from one to another.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Callable

from . import failures, output, wire
from .messages import Answer, Unencodable, encode_piece, with_kind

_READ = 64 << 10
_DISCARD = 1 << 20  # bytes of a body that nobody read, which are taken so that the connection can go on
_DISCARD_SECONDS = 1.0

Call = Callable[[wire.Head, "Body | None"], Answer]


class _Broken(Exception):  # noqa: N818
    """The caller is gone, or an answer had begun and can't be ended: the connection must break off."""


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError as error:
        raise _Broken from error


class Body:
    """A request's body, read from the connection when it is asked for."""

    __slots__ = ("_continue", "_decoder", "_first", "_sock")

    def __init__(self, sock: socket.socket, decoder: wire.Decoder, first: bytes, must_ask: bool) -> None:
        self._sock = sock
        self._decoder = decoder
        self._first = first  # came together with the head
        self._continue = must_ask and not first

    @property
    def done(self) -> bool:
        """Whether all of it has been read from the connection."""
        return self._decoder.done

    @property
    def unasked(self) -> bool:
        """Whether the caller still waits for `100 Continue`, and so sends no body."""
        return self._continue

    @property
    def rest(self) -> bytes:
        """What came after the body's end."""
        return self._decoder.rest

    def read(self) -> bytes:
        """Return the next piece, empty at the end. Raises Disconnected, BadRequest."""
        decoder = self._decoder
        if self._continue:
            self._continue = False
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not decoder.done:
            data, self._first = self._first, b""
            if not data:
                data = self._sock.recv(_READ)
                if not data:
                    raise wire.Disconnected("The caller went away before the whole body had come")
            piece = decoder.feed(data)
            if piece:
                return piece
        return b""

    def discard(self) -> bool:
        """Read on to the end, within bounds. Return whether it was reached.

        A peer that has sent its whole request has no more than a socket's buffer of it under way, which is
        far less than the bound: so a connection is never dropped that the peer takes for reusable.
        """
        if self._decoder.done:
            return True
        if self._continue:
            return False
        deadline = time.monotonic() + _DISCARD_SECONDS
        count = 0
        try:
            while count <= _DISCARD:
                self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
                piece = self.read()
                if not piece:
                    self._sock.settimeout(None)
                    return True
                count += len(piece)
        except (OSError, wire.BadRequest):
            return False
        return False


class Connection:
    """One connection, and what of its next request has come."""

    __slots__ = ("buffer", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""


class Server:
    """Serves on a listener for ever: `call` turns a request into an answer."""

    def __init__(self, listener: socket.socket | None, call: Call, threads: int) -> None:
        self._listener = listener
        self._call = call
        self._threads = threads
        self._connections: dict[int, Connection] = {}
        self._events = select.EPOLLIN | (select.EPOLLONESHOT if threads > 1 else 0)

    def run(self) -> None:
        """Serve until the process ends."""
        assert self._listener is not None  # noqa: S101  only the rehearsal has none
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), self._events)
        for number in range(1, self._threads):
            threading.Thread(target=self._run_thread, name=f"calls-{number}", daemon=True).start()
        self._work(self._listener)

    def _run_thread(self) -> None:
        assert self._listener is not None  # noqa: S101
        try:
            self._work(self._listener)
        except SystemExit as error:  # elsewhere than in the main thread it would end the thread alone
            end_process(error)
        except BaseException as error:  # noqa: BLE001  a thread less would be a call less, for ever
            failures.report(error)
            os._exit(1)

    def _work(self, listener: socket.socket) -> None:
        poll = self._epoll.poll
        listening = listener.fileno()
        connections = self._connections
        once = self._threads > 1
        while True:
            for descriptor, _ in poll(-1, 1):
                if descriptor == listening:
                    try:
                        sock, _ = listener.accept()
                    except (BlockingIOError, ConnectionAbortedError):
                        sock = None
                    if once:
                        self._epoll.modify(listening, self._events)
                    if sock is None:
                        continue
                    sock.setblocking(True)
                    connection = Connection(sock)
                    if self.advance(connection):  # the request is mostly there already
                        connections[sock.fileno()] = connection
                        self._epoll.register(sock.fileno(), self._events)
                    else:
                        sock.close()
                    continue
                connection = connections[descriptor]
                if not self.advance(connection):
                    del connections[descriptor]  # before its number can be given to another one
                    connection.sock.close()
                elif once:
                    self._epoll.modify(descriptor, self._events)

    def advance(self, connection: Connection) -> bool:
        """Read what has come, and answer each whole request. Return whether to keep the connection."""
        sock = connection.sock
        try:
            data = sock.recv(_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        buffer = connection.buffer + data if connection.buffer else data
        try:
            while True:
                end = wire.split_head(buffer)
                if not end:
                    connection.buffer = buffer
                    return True
                head = wire.Head(buffer[:end])
                output.request.set(head.request_id)
                rest = self._exchange(sock, head, buffer[end:])
                output.request.set("")
                if rest is None:
                    return False
                buffer = rest
                if not buffer:
                    connection.buffer = b""
                    return True
        except wire.BadRequest as error:
            return self._refuse(sock, error)
        except (_Broken, wire.Disconnected):
            return False

    def _exchange(self, sock: socket.socket, head: wire.Head, rest: bytes) -> bytes | None:
        """Answer one request. Return what came after it, or None where the connection must end."""
        decoder = head.decoder()
        body = None if decoder is None else Body(sock, decoder, rest, head.expects_continue)
        writer = wire.Writer(head)
        try:
            status, fields, content = self._call(head, body)
        except (wire.Disconnected, wire.BadRequest):
            raise
        except Exception as error:  # noqa: BLE001  whatever a function raises
            failures.report(error)
            status, fields, content = failures.made_of(error)
        if body is not None and body.unasked:
            writer.keep_alive = False  # the caller may send the body all the same, or not
        if type(content) is bytes:
            try:
                data = writer.whole(status, fields, content)
            except ValueError as error:
                data = _instead(head, failures.made_of(error), error)
            _send(sock, data)
        else:
            self._stream(sock, head, writer, (status, fields, content))
        if not writer.keep_alive:
            return None
        if body is None:
            return rest
        return body.rest if body.discard() else None

    def _stream(self, sock: socket.socket, head: wire.Head, writer: wire.Writer, reply: Answer) -> None:
        """Send an answer as its iterator makes it; the head goes with the first piece."""
        status, fields, content = reply
        sent = False
        try:
            if isinstance(content, AsyncIterator) or not hasattr(content, "__iter__"):
                raise Unencodable(
                    "The handler returned an asynchronous iterator, but it is not asynchronous itself. "
                    "Write `async def`."
                )
            for piece in content:
                data, kind = encode_piece(piece)
                if not data:
                    continue
                start = b"" if sent else writer.start(status, with_kind(fields, kind))
                _send(sock, start + writer.data(data))
                sent = True
                if head.method == "HEAD":
                    break
            start = b"" if sent else writer.start(status, fields, None if head.method == "HEAD" else 0)
            _send(sock, start + writer.end())
        except (_Broken, wire.Disconnected):
            raise
        except Exception as error:
            if sent:
                failures.report(error)
                raise _Broken from error
            _send(sock, _instead(head, failures.made_of(error), error))
        finally:
            close = getattr(content, "close", None)
            if close is not None:
                close()

    def _refuse(self, sock: socket.socket, error: wire.BadRequest) -> bool:
        status, fields, content = failures.malformed(error)
        writer = wire.Writer(_ANY_HEAD)
        writer.keep_alive = False
        with contextlib.suppress(OSError):  # then the caller is gone, which is as well
            sock.sendall(writer.whole(status, fields, content))
        return False


_ANY_HEAD = wire.Head(b"GET / HTTP/1.1\r\n\r\n")


def _instead(head: wire.Head, replacement: Answer, error: BaseException) -> bytes:
    """Report an error, and return the answer that goes out in place of the one that can't be sent."""
    failures.report(error)
    status, fields, content = replacement
    assert type(content) is bytes  # noqa: S101  problem documents are
    return wire.Writer(head).whole(status, fields, content)


def end_process(error: SystemExit) -> None:
    """End the process as the interpreter does at SystemExit, without running what other threads may hold."""
    code = error.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
