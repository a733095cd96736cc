"""The hand-over of listeners: the function service sends them here, open, from inside of its sandboxes.

Messages on the SOCK_SEQPACKET socket, each one JSON object:

    {"grant": INSTANCE, "kind": "data" | "egress" | "build", "app": …, "function": …, "egress": [host:port …]}
    {"revoke": INSTANCE}
    {"complete": true}

The first carries one descriptor. Whoever connects to a granted listener *is* that function.

When the function service is killed, instances live on for a while, and need what they were granted. So that
stays when its connection ends, until the next service has granted anew what stands and said that this is
complete, or none has come in time. What is granted anew goes on being served as it is.
A message that can't be used is logged and skipped, and its descriptors are closed.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, Protocol, get_args

import msgspec

from pilotlight import sockets

_log = logging.getLogger(__name__)

_LARGEST: Final = 1 << 16
_MOST_DESCRIPTORS: Final = 8  # one is right; more are received so that they can be closed
_PEERS: Final = 16  # one is right; a restarted function service may overlap with its predecessor
_PAUSE: Final = 0.5  # seconds
_ALONE: Final = 40.0  # seconds without a function service after which no instance can be left
_CREDENTIALS: Final = struct.Struct("3i")

Kind = Literal["data", "egress", "build"]


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A listener is handed over."""

    grant: str
    kind: Kind
    app: str
    function: str
    egress: list[str] = []


class Revoke(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An instance has ended; so do all of its listeners."""

    revoke: str


class Complete(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that stands has been granted over this connection."""

    complete: Literal[True]


class Service(Protocol):
    """Something that serves one listener and closes it at the end."""

    async def start(self, listener: socket.socket) -> None:
        """Accept connections."""
        ...

    async def close(self, grace: float) -> None:
        """Stop accepting, wait up to `grace` seconds for what is under way, and break off the rest."""
        ...


class _Granted:
    """A listener that is being served, and the connection that it was granted over, while that is there."""

    def __init__(self, peer: socket.socket | None, grant: Grant, service: Service) -> None:
        self.peer = peer
        self.grant = grant
        self.service = service


class Handover:
    """Receives listeners and serves each with what `make` returns for its grant (ValueError refuses it).

    `changed` is told how many of a kind are served, whenever that changes.
    """

    def __init__(
        self,
        path: Path,
        make: Callable[[Grant], Service],
        changed: Callable[[str, int], None] = lambda _kind, _count: None,
    ) -> None:
        self._path = path
        self._make = make
        self._changed = changed
        self._granted: dict[tuple[str, str], _Granted] = {}
        self._numbers: Counter[str] = Counter()  # of those, by kind
        self._closing: set[asyncio.Task[None]] = set()
        self._current: socket.socket | None = None  # over which all that stands has been granted
        self._alone: asyncio.TimerHandle | None = None  # until then the next function service may come

    async def run(self, ready: Callable[[], None], grace: float) -> None:
        """Serve until cancelled; then requests under way have up to `grace` seconds."""
        listener = sockets.listen(self._path, kind=socket.SOCK_SEQPACKET)
        try:
            async with asyncio.TaskGroup() as peers:
                ready()
                await self._accept(listener, peers)
        finally:
            listener.close()
            self._path.unlink(missing_ok=True)
            if self._alone is not None:
                self._alone.cancel()
            self._close(list(self._granted), grace)
            if self._closing:
                await asyncio.wait(self._closing)

    async def _accept(self, listener: socket.socket, peers: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(_PEERS)
        while True:
            await slots.acquire()
            try:
                peer, _ = await loop.sock_accept(listener)
            except OSError as error:  # such as too many open files: what is served goes on
                _log.error("No connection from the function service can be taken: %s", error)
                slots.release()
                await asyncio.sleep(_PAUSE)
                continue
            if _is_trusted(peer):
                task = peers.create_task(self._serve(peer), name="listeners of the function service")
                task.add_done_callback(lambda _: slots.release())
            else:
                _log.warning("A process of another user tried to hand over listeners; it was turned away")
                peer.close()
                slots.release()

    async def _serve(self, peer: socket.socket) -> None:
        """Take messages until the connection ends."""
        try:
            while (message := await _receive(peer)) is not None:
                content, descriptors = message
                try:
                    await self._handle(peer, content, descriptors)
                except (ValueError, OSError) as error:
                    _log.warning("A listener was not taken over: %s", error)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
        except OSError as error:
            _log.warning("The connection to the function service broke: %s", error)
        except asyncio.CancelledError:
            peer.close()  # its grants stay until `run` closes them, with its grace
            raise
        peer.close()
        self._left(peer)

    def _left(self, peer: socket.socket) -> None:
        """Keep what came over a connection that has ended, unless the next service has had its say."""
        for granted in self._granted.values():
            if granted.peer is peer:
                granted.peer = None
        if self._current is not peer and self._current is not None:
            self._close_orphans()
            return
        self._current = None
        if self._alone is not None:
            self._alone.cancel()
        self._alone = asyncio.get_running_loop().call_later(_ALONE, self._close_orphans)

    def _close_orphans(self) -> None:
        self._close([name for name, granted in self._granted.items() if granted.peer is None], 0)

    async def _handle(self, peer: socket.socket, content: bytes, descriptors: list[int]) -> None:
        """Carry out one message. Descriptors that are taken over are removed from the list.

        Raises ValueError and OSError for what can't be used.
        """
        message = _decode(content)
        if isinstance(message, Revoke):
            names = [(message.revoke, kind) for kind in get_args(Kind)]
            self._close([name for name in names if name in self._granted], 0)
            return
        if isinstance(message, Complete):
            self._current = peer
            self._close_orphans()
            return
        if len(descriptors) != 1:
            raise ValueError(f"{message.grant} came with {len(descriptors)} descriptors, not with one")
        name = (message.grant, message.kind)
        former = self._granted.get(name)
        if former is not None and former.peer is not peer and former.grant == message:
            former.peer = peer
            return
        service = self._make(message)
        self._close([name] if name in self._granted else [], 0)  # the newest one is right
        self._granted[name] = _Granted(peer, message, service)
        self._count(message.kind, 1)
        try:
            await service.start(_listener(descriptors.pop()))
        except (ValueError, OSError):
            self._close([name], 0)
            raise

    def _close(self, names: list[tuple[str, str]], grace: float) -> None:
        """Begin to close services. `run` waits for it, so that no cancellation leaves one half closed."""
        for name in names:
            granted = self._granted.pop(name)
            self._count(granted.grant.kind, -1)
            task = asyncio.get_running_loop().create_task(granted.service.close(grace), name=f"close {name}")
            self._closing.add(task)
            task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("A listener was not closed well", exc_info=error)

    def _count(self, kind: str, more: int) -> None:
        self._numbers[kind] += more
        self._changed(kind, self._numbers[kind])


def _decode(content: bytes) -> Grant | Revoke | Complete:
    """Read a message. Raises ValueError."""
    try:
        named = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        if "revoke" in named:
            return msgspec.json.decode(content, type=Revoke)
        if "complete" in named:
            return msgspec.json.decode(content, type=Complete)
        return msgspec.json.decode(content, type=Grant)
    except msgspec.DecodeError as error:
        raise ValueError(f"the message can't be read: {error}") from error


def _listener(descriptor: int) -> socket.socket:
    """Make a socket of a descriptor, which it owns from now on. Raises ValueError, OSError."""
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise
    try:
        if listener.type != socket.SOCK_STREAM or not listener.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            raise ValueError("the descriptor is not a listening stream socket")
        listener.setblocking(False)
    except (OSError, ValueError):
        listener.close()
        raise
    return listener


def _is_trusted(peer: socket.socket) -> bool:
    """Tell whether root or our own user connected: whoever grants a listener gives out an identity."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(credentials)[1] in (0, os.geteuid())


async def _receive(peer: socket.socket) -> tuple[bytes, list[int]] | None:
    """Return the next message with its descriptors, None at the end. Raises OSError."""
    while True:
        with contextlib.suppress(BlockingIOError):
            content, descriptors, flags, _ = socket.recv_fds(
                peer, _LARGEST, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            truncated = flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
            if content and not truncated:
                return content, descriptors
            for descriptor in descriptors:
                os.close(descriptor)
            if not truncated:
                return None
            _log.warning("A message with a listener was too large; it was skipped")
            continue
        await _readable(peer)


async def _readable(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(peer, wake)
    try:
        await ready
    finally:
        loop.remove_reader(peer)
