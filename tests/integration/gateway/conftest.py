"""A whole gateway on a port of loopback, with a fake function service and fake neighbours."""

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web

from gateway import quick
from gateway.invoke import Calls
from gateway.server import serve
from pilotlight import descriptors, sockets
from pilotlight.datafolder import DataFolder
from pilotlight.problems import KINDS
from pilotlight.settings import Settings
from tests.fakes.function_service import FakeFunctionService

KEY = "the-first-key"


@dataclass
class Raw:
    """An answer as the bytes that came."""

    data: bytes

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]


@dataclass
class Rack:
    """What the tests hold."""

    service: FakeFunctionService
    data: DataFolder
    port: int
    http: aiohttp.ClientSession
    stopping: asyncio.Event
    task: asyncio.Task
    neighbours: dict[str, list] = field(default_factory=dict)

    async def deploy(self, name: str, *arguments, **options) -> None:
        """Deploy, and wait until the gateway knows: it does when it knows a key that came with the table."""
        self.service.deploy(name, *arguments, **options)
        await self.settle()

    async def settle(self) -> None:
        """Wait until the gateway has the present table."""
        marker = f"marker-{len(self.service.keys_by_digest)}"
        self.service.keys_by_digest[hashlib.sha256(marker.encode()).hexdigest()] = marker
        self.service.tell(self.service.table())
        async with asyncio.timeout(10):
            while True:
                headers = {"Authorization": f"Bearer {marker}"}
                async with self.get("/api/v1/openapi.json", headers=headers) as answer:
                    if answer.status == 200:
                        return

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path: str, **options):
        return self.http.get(self.url(path), **options)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw(self, request: bytes) -> Raw:
        """Send bytes, return all that comes until the gateway ends the connection."""
        reader, writer = await self.connect()
        try:
            writer.write(request)
            return Raw(await asyncio.wait_for(reader.read(), 15))
        finally:
            writer.close()

    async def stop(self) -> None:
        self.stopping.set()
        await asyncio.wait_for(self.task, 20)


class Caller:
    """One kept connection of a caller, whose calls of `/function/f` wait for their answers or don't."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, path: str = "/", body: bytes = b"", method: str = "GET", *headers: str) -> None:
        length = [f"Content-Length: {len(body)}"] if body else []
        lines = [f"{method} /function/f{path} HTTP/1.1", "Host: h", *length, *headers]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def receive(self, *, bodiless: bool = False) -> tuple[int, str, bytes]:
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.split(": ", 1) for line in head.lower().split("\r\n")[1:-2])
            body = b""
            if "chunked" in fields.get("transfer-encoding", ""):
                while size := int(await self.reader.readline(), 16):
                    body += await self.reader.readexactly(size)
                    await self.reader.readline()
                await self.reader.readline()
            elif not bodiless:
                body = await self.reader.readexactly(int(fields.get("content-length", 0)))
            return int(head.split()[1]), head, body

    async def call(self, *arguments: str | bytes) -> tuple[int, str, bytes]:
        self.send(*arguments)  # type: ignore[arg-type]
        return await self.receive(bodiless=len(arguments) > 2 and arguments[2] == "HEAD")


async def problem(answer, kind: str) -> dict:
    """Assert that the answer is a problem document of this kind, and return it."""
    document = json.loads(await answer.read())
    assert answer.headers["Pilotlight-Error"] == kind, document
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.status == document["status"] == KINDS[kind][0]
    assert document["type"] == f"urn:pilotlight:problem:{kind}"
    assert document["detail"]
    return document


async def _neighbour(data: DataFolder, name: str, seen: list) -> web.AppRunner:
    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen.append((request.method, request.raw_path, request.headers, body))
        if request.path == "/metrics":
            return web.Response(text=f"# TYPE {name}_metric gauge\n{name}_metric 1\n")
        if request.path.endswith("/changes"):
            feed = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await feed.prepare(request)
            await feed.write(b"id: 1\ndata: {}\n\n")
            await asyncio.Event().wait()
        return web.Response(
            text=f"{name}: {request.method} {request.raw_path} {len(body)}", headers={"ETag": '"1"'}
        )

    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(application, access_log=None, auto_decompress=False, handler_cancellation=True)
    await runner.setup()
    await web.SockSite(runner, sockets.listen(data.socket(name))).start()
    return runner


def pytest_asyncio_loop_factories(config, item):
    """The gateway runs on uvloop; how a connection breaks off looks different on each loop."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """The settings of the gateway; a test may be parametrised with another length of the queue."""
    queue = getattr(request, "param", 1000)
    return Settings(data=tmp_path / "data", port=0, max_body=1 << 20, queue=queue)


@pytest.fixture
async def rack(settings: Settings) -> AsyncIterator[Rack]:
    descriptors.allow_many()  # this process is caller, gateway and instance at once
    data = DataFolder(settings.data)
    data.prepare()
    service = FakeFunctionService(data)
    service.keys_by_digest[hashlib.sha256(KEY.encode()).hexdigest()] = "k1"
    await service.start()
    seen: dict[str, list] = {"baas": [], "builder": []}
    runners = [await _neighbour(data, name, calls) for name, calls in seen.items()]
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    stopping, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve(settings, data, listener=listener, stopping=stopping, ready=ready.set))
    started = asyncio.create_task(ready.wait())
    await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED, timeout=10)
    if task.done():
        task.result()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as http:
        yield Rack(service, data, listener.getsockname()[1], http, stopping, task, seen)
    stopping.set()
    await asyncio.wait_for(task, 20)
    for runner in runners:
        await runner.cleanup()
    await service.close()
    left = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
    assert not [each for each in left if not each.done()], left


@pytest.fixture
def key() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
async def long_way(monkeypatch) -> list[str]:
    """The targets of the calls that went the long way, in order; those handed over end in `(begun)`."""
    seen: list[str] = []
    answer = Calls.answer

    async def noted(self, request, origin, target, begun=None):
        seen.append(target + (" (begun)" if begun is not None else ""))
        return await answer(self, request, origin, target, begun)

    monkeypatch.setattr(Calls, "answer", noted)
    monkeypatch.setattr(quick, "_SOON", 4.0)  # a slow machine must not hand over what it is slow with
    return seen


@pytest.fixture
async def caller(rack: Rack):
    reader, writer = await rack.connect()
    yield Caller(reader, writer)
    writer.close()
