"""The server for asynchronous handlers: one event loop, a task for each call, at most so many at a time."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterable, Awaitable
from typing import Any, Callable

from . import failures, output, wire
from .messages import Answer, AsyncRequest, answer, encode_piece, with_kind

_BODY_BUFFER = 256 << 10  # bytes of a body that may wait for its reader
_DISCARD = 1 << 20  # as in blocking.py
_DISCARD_SECONDS = 1.0
_READ_AHEAD = 4 << 20  # bodies up to this length have come before a handler is called

Serve = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request and its answer: what a task reads its body from, and writes its answer to."""

    __slots__ = (
        "_decoder",
        "_pieces",
        "_size",
        "_unasked",
        "_waiter",
        "connection",
        "gone",
        "head",
        "sent",
        "task",
        "writer",
    )

    def __init__(self, connection: Connection, head: wire.Head) -> None:
        self.connection = connection
        self._decoder = head.decoder()
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._unasked = head.expects_continue and self._decoder is not None
        self._waiter: asyncio.Future[None] | None = None
        self.head = head
        self.writer = wire.Writer(head)
        self.gone: Exception | None = None  # why no more of the body will come
        self.sent = False  # whether any of the answer has been written
        self.task: asyncio.Task[None] | None = None

    # what the connection tells

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the body; return what follows its end. Raises BadRequest."""
        decoder = self._decoder
        if decoder is None or decoder.done:
            return data
        if data:
            self._unasked = False
        piece = decoder.feed(data)
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size > _BODY_BUFFER:
                self.connection.pause()
        self._wake()
        rest = decoder.rest
        decoder.rest = b""
        return rest

    def fail(self, error: Exception) -> None:
        """Tell the reader that no more will come."""
        self.gone = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # what the task asks for

    @property
    def received(self) -> bool:
        """Whether the whole body has come (it may still have to be read)."""
        return self._decoder is None or self._decoder.done

    @property
    def unasked(self) -> bool:
        """Whether the caller still waits for `100 Continue`, and so sends no body."""
        return self._unasked

    @property
    def drained(self) -> bool:
        """Whether the whole body has come and was read."""
        return self.received and not self._pieces

    async def _signal(self) -> None:
        """Return when more of the body has come, its end has, the answer has ended, or the caller is gone."""
        if self._waiter is None or self._waiter.done():
            self._waiter = self.connection.loop.create_future()
        await asyncio.shield(self._waiter)

    async def wait_over(self) -> None:
        """Return when the answer has ended or the caller is gone."""
        while self.gone is None and not self.writer.ended:
            await self._signal()

    def over(self) -> None:
        """Tell whoever waits that the answer has ended."""
        self._wake()

    def discard(self) -> None:
        """Throw away what has come of the body."""
        self._pieces.clear()

    async def read(self) -> bytes:
        """Return the next piece of the body, empty at its end. Raises Disconnected, BadRequest."""
        while not self._pieces:
            if self.received:
                return b""
            if self.gone is not None:
                raise self.gone
            if self._unasked:
                self._unasked = False
                self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._signal()
        self._size -= len(self._pieces[0])
        if self._size <= _BODY_BUFFER:
            self.connection.resume()
        return self._pieces.popleft()

    async def receive_short_body(self) -> None:
        """Wait for the body if its length is known and not great."""
        head = self.head
        if self.received or head.chunked or head.length > _READ_AHEAD:
            return
        pieces = []
        while True:
            piece = await self.read()
            if not piece:
                break
            pieces.append(piece)
        self._pieces.append(b"".join(pieces))
        self._size = head.length

    async def send(self, data: bytes) -> None:
        """Write bytes of the answer, and wait until the caller takes more. Raises Disconnected."""
        if not data:
            return
        self.connection.write(data)
        self.sent = True
        if self.connection.paused is not None:
            await asyncio.shield(self.connection.paused)

    async def send_answer(self, reply: Answer) -> None:
        """Send an answer, streaming a body that is an iterator."""
        status, fields, content = reply
        writer = self.writer
        if self._unasked:
            writer.keep_alive = False
        if isinstance(content, bytes):
            await self.send(writer.whole(status, fields, content))
            return
        try:
            if isinstance(content, AsyncIterable):
                async for piece in content:
                    if not await self._send_piece(status, fields, piece):
                        break
            else:
                for piece in content:
                    if not await self._send_piece(status, fields, piece):
                        break
                    await asyncio.sleep(0)  # else the loop would not learn that the caller is gone
            if not writer.started:
                await self.send(writer.start(status, fields, None if self.head.method == "HEAD" else 0))
            await self.send(writer.end())
        finally:
            if hasattr(content, "aclose"):
                await content.aclose()
            elif hasattr(content, "close"):
                content.close()

    async def _send_piece(self, status: int, fields: wire.Fields, piece: Any) -> bool:
        """Send a piece of the body, the first one with the head. Return whether more are wanted."""
        data, kind = encode_piece(piece)
        if data:
            head = b"" if self.writer.started else self.writer.start(status, with_kind(fields, kind))
            await self.send(head + self.writer.data(data))
        return not data or self.head.method != "HEAD"


def adapt(handler: Callable[[AsyncRequest], Any]) -> Serve:
    """Return what serves an exchange by a handler of ours."""

    async def serve(exchange: Exchange) -> None:
        await exchange.receive_short_body()
        request = AsyncRequest(exchange.head, None if exchange.head.decoder() is None else exchange)
        if exchange.received:
            await request.read()
        result = handler(request)
        if asyncio.iscoroutine(result) or isinstance(result, Awaitable):
            result = await result
        await exchange.send_answer(answer(result))

    return serve


class Connection(asyncio.Protocol):
    """One connection: cuts what comes into requests, and has them answered one after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.loop = server.loop
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._exchange: Exchange | None = None
        self._reading = True
        self._discarded = -1  # bytes of the rest of a body, while that is thrown away
        self._patience: asyncio.TimerHandle | None = None
        self.paused: asyncio.Future[None] | None = None

    # what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Give what came to the request under way, or begin the next one."""
        exchange = self._exchange
        if exchange is None:
            self._buffer = self._buffer + data if self._buffer else data
            self._next()
            return
        try:
            self._buffer += exchange.feed(data)
        except wire.BadRequest as error:
            if self._discarded >= 0:
                self._end()
            else:
                exchange.fail(error)
            return
        if self._discarded >= 0:
            self._discard(exchange, len(data))
        elif len(self._buffer) > wire.MAX_HEAD:  # requests that did not wait for their turn
            self.pause()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End what the caller no longer waits for."""
        self._transport = None
        self.resume_writing()
        if self._patience is not None:
            self._patience.cancel()
        exchange = self._exchange
        if exchange is not None and self._discarded < 0:
            exchange.fail(wire.Disconnected("The caller went away"))
            if exchange.task is not None:
                self.loop.call_later(self._server.grace, exchange.task.cancel)

    def pause_writing(self) -> None:
        """The caller takes the answer slower than it is made."""
        self.paused = self.loop.create_future()

    def resume_writing(self) -> None:
        """The caller caught up, or is gone."""
        if self.paused is not None and not self.paused.done():
            self.paused.set_result(None)
        self.paused = None

    # what an exchange calls

    def write(self, data: bytes) -> None:
        """Write to the caller. Raises Disconnected."""
        if self._transport is None or self._transport.is_closing():
            raise wire.Disconnected("The caller went away")
        self._transport.write(data)

    def pause(self) -> None:
        """Take no more from the caller for now."""
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        """Take more from the caller again."""
        if not self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def finished(self, exchange: Exchange) -> None:
        """Go on with the next request after an answer has ended, or end the connection."""
        if not exchange.writer.ended or not exchange.writer.keep_alive or exchange.gone is not None:
            self._end()
        elif exchange.received:
            self._exchange = None
            self.resume()
            if self._buffer:
                self._next()
        else:
            self._patience = self.loop.call_later(_DISCARD_SECONDS, self._end)
            self._discarded = 0
            self.resume()

    # and the rest

    def _next(self) -> None:
        try:
            end = wire.split_head(self._buffer)
            if not end:
                return
            exchange = Exchange(self, wire.Head(self._buffer[:end]))
            self._buffer = exchange.feed(self._buffer[end:])
        except wire.BadRequest as error:
            self._refuse(error)
            return
        self._exchange = exchange
        self._server.admit(exchange)

    def _discard(self, exchange: Exchange, count: int) -> None:
        exchange.discard()
        self._discarded += count
        if exchange.received:
            assert self._patience is not None  # noqa: S101  set where discarding began
            self._patience.cancel()
            self._patience = None
            self._discarded = -1
            self._exchange = None
            if self._buffer:
                self._next()
        elif self._discarded > _DISCARD:
            self._end()

    def _refuse(self, error: wire.BadRequest) -> None:
        writer = wire.Writer(wire.Head(b"GET / HTTP/1.1\r\n\r\n"))
        writer.keep_alive = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(writer.whole(*failures.malformed(error)))
        self._end()

    def refuse(self, exchange: Exchange, error: wire.BadRequest) -> None:
        """Answer a request whose body turned out to be malformed."""
        if not exchange.sent:
            self._refuse(error)

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Server:
    """Serves on a listener for ever: `serve` answers an exchange."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, serve: Serve, concurrency: int, grace: float = 0.0
    ) -> None:
        self.loop = loop
        self.grace = grace
        """How long a call may go on after its caller went away, before it is cancelled."""
        self._serve = serve
        self._free = concurrency
        self._waiting: deque[Exchange] = deque()

    def run(self, listener: socket.socket) -> None:
        """Serve until the process ends."""
        self.loop.run_until_complete(self.loop.create_unix_server(self.connect, sock=listener))
        self.loop.run_forever()

    def connect(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self)

    def admit(self, exchange: Exchange) -> None:
        """Answer the exchange now, or when a call has ended."""
        if self._free:
            self._free -= 1
            exchange.task = self.loop.create_task(self._answer(exchange))
        else:
            self._waiting.append(exchange)

    async def _answer(self, exchange: Exchange) -> None:
        output.request.set(exchange.head.request_id)  # for this task
        connection = exchange.connection
        try:
            await self._serve(exchange)
        except wire.BadRequest as error:
            connection.refuse(exchange, error)
        except wire.Disconnected:
            pass  # nobody is there to tell
        except asyncio.CancelledError:
            if exchange.gone is None:  # the handler cancelled itself
                await self._replace(exchange, RuntimeError("The call was cancelled by the function itself"))
        except Exception as error:  # noqa: BLE001  whatever a function raises
            await self._replace(exchange, error)
        finally:
            self._free += 1
            exchange.task = None
            connection.finished(exchange)
            while self._free and self._waiting:
                following = self._waiting.popleft()
                if following.gone is None:
                    self.admit(following)

    async def _replace(self, exchange: Exchange, error: BaseException) -> None:
        """Report an error, and answer with it if nothing has been sent yet."""
        failures.report(error)
        if not exchange.sent:
            exchange.writer = wire.Writer(exchange.head)
            try:
                await exchange.send_answer(failures.made_of(error))
            except wire.Disconnected:
                return
