"""Calls between services: the methods of a Protocol class, over a Unix socket.

A service's contract is a `typing.Protocol` whose methods are `async def` (one answer) or return an
`AsyncIterator` (a stream of answers). `serve` offers an object that has these methods, `Client.of`
gives back an object that looks just like it. Types come from the annotations; msgspec checks them on both
sides. A frame is a length (4 bytes, big-endian) and a msgpack array. Cancelling a call on one side
cancels it on the other; a Problem raised on one side is raised on the other. Whoever leaves a stream early
goes on when the other side has cleaned up after it.
"""

import asyncio
import collections.abc
import contextlib
import inspect
import logging
import struct
import typing
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec

from pilotlight import sockets
from pilotlight.problems import KINDS, Problem

_log = logging.getLogger(__name__)
_LENGTH = struct.Struct(">I")
_MAX_FRAME = 64 << 20
_LEAVE_WITHIN = 15.0  # seconds that the other side has for cleaning up a stream that is left

CALL, RESULT, ITEM, END, ERROR, CANCEL = range(6)

T = typing.TypeVar("T")

peer: ContextVar["Peer"] = ContextVar("peer")
"""Within a served method: the connection that the call came over."""


class _Frame(msgspec.Struct, array_like=True):
    kind: int
    id: int
    name: str = ""
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class _Failure(msgspec.Struct):
    kind: str
    detail: str
    retry_after: int | None = None
    extra: dict[str, Any] = {}


class _Method:
    """One method of a contract: how its arguments and answers are written."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        hints = typing.get_type_hints(function)
        self.name = name
        self.signature = inspect.signature(function)
        parameters = [p for p in self.signature.parameters if p != "self"]
        self.arguments = msgspec.msgpack.Decoder(tuple[tuple(hints[p] for p in parameters)])  # type: ignore[misc]
        answer = hints["return"]
        self.streams = typing.get_origin(answer) is collections.abc.AsyncIterator
        self.answers = msgspec.msgpack.Decoder(typing.get_args(answer)[0] if self.streams else answer)

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> msgspec.Raw:
        bound = self.signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        return msgspec.Raw(msgspec.msgpack.encode(bound.args[1:]))


def _methods(contract: type) -> dict[str, _Method]:
    return {
        name: _Method(name, function)
        for name, function in inspect.getmembers(contract, inspect.isfunction)
        if not name.startswith("_")
    }


class Peer(asyncio.Protocol):
    """One connection, seen from either end: frames in, frames out, with back-pressure."""

    def __init__(self, received: Callable[["Peer", _Frame], None], lost: Callable[["Peer"], None]) -> None:
        self._received = received
        self._lost = lost
        self._buffer = bytearray()
        self._decoder = msgspec.msgpack.Decoder(_Frame)
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.WriteTransport | None = None
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.on_close: list[Callable[[], None]] = []
        """Called once when the connection is gone: what the other side held can be taken back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = typing.cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Cut the bytes into frames."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > _MAX_FRAME:
                _log.error("A frame of %d bytes was refused", length)
                self.close()
                return
            end = start + 4 + length
            if len(buffer) < end:
                break
            # Raw members refer to the bytes that they were decoded from, so these must not change
            self._received(self, self._decoder.decode(bytes(buffer[start + 4 : end])))
            start = end
        del buffer[:start]

    def send(self, frame: _Frame) -> None:
        """Write a frame; does nothing once the connection is gone."""
        if self._transport is not None and not self._transport.is_closing():
            body = msgspec.msgpack.encode(frame)
            self._transport.write(_LENGTH.pack(len(body)) + body)

    def pause_writing(self) -> None:
        """The other side reads slower than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The other side caught up."""
        self._writable.set()

    async def drain(self) -> None:
        """Wait until the other side has caught up."""
        await self._writable.wait()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell everybody who relied on the connection."""
        self._transport = None
        self._writable.set()
        for task in list(self.tasks.values()):
            task.cancel()
        for callback in self.on_close:
            callback()
        self._lost(self)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


class Server:
    """Offers objects under their contracts on one Unix socket."""

    def __init__(self, path: Path, offers: dict[type, object]) -> None:
        self._path = path
        self._methods = {
            f"{contract.__name__}.{name}": (method, getattr(target, name))
            for contract, target in offers.items()
            for name, method in _methods(contract).items()
        }
        self._server: asyncio.Server | None = None
        self._peers: set[Peer] = set()

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._accept, sock=sockets.listen(self._path))

    def _accept(self) -> Peer:
        connection = Peer(self._received, self._peers.discard)
        self._peers.add(connection)
        return connection

    def _received(self, connection: Peer, frame: _Frame) -> None:
        if frame.kind == CANCEL:
            if task := connection.tasks.get(frame.id):
                task.cancel()
            return
        task = asyncio.get_running_loop().create_task(
            self._answer(connection, frame), name=f"rpc {frame.name}"
        )
        connection.tasks[frame.id] = task
        task.add_done_callback(lambda _: connection.tasks.pop(frame.id, None))

    async def _answer(self, connection: Peer, frame: _Frame) -> None:
        peer.set(connection)
        try:
            if frame.name not in self._methods:
                raise Problem("internal", f"There is no method {frame.name}; the services differ in version.")
            method, target = self._methods[frame.name]
            arguments = method.arguments.decode(frame.body)
            if method.streams:
                stream = target(*arguments)
                async with contextlib.aclosing(stream):
                    async for item in stream:
                        connection.send(_Frame(ITEM, frame.id, "", _raw(item)))
                        await connection.drain()
                connection.send(_Frame(END, frame.id))
            else:
                connection.send(_Frame(RESULT, frame.id, "", _raw(await target(*arguments))))
        except asyncio.CancelledError:
            connection.send(_Frame(END, frame.id))  # so that the caller knows that no answer comes any more
            raise
        except Problem as problem:
            failure = _Failure(problem.kind, problem.detail, problem.retry_after, problem.extra)
            connection.send(_Frame(ERROR, frame.id, "", _raw(failure)))
        except Exception as error:  # noqa: BLE001  the boundary: a fault must reach the log and the caller
            _log.exception("%s failed", frame.name)
            failure = _Failure("internal", f"{frame.name} failed: {type(error).__name__}: {error}")
            connection.send(_Frame(ERROR, frame.id, "", _raw(failure)))

    async def close(self) -> None:
        """Stop listening, cancel what still runs, and wait for it."""
        if self._server is not None:
            self._server.close()
        tasks = [task for connection in self._peers for task in connection.tasks.values()]
        for connection in list(self._peers):
            connection.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


class Client:
    """A connection to a service that is made when needed, and made again when it was lost.

    A call waits up to `patience` seconds for a service that is not there (it may be restarting), then
    raises Problem `unavailable`. A call that was under way when the connection broke raises the same.
    """

    def __init__(self, path: Path, patience: float = 5.0) -> None:
        self._path = path
        self._patience = patience
        self._connection: Peer | None = None
        self._connecting = asyncio.Lock()
        self._waiting: dict[int, asyncio.Queue[_Frame]] = {}
        self._cancelled: dict[int, tuple[str, _Method]] = {}
        self.on_orphan: dict[str, Callable[[Any], None]] = {}
        """By method ("Contract.method"): told an answer that came although its call had been cancelled,
        because the two crossed on the way. What the answer grants must be given back."""
        self._next = 0

    def of(self, contract: type[T]) -> T:
        """Return an object with the methods of contract, each of which is a call to the service."""
        return typing.cast("T", _Proxy(self, contract))

    @property
    def connected(self) -> bool:
        """Whether the service is there, as far as we know."""
        return self._connection is not None

    def hurry(self) -> None:
        """Wait for no service any more that is not there: this process is about to stop."""
        self._patience = 0.0

    async def connect(self) -> Peer:
        """Return the connection, made anew if need be."""
        async with self._connecting:
            if self._connection is not None:
                return self._connection
            loop = asyncio.get_running_loop()
            began = loop.time()
            while True:
                connection = Peer(self._received, self._lost)
                try:
                    await loop.create_unix_connection(lambda: connection, sockets.address(self._path))  # noqa: B023
                except OSError as error:
                    if loop.time() >= began + self._patience:
                        service = self._path.stem
                        raise Problem(
                            "unavailable",
                            f"The {service} service does not answer ({error.strerror or error}). "
                            "It may be restarting; try again in a moment.",
                            retry_after=1,
                        ) from error
                    await asyncio.sleep(0.02)
                else:
                    self._connection = connection
                    return connection

    def _received(self, _connection: Peer, frame: _Frame) -> None:
        if (queue := self._waiting.get(frame.id)) is not None:
            queue.put_nowait(frame)
        elif frame.kind != ITEM and (cancelled := self._cancelled.pop(frame.id, None)) is not None:
            self._orphan(*cancelled, frame)

    def _orphan(self, name: str, method: _Method, frame: _Frame) -> None:
        if frame.kind == RESULT and name in self.on_orphan:
            self.on_orphan[name](method.answers.decode(frame.body))

    def _lost(self, connection: Peer) -> None:
        if self._connection is connection:
            self._connection = None
        self._cancelled.clear()
        failure = _Failure("unavailable", f"The {self._path.stem} service went away during the call.", 1)
        for number, queue in self._waiting.items():
            queue.put_nowait(_Frame(ERROR, number, "", _raw(failure)))

    async def call(self, name: str, method: _Method, body: msgspec.Raw) -> AsyncGenerator[Any, None]:
        """Send one call and yield its answers. Raises Problem."""
        connection = await self.connect()
        self._next += 1
        number = self._next
        queue: asyncio.Queue[_Frame] = asyncio.Queue()
        self._waiting[number] = queue
        ended = False
        try:
            connection.send(_Frame(CALL, number, name, body))
            while True:
                frame = await queue.get()
                if frame.kind in (ITEM, RESULT):
                    ended = frame.kind == RESULT
                    yield method.answers.decode(frame.body)
                    if ended:
                        return
                    continue
                ended = True
                if frame.kind == ERROR:
                    failure = msgspec.msgpack.decode(frame.body, type=_Failure)
                    kind = failure.kind if failure.kind in KINDS else "internal"
                    raise Problem(kind, failure.detail, retry_after=failure.retry_after, **failure.extra)
                return
        finally:
            try:
                if not ended and method.streams:
                    await self._leave(connection, number, name, queue)
                    ended = True
            finally:
                del self._waiting[number]
                if not ended:
                    self._abandon(connection, number, name, method, queue)

    async def _leave(self, connection: Peer, number: int, name: str, queue: asyncio.Queue[_Frame]) -> None:
        """Cancel a stream on the other side, and wait until it has ended there."""
        connection.send(_Frame(CANCEL, number))
        try:
            async with asyncio.timeout(_LEAVE_WITHIN):
                while (await queue.get()).kind == ITEM:
                    pass
        except TimeoutError:
            _log.error("%s was left, and did not end within %g s", name, _LEAVE_WITHIN)

    def _abandon(
        self, connection: Peer, number: int, name: str, method: _Method, queue: asyncio.Queue[_Frame]
    ) -> None:
        """Cancel a call on the other side, unless its end has come already."""
        while not queue.empty():
            frame = queue.get_nowait()
            if frame.kind != ITEM:
                self._orphan(name, method, frame)
                return
        if connection is self._connection:
            self._cancelled[number] = (name, method)
        connection.send(_Frame(CANCEL, number))

    async def close(self) -> None:
        """End the connection; calls under way raise."""
        if self._connection is not None:
            self._connection.close()


class _Proxy:
    def __init__(self, client: Client, contract: type) -> None:
        for name, method in _methods(contract).items():
            setattr(self, name, _bind(client, f"{contract.__name__}.{name}", method))


def _bind(client: Client, name: str, method: _Method) -> Callable[..., Any]:
    def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        return client.call(name, method, method.pack(args, kwargs))

    async def unary(*args: Any, **kwargs: Any) -> Any:
        async with contextlib.aclosing(client.call(name, method, method.pack(args, kwargs))) as answers:
            async for answer in answers:
                return answer
        raise Problem("internal", f"{name} gave no answer")

    return stream if method.streams else unary
