"""Load that does not wait for its answers: calls at a rate, and one caller who looks on meanwhile.

A caller that asks again when it has its answer slows down with the platform, and so never offers more than
that can do. A crowd does not slow down: it is many, and none of them knows of the others.
"""

import asyncio
import time
from dataclasses import dataclass, field

import uvloop

from benchmarks.load import content_length, request, saturate

_TICK = 0.001  # seconds between two looks at what is due
_MOST = 4000  # connections; beyond, a call is not made, and counted as such
_AHEAD = 200  # connections that are made before the first call
_REST = 30.0  # seconds that calls under way may take when the last one has been sent
_WITHIN = 15.0  # seconds until the caller of `watch` gives up on an answer


@dataclass
class Flooded:
    """What became of the calls of a flood. All times are in seconds."""

    rate: float  # that was wanted
    seconds: float  # from the first call to the last
    sent: int = 0
    unsent: int = 0  # for want of a connection
    in_time: int = 0  # were answered 200 until the last one was sent
    served: list[float] = field(default_factory=list)  # how long each took that was answered 200
    refused: list[float] = field(default_factory=list)  # and those that were answered 429
    others: dict[int, int] = field(default_factory=dict)  # by status, 0 for no answer
    processor: float = 0.0  # that the flood has taken itself
    ended: float = 0.0  # when the last one was sent, of CLOCK_MONOTONIC


class _Crowd:
    """All connections of a flood."""

    def __init__(self, path: str, found: Flooded) -> None:
        self.message = request(path)
        self.found = found
        self.idle: list[_Connection] = []
        self.under_way = 0
        self.ends = time.perf_counter() + found.seconds
        self.quiet = asyncio.Event()

    def count(self, status: int, took: float) -> None:
        """Note an answer."""
        found, now = self.found, time.perf_counter()
        if status == 200:
            found.served.append(took)
            found.in_time += now <= self.ends
        elif status == 429:
            found.refused.append(took)
        else:
            found.others[status] = found.others.get(status, 0) + 1
        self.under_way -= 1
        if not self.under_way:
            self.quiet.set()


class _Connection(asyncio.Protocol):
    """One connection, which makes one call at a time."""

    def __init__(self, crowd: _Crowd) -> None:
        self._crowd = crowd
        self._received = b""
        self._began = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's are of no class of asyncio's

    def ask(self) -> None:
        assert self.transport is not None
        self._began = time.perf_counter()
        self.transport.write(self._crowd.message)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < content_length(head):
            return
        self._received = b""
        took, self._began = time.perf_counter() - self._began, 0.0
        self._crowd.idle.append(self)
        self._crowd.count(int(head[9:12]), took)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.transport = None
        if self._began:
            self._crowd.count(0, time.perf_counter() - self._began)


async def _flood(address: tuple[str, int], path: str, rate: float, seconds: float) -> Flooded:
    loop = asyncio.get_running_loop()
    found = Flooded(rate, seconds)
    crowd = _Crowd(path, found)
    everybody: list[_Connection] = []
    joining: set[asyncio.Task[None]] = set()

    async def join(*, then_ask: bool) -> None:
        try:
            _, connection = await loop.create_connection(lambda: _Connection(crowd), *address)
        except OSError:
            if then_ask:
                crowd.count(0, 0.0)
            return
        everybody.append(connection)
        if then_ask:
            connection.ask()
        else:
            crowd.idle.append(connection)

    for _ in range(_AHEAD):
        await join(then_ask=False)
    spent, began = time.process_time(), time.perf_counter()
    crowd.ends = began + seconds
    while (now := time.perf_counter()) < crowd.ends:
        for _ in range(int((now - began) * rate) - found.sent - found.unsent):
            while crowd.idle and crowd.idle[-1].transport is None:
                crowd.idle.pop()
            if not crowd.idle and len(everybody) + len(joining) >= _MOST:
                found.unsent += 1
                continue
            found.sent += 1
            crowd.under_way += 1
            crowd.quiet.clear()
            if crowd.idle:
                crowd.idle.pop().ask()
            else:
                task = loop.create_task(join(then_ask=True))
                joining.add(task)
                task.add_done_callback(joining.discard)
        await asyncio.sleep(_TICK)
    found.ended = time.monotonic()
    found.processor = time.process_time() - spent
    if crowd.under_way:
        async with asyncio.timeout(_REST):
            await crowd.quiet.wait()
    for connection in everybody:
        if connection.transport is not None:
            connection.transport.close()
    return found


@dataclass(frozen=True)
class Seen:
    """One call of `watch`: when it was made, in seconds of CLOCK_MONOTONIC; how long it took; its status."""

    at: float
    took: float
    status: int


async def _watch(address: tuple[str, int], path: str, every: float, seconds: float) -> list[Seen]:
    seen: list[Seen] = []
    reader, writer = await asyncio.open_connection(*address)
    try:
        ends = time.monotonic() + seconds
        while (now := time.monotonic()) < ends:
            async with asyncio.timeout(_WITHIN):
                writer.write(request(path))
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(content_length(head))
            seen.append(Seen(now, time.monotonic() - now, int(head[9:12])))
            await asyncio.sleep(max(0.0, now + every - time.monotonic()))
    finally:
        writer.close()
    return seen


@dataclass(frozen=True)
class Closed:
    """What callers did who wait for their answers: how long each call took, and their processor time."""

    times: list[float]
    processor: float


async def _closed(address: tuple[str, int], path: str, connections: int, seconds: float) -> Closed:
    spent = time.process_time()
    times = await saturate(address, path, connections, seconds)
    return Closed(times, time.process_time() - spent)


def closed(address: tuple[str, int], path: str, connections: int, seconds: float) -> Closed:
    """Call from several connections, each of which asks again when it has its answer."""
    return uvloop.run(_closed(address, path, connections, seconds))


def flood(address: tuple[str, int], path: str, rate: float, seconds: float) -> Flooded:
    """Make calls at a rate, whatever becomes of them; return when all are answered, some time later."""
    return uvloop.run(_flood(address, path, rate, seconds))


def watch(address: tuple[str, int], path: str, every: float, seconds: float) -> list[Seen]:
    """Call again and again for some seconds, one call at a time, `every` so many seconds."""
    return uvloop.run(_watch(address, path, every, seconds))
