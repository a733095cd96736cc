"""HTTP/1.1 to an instance over its Unix socket: one connection, one exchange at a time, streaming both ways.

It is lean because it is on the way of every call: the parser calls back into the connection, and a
reader is woken once for all that arrived together.
"""

import asyncio
import ssl
from typing import TYPE_CHECKING, NamedTuple, cast

import httptools
from aiohttp import StreamReader

from pilotlight import machines
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

_HIGH = 1 << 16  # bytes of an answer that wait for a slow caller before we stop reading
_MAX_HEAD = 1 << 17  # bytes of an answer's head
_BACKLOG_PAUSE = 0.005  # seconds
_MACHINE_WITHIN = 2.0  # seconds that another machine has to take a connection
_REPLAYABLE = 16 << 10  # bytes; up to this size a message is one buffer, read whole or not at all


class BrokenOff(Exception):  # noqa: N818  what the other side did, not a fault of ours
    """The other side ended the connection before its answer was complete.

    `taken` is False where it certainly never read the request: connecting failed, or the kernel
    says that our bytes were still unread (ECONNRESET, or EPIPE; unix(7) sockets tell this exactly).
    """

    def __init__(self, *, taken: bool) -> None:
        super().__init__("the connection was broken off")
        self.taken = taken


class Malformed(Exception):  # noqa: N818  as above
    """The other side answered with something that is not HTTP."""


class TooLarge(Exception):  # noqa: N818  as above
    """The request body grew over the limit while it was passed on."""


class Connection(asyncio.Protocol):
    """One connection, kept alive between exchanges.

    An exchange is `begin`, `send` (and `send_body`), `head`, then `read` until it returns None.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._reading_paused = False
        self.watcher: Callable[[], None] | None = None
        """Called, as long as nobody waits, whenever something has happened to the answer."""
        self._usual: _Usual | None = None
        self.idle_since = 0.0
        self._reset()
        self.done = True

    def _reset(self) -> None:
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.done = False
        self._head_done = False
        self._head_size = 0
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._answered = False  # whether any byte of the answer came
        self._sized = False  # whether the answer's end is known before the connection's
        self._keep_alive = False
        self._sent_whole = False
        self._sent = 0
        self._is_head = False

    # what the caller does

    def begin(self, method: str) -> None:
        """Start an exchange."""
        self._reset()
        self._is_head = method == "HEAD"

    def send(self, message: bytes, *, whole: bool) -> None:
        """Write the head of the request; `whole` when the body is in it or there is none."""
        if self._transport is not None:
            self._sent = len(message)
            self._sent_whole = whole
            self._transport.write(message)

    async def send_body(self, body: StreamReader, *, chunked: bool, limit: int) -> None:
        """Pass the request body on as it comes, as fast as the other side takes it.

        Raises TooLarge past `limit` bytes, and what aiohttp raises for a body that breaks off.
        """
        size = 0
        while data := await body.readany():
            size += len(data)
            if size > limit:
                raise TooLarge
            if self._transport is None:
                return  # the reader of the answer learns why
            self._sent += len(data)
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            if self._writable is not None:
                await asyncio.shield(self._writable)
        if chunked and self._transport is not None:
            self._transport.write(b"0\r\n\r\n")
        self._sent_whole = True

    async def head(self) -> None:
        """Wait until status, reason and headers are there. Raises BrokenOff, Malformed."""
        while not self._head_done:
            if self._error is not None:
                raise self._error
            await self._wait()

    def ready(self) -> bytes:
        """Return what has come of the body since the last time, without waiting."""
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        self._buffered = 0
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self) -> bytes | None:
        """Wait for more of the body; None at its end. Raises BrokenOff, Malformed."""
        while not self._pieces:
            if self.done:
                return None
            if self._error is not None:
                raise self._error
            await self._wait()
        return self.ready()

    @property
    def bodiless(self) -> bool:
        """Whether no body follows the head."""
        return self._is_head or self.status in (204, 304)

    @property
    def finished(self) -> bool:
        """Whether the whole answer is there, as it should be."""
        return self.done and self._error is None

    @property
    def reusable(self) -> bool:
        """Whether another exchange may begin."""
        return self.done and self._keep_alive and self._sent_whole and self._error is None

    @property
    def replayable(self) -> bool:
        """Whether the other side can't have read a part of what was sent, if it did not read all."""
        return self._sent_whole and self._sent <= _REPLAYABLE

    @property
    def clogged(self) -> bool:
        """Whether the other side reads slower than we write."""
        return self._writable is not None

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as we know."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """End the connection at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def cut_short(self) -> None:
        """Take what has come for the whole answer, and end the connection."""
        self.done, self._keep_alive = True, False
        self.close()
        self._wake()

    def break_off(self, error: Exception) -> None:
        """End the connection because of error, which whoever reads the answer is told."""
        if self._error is None:
            self._error = error
        self.close()
        self._wake()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
        elif self.watcher is not None:
            self.watcher()

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came; the callbacks below store it."""
        if self.done:  # nobody asked
            self.break_off(Malformed("it sent more than its answer"))
            return
        usual = self._usual
        if (
            usual is not None
            and not self._answered
            and not self._is_head
            and len(data) == usual.size
            and data.startswith(usual.head)
        ):
            self._as_usual(usual, data)
            return
        alone = not self._answered
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.break_off(Malformed("it switched protocols without having been asked to"))
        except httptools.HttpParserError as error:
            if not (self._is_head and self._head_done):
                cause = error.__context__ if isinstance(error.__context__, Malformed) else None
                self.break_off(cause or Malformed(str(error) or type(error).__name__))
        if alone and self.reusable and not self._is_head:
            self._usual = _usual(data, self)
        if self._buffered > _HIGH and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake()

    def _as_usual(self, usual: "_Usual", data: bytes) -> None:
        """Take an answer with the head of the one before: it needs no parser, which has not seen it begin."""
        self._answered = self._head_done = self._sized = self._keep_alive = self.done = True
        self.status, self.reason, self.headers = usual.status, usual.reason, usual.headers
        if len(usual.head) < len(data):
            self._pieces = [data[len(usual.head) :]]
        self._wake()

    def pause_writing(self) -> None:
        """The other side reads slower than we write."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """The other side caught up."""
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ended: this completes an answer without a length, and breaks any other."""
        self._transport = None
        if not self.done:
            if self._head_done and not self._sized and exc is None:
                self.done = True
            elif self._error is None:
                unread = not self._answered and isinstance(exc, ConnectionResetError | BrokenPipeError)
                self._error = BrokenOff(taken=not (unread and self.replayable))
        self.resume_writing()
        self._wake()

    # what the parser calls

    def on_message_begin(self) -> None:
        """Refuse what follows an answer that is complete: nobody asked for it."""
        if self.done:
            raise Malformed("it sent more than its answer")

    def on_status(self, reason: bytes) -> None:
        """Take a piece of the reason phrase."""
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Those that come after the body are trailers, and are dropped."""
        if self._head_done:
            return
        self._head_size += len(name) + len(value)
        if self._head_size > _MAX_HEAD:
            raise Malformed(f"the head of its answer is larger than {_MAX_HEAD >> 10} KB")
        self.headers.append((name, value.rstrip(b" \t")))
        if not self._sized and name.lower() in (b"content-length", b"transfer-encoding"):
            self._sized = True

    def on_headers_complete(self) -> None:
        """Take the status. An answer to HEAD is complete then; the parser does not know about HEAD."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        self._head_done = True
        if self._is_head:
            self.done = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if not self._is_head:
            self._pieces.append(body)
            self._buffered += len(body)

    def on_message_complete(self) -> None:
        """The answer is complete, unless it was an interim one (100, 103), which is dropped."""
        if self.status < 200:
            self.status, self.reason, self.headers = 0, b"", []
            self._sized = False
            return
        if self.done:
            # of an answer to HEAD: whether the parser stands at its end is not known, so don't go on
            return
        self.done = True
        self._keep_alive = self._parser.should_keep_alive()


class _Usual(NamedTuple):
    """The head of an answer that came as a whole; many answers of a function have the same."""

    head: bytes
    size: int  # of the answer, body included
    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]


def _usual(data: bytes, answer: Connection) -> _Usual | None:
    """Return the head of `answer`, which is all of `data`, where it says the length of its body."""
    end = data.find(b"\r\n\r\n") + 4
    length = str(len(data) - end).encode()
    for name, value in answer.headers:
        if value == length and name.lower() == b"content-length":
            return _Usual(data[:end], len(data), answer.status, answer.reason, answer.headers)
    return None


async def connect(address: str) -> Connection:
    """Connect to a Unix socket (`sockets.address`).

    Raises BrokenOff, not `taken`, where nobody listens, and Problem where the fault is on our side.
    """
    loop = asyncio.get_running_loop()
    while True:
        connection = Connection()
        try:
            await loop.create_unix_connection(lambda: connection, address)  # noqa: B023
        except (ConnectionError, FileNotFoundError) as error:
            raise BrokenOff(taken=False) from error
        except BlockingIOError:
            await asyncio.sleep(_BACKLOG_PAUSE)  # its backlog is full: it is slow to accept, not dead
        except OSError as error:
            raise Problem(
                "unavailable",
                f"The gateway can open no connection: {error.strerror or error}. If too many files "
                "are open, raise their limit (ulimit -n).",
                retry_after=1,
            ) from error
        else:
            return connection


async def connect_to_machine(address: str, context: ssl.SSLContext) -> Connection:
    """Connect to the gateway of another machine of the platform, at HOST:PORT.

    Raises BrokenOff, not `taken`, where none answers soon, or what answers is none.
    """
    host, port = machines.split(address)
    connection = Connection()
    try:
        async with asyncio.timeout(_MACHINE_WITHIN):
            await asyncio.get_running_loop().create_connection(lambda: connection, host, port, ssl=context)
    except OSError as error:  # a time-out and TLS' errors are such, too
        connection.close()
        raise BrokenOff(taken=False) from error
    return connection
