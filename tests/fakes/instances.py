"""Instances that are no sandboxes: HTTP/1.1 servers on Unix sockets, and a gallery of misbehaving ones."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from pilotlight import sockets

_numbers = itertools.count(1)


class Gone(Exception):  # noqa: N818  an event, not a fault
    """The gateway closed the connection in the midst of a request."""


@dataclass
class Exchange:
    """One request as an instance sees it, with raw access to the answer."""

    instance: "FakeInstance"
    method: str
    target: str
    headers: list[tuple[str, str]]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    keep_alive: bool = True

    def header(self, name: str) -> str | None:
        found = self.all(name)
        return found[0] if found else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    async def pieces(self):
        """Yield the body as it comes."""
        if self.header("transfer-encoding"):
            while True:
                line = await self.reader.readline()
                if not line:
                    raise Gone
                size = int(line.split(b";")[0], 16)
                if size:
                    yield await self.reader.readexactly(size)
                await self.reader.readline()
                if not size:
                    return
        else:
            left = int(self.header("content-length") or 0)
            while left:
                piece = await self.reader.read(min(left, 65536))
                if not piece:
                    raise Gone
                left -= len(piece)
                yield piece

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, status: int = 200, body: bytes = b"", *headers: tuple[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers)]
        await self.write(
            "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (b"" if self.method == "HEAD" else body)
        )

    async def gone(self) -> None:
        """Wait until the gateway has closed the connection."""
        while await self.reader.read(65536):
            pass

    def break_off(self) -> None:
        self.writer.transport.abort()


Behaviour = Callable[[Exchange], Awaitable[None]]


@dataclass
class FakeInstance:
    """Serves `behaviour` at a socket until it is killed."""

    folder: Path
    behaviour: Behaviour
    concurrency: int = 1
    id: str = field(default_factory=lambda: f"i{next(_numbers)}")
    calls: int = 0
    running: int = 0
    peak: int = 0
    connections: int = 0
    alive: bool = False

    def __post_init__(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task] = set()

    @property
    def path(self) -> Path:
        return self.folder / f"{self.id}.sock"

    async def start(self) -> "FakeInstance":
        self._server = await asyncio.start_unix_server(self._serve, sock=sockets.listen(self.path))
        self.alive = True
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            while exchange := await self._next(reader, writer):
                self.calls += 1
                self.running += 1
                self.peak = max(self.peak, self.running)
                try:
                    await self.behaviour(exchange)
                finally:
                    self.running -= 1
                if not exchange.keep_alive:
                    break
        except (Gone, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError:
            return None
        method, target, _ = head[0].split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2])]
        return Exchange(self, method, target, headers, reader, writer)

    async def kill(self) -> None:
        """Die as a killed process does: at once, with all connections."""
        if self.alive:
            self.alive = False
            self._server.close()
            self.path.unlink(missing_ok=True)
            for writer in list(self._writers):
                writer.transport.abort()
            others = [task for task in self._tasks if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


async def hello(exchange: Exchange) -> None:
    """Behave."""
    await exchange.body()
    await exchange.reply(200, b"hello", ("Content-Type", "text/plain"))


async def echo(exchange: Exchange) -> None:
    """Stream the body back as it comes."""
    await exchange.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    async for piece in exchange.pieces():
        await exchange.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    await exchange.write(b"0\r\n\r\n")


async def never(exchange: Exchange) -> None:
    """Never answer."""
    await exchange.gone()


async def bad(exchange: Exchange) -> None:
    """Answer with something that is not HTTP."""
    await exchange.write(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n")


async def dies(exchange: Exchange) -> None:
    """Take the request, then die."""
    await exchange.instance.kill()


async def dies_midway(exchange: Exchange) -> None:
    """Send a part of the answer, then die."""
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npartial")
    await exchange.instance.kill()


async def closes_kept_alive(exchange: Exchange) -> None:
    """Promise to keep the connection alive, and close it."""
    await exchange.body()
    await exchange.reply(200, b"hello")
    exchange.keep_alive = False
