"""Load on loopback or a Unix socket: one timed call, and many from several connections."""

import asyncio
import contextlib
import ctypes
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

import uvloop

_PR_SET_PDEATHSIG = 1

P = ParamSpec("P")
T = TypeVar("T")

Address = tuple[str, int] | str
"""A host and a port, or the path of a Unix socket."""


def request(path: str) -> bytes:
    """Return a GET request as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


class Headers(dict[str, str]):
    """The headers of an answer; `get` takes their names in any case."""

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        """Return a value."""
        return super().get(name.lower(), default)


class Caller:
    """One kept-alive connection, as a plain client uses it."""

    def __init__(self, address: tuple[str, int], *, key: str | None = None) -> None:
        self._address = address
        self._connect()
        self._key = f"Authorization: Bearer {key}\r\n" if key else ""

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _reconnect_if_closed(self) -> None:
        """Connect anew where the server has closed the connection because nothing came over it."""
        with contextlib.suppress(BlockingIOError):
            if not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                self._socket.close()
                self._connect()

    def call(self, path: str, *, method: str = "GET", body: bytes = b"") -> tuple[float, Headers, int]:
        """Call; return the seconds until the answer was there, its headers, its status."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{self._key}{length}\r\n"
        self._reconnect_if_closed()
        began = time.perf_counter()
        self._socket.sendall(head.encode() + body)
        with self._socket.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            headers = _headers(answer)
            if "chunked" in headers.get("Transfer-Encoding"):
                while size := int(answer.readline(), 16):
                    answer.read(size + 2)
                answer.readline()
            else:
                answer.read(int(headers.get("Content-Length", "0")))
            return time.perf_counter() - began, headers, status

    def cold(self, path: str) -> tuple[float, Headers]:
        """Make a call that finds no instance. Raises RuntimeError where it found one, or failed."""
        took, headers, status = self.call(path)
        if status != 200 or headers.get("Pilotlight-Start") != "cold":
            raise RuntimeError(f"that was no cold start but {status} {headers}")
        return took, headers

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class _Lines(Protocol):
    def readline(self) -> bytes: ...


def _headers(answer: _Lines) -> Headers:
    headers = Headers()
    while line := answer.readline().strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if not headers:
        raise ConnectionError("the connection was broken off")
    return headers


def content_length(head: bytes) -> int:
    """Return the content length that the head of an answer names."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class _Connection(asyncio.Protocol):
    """One connection that asks again as soon as it has the answer, until its time is over."""

    def __init__(self, message: bytes, times: list[float], deadline: float) -> None:
        self._message = message
        self._times = times
        self._deadline = deadline
        self._received = b""
        self._began = 0.0
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are of no class of asyncio's
        self._ask()

    def _ask(self) -> None:
        assert self._transport is not None
        self._began = time.perf_counter()
        if self._began >= self._deadline:
            self._transport.close()
            return
        self._transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < content_length(head):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._received.decode(errors="replace")))
            return
        self._received = b""
        self._times.append(time.perf_counter() - self._began)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            if exc is not None or self._began < self._deadline:
                self.done.set_exception(exc or ConnectionError("the connection was broken off"))
            else:
                self.done.set_result(None)


async def saturate(address: Address, path: str, connections: int, seconds: float) -> list[float]:
    """Call from several connections for some seconds; return how long each call took, in seconds."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    made = []
    for _ in range(connections):
        make = lambda: _Connection(request(path), times, deadline)  # noqa: E731
        if isinstance(address, str):
            _, connection = await loop.create_unix_connection(make, address)
        else:
            _, connection = await loop.create_connection(make, *address)
        made.append(connection)
    await asyncio.gather(*(connection.done for connection in made))
    return times


@dataclass(frozen=True)
class Answer:
    """One call of a burst: seconds from the burst's beginning, and what was said."""

    after: float
    status: int
    cold: bool
    body: str


async def burst(address: tuple[str, int], path: str, count: int) -> list[Answer]:
    """Connect first, then make all calls at once; return the answers in the order in which they came."""
    connections = [await asyncio.open_connection(*address) for _ in range(count)]
    answers: list[Answer] = []
    began = time.perf_counter()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request(path))
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(content_length(head))
        after = time.perf_counter() - began
        cold = b"pilotlight-start: cold" in head.lower()
        answers.append(Answer(after, int(head.split()[1]), cold, body.decode()))

    try:
        async with asyncio.TaskGroup() as group:
            for reader, writer in connections:
                group.create_task(one(reader, writer))
    finally:
        for _, writer in connections:
            writer.close()
    return answers


async def wake(address: tuple[str, int], paths: list[str], connections: int, seconds: float) -> list[bool]:
    """Call path after path in turn, from several connections; return for each call whether it was cold."""
    deadline = time.perf_counter() + seconds
    found: list[bool] = []
    place = 0

    async def worker() -> None:
        nonlocal place
        reader, writer = await asyncio.open_connection(*address)
        try:
            while time.perf_counter() < deadline:
                path = paths[place % len(paths)]
                place += 1
                writer.write(request(path))
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(content_length(head))
                if not head.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError((head + body).decode())
                found.append(b"pilotlight-start: cold" in head.lower())
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(worker())
    return found


class Client:
    """A process of its own from which load comes, so that it shares no interpreter with what measures."""

    def __init__(self, process: ProcessPoolExecutor) -> None:
        self._process = process

    def begin(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin some other load, a function of a module, and return at once."""
        return self._process.submit(work, *args, **kwargs)

    def saturate(self, address: Address, path: str, connections: int, seconds: float) -> list[float]:
        """See the function of that name."""
        return self._process.submit(_saturate, address, path, connections, seconds).result()

    def burst(self, address: tuple[str, int], path: str, count: int) -> list[Answer]:
        """See the function of that name."""
        return self.begin_burst(address, path, count).result()

    def begin_burst(self, address: tuple[str, int], path: str, count: int) -> Future[list[Answer]]:
        """Begin a burst, and return at once."""
        return self._process.submit(_burst, address, path, count)

    def wake(
        self, address: tuple[str, int], paths: list[str], connections: int, seconds: float
    ) -> list[bool]:
        """See the function of that name."""
        return self._process.submit(_wake, address, paths, connections, seconds).result()


@contextlib.contextmanager
def client() -> Iterator[Client]:
    """Run a process for load."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_die_with_parent) as process:
        yield Client(process)


def _die_with_parent() -> None:
    """Have the kernel end this process with the one that measures, also where that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _saturate(address: Address, path: str, connections: int, seconds: float) -> list[float]:
    return uvloop.run(saturate(address, path, connections, seconds))


def _burst(address: tuple[str, int], path: str, count: int) -> list[Answer]:
    return uvloop.run(burst(address, path, count))


def _wake(address: tuple[str, int], paths: list[str], connections: int, seconds: float) -> list[bool]:
    return uvloop.run(wake(address, paths, connections, seconds))
