"""The bare relay beside which warm calls are held: two hops on the libraries of the platform, no policy.

    python -m benchmarks.relay SOCKET [aiohttp]

The front (uvloop and httptools, one process) takes HTTP on a free port of 127.0.0.1, which it prints, parses
a request, writes it to a kept connection to the back, parses the answer, and passes it on. With `aiohttp`, it
takes requests through aiohttp's low-level server, whose own responses it leaves out. The back answers `hello`
on a Unix socket. No routes, keys, limits, queues, receipts, streaming or errors. Both end with stdin.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import httptools
import uvloop
from aiohttp import web

_HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n\r\nhello"


class Back(asyncio.Protocol):
    """Answers every request with the same."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self._transport is not None
        self._transport.write(_HELLO)


class Upstream(asyncio.Protocol):
    """A connection to the back; it is free again once the answer is there."""

    def __init__(self, free: "list[Upstream]") -> None:
        self._free = free
        self._transport: asyncio.Transport | None = None
        self._waiting: Callable[[bytes], None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[bytes] = []
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def ask(self, message: bytes, answered: Callable[[bytes], None]) -> None:
        """Send a request; `answered` gets the answer."""
        assert self._transport is not None
        self._waiting = answered
        self._headers, self._body = [], []
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append(b"%s: %s\r\n" % (name, value))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        assert self._waiting is not None
        status = self._parser.get_status_code()
        self._free.append(self)
        self._waiting(b"".join((b"HTTP/1.1 %d OK\r\n" % status, *self._headers, b"\r\n", *self._body)))


class Front(asyncio.Protocol):
    """Passes each request on."""

    def __init__(self, socket: str, free: list[Upstream]) -> None:
        self._socket = socket
        self._free = free
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._headers: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append(b"%s: %s\r\n" % (name, value))

    def on_message_complete(self) -> None:
        message = b"%s %s HTTP/1.1\r\n%s\r\n" % (
            self._parser.get_method(),
            self._url,
            b"".join(self._headers),
        )
        assert self._transport is not None
        if self._free:
            self._free.pop().ask(message, self._transport.write)
        else:
            self._connecting = asyncio.ensure_future(self._connect(message))

    async def _connect(self, message: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_unix_connection(lambda: Upstream(self._free), self._socket)
        assert self._transport is not None
        upstream.ask(message, self._transport.write)


class Passed(web.StreamResponse):
    """What aiohttp gets for an answer that has been written already."""

    def __init__(self) -> None:
        super().__init__()
        self._keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing."""


class AiohttpFront:
    """Passes each request on, which aiohttp's low-level server has parsed."""

    def __init__(self, socket: str, free: list[Upstream]) -> None:
        self._socket = socket
        self._free = free

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bytes] = loop.create_future()
        head = [b"%s: %s\r\n" % field for field in request.raw_headers]
        message = b"%s %s HTTP/1.1\r\n%s\r\n" % (
            request.method.encode(),
            request.raw_path.encode(),
            b"".join(head),
        )
        if self._free:
            upstream = self._free.pop()
        else:
            _, upstream = await loop.create_unix_connection(lambda: Upstream(self._free), self._socket)
        upstream.ask(message, answered.set_result)
        await request.writer.write(await answered)
        return Passed()


async def _until_stdin_ends() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, ended.set)
    await ended.wait()
    loop.remove_reader(0)


async def _back(socket: str, ready: int) -> None:
    await asyncio.get_running_loop().create_unix_server(Back, socket)
    os.write(ready, b"\n")
    await _until_stdin_ends()


async def _front(socket: str, *, on_aiohttp: bool) -> None:
    free: list[Upstream] = []
    loop = asyncio.get_running_loop()
    made: Callable[[], asyncio.Protocol] = lambda: Front(socket, free)  # noqa: E731
    if on_aiohttp:
        made = web.Server(AiohttpFront(socket, free).answer, access_log=None)
    server = await loop.create_server(made, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await _until_stdin_ends()


def main() -> int:
    """Fork the back, and be the front."""
    socket = sys.argv[1]
    ready, tell = os.pipe()
    role: Awaitable[None]
    if os.fork() == 0:
        os.close(ready)
        role = _back(socket, tell)
    else:
        os.close(tell)
        os.read(ready, 1)
        role = _front(socket, on_aiohttp=sys.argv[2:] == ["aiohttp"])
    uvloop.run(role)
    return 0


if __name__ == "__main__":
    sys.exit(main())
