"""Layers move between machines: who has which stands in the store, with a digest of its bytes.

Each machine fetches those of live functions ahead, so that it needs nobody when it has to start one, and the
others when they are needed: from a machine that has them, over HTTP by way of the gateway there. It checks
the digest, and only then makes a tree of it. Fetched layers are a cache with a bound: what was used longest
ago goes first, as others have it still.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from function_service.contract import Revision
from function_service.layers.archive import pack, unpack
from function_service.layers.store import LayerStore
from pilotlight import trees
from pilotlight.machines import Link, Machine
from pilotlight.problems import Problem
from pilotlight.store import Entry, Store, Write

if TYPE_CHECKING:
    from function_service.image_exchange import ImageExchange

_log = logging.getLogger(__name__)

PATH: Final = "/machines/layers/"
_SPACE: Final = "machines/layers"
_PAGE: Final = 1000
_RETRY: Final = 10.0  # seconds until what could not be fetched ahead is tried again
_SILENCE: Final = 10.0  # seconds without a byte, after which the next machine is asked


class _Copy(Struct, frozen=True):
    """One machine's copy of a layer. The key in the store is DIGEST/ID-OF-THE-MACHINE."""

    address: str
    sha256: str  # of the archive, hexadecimal
    size: int  # of the archive, in bytes
    description: str
    fetched: bool


class Exchange:
    """What this machine has of layers, and how it gets others."""

    def __init__(self, store: Store, layers: LayerStore, here: Machine, link: Link, most: int) -> None:
        """`most` is what fetched layers may take together, in bytes."""
        self._store = store
        self._layers = layers
        self._here = here
        self._link = link
        self._most = most
        self._fetched: dict[str, int] = {}  # digest → size, the one used longest ago first
        self._wanted: Counter[str] = Counter()  # by those who are about to use one
        self._locks: dict[str, asyncio.Lock] = {}
        self._changed = asyncio.Event()
        self.live: Callable[[], Collection[Revision]] = tuple  # whose layers are fetched ahead
        self.in_use: Callable[[], Collection[str]] = tuple  # the digests that are mounted somewhere
        self.images: ImageExchange | None = None  # where the engine has images
        self.on_ready: Callable[[Revision], None] = _nothing  # told of what a live function needs and is here

    def look(self) -> None:
        """Look what is live now."""
        self._changed.set()

    async def run(self) -> None:
        """Tell the others what there is here, then fetch what live functions need, until cancelled."""
        await self.tell()
        while True:
            self._changed.clear()
            # What has an image comes last, as that may take long
            for revision in sorted(self.live(), key=lambda revision: revision.image is not None):
                if sum(self._fetched.values()) >= self._most:
                    break
                try:
                    async with self.holding(revision, ahead=True):
                        if await self._is_whole(revision):
                            self.on_ready(revision)
                except Problem as problem:
                    _log.warning(
                        "action=fetch-ahead-failed revision=%s detail=%r", revision.id, problem.detail
                    )
                    asyncio.get_running_loop().call_later(_RETRY, self._changed.set)
            await self._changed.wait()

    async def _is_whole(self, revision: Revision) -> bool:
        """Tell whether there was room for the image of a revision."""
        if self.images is None or revision.image is None:
            return True
        return await self.images.has(revision.image.id)

    async def tell(self) -> None:
        """Have the store say which layers are here, as they are now."""
        try:
            known: dict[str, _Copy] = {}
            after = ""
            while page := await self._store.scan(_SPACE, after=after, limit=_PAGE):
                after = page[-1].key
                for digest, machine, copy in map(_read, page):
                    if machine != self._here.id:
                        continue
                    if self._layers.has(digest) and copy.address == self._here.address:
                        known[digest] = copy
                    else:
                        await self._withdraw(digest)
            self._fetched |= {digest: copy.size for digest, copy in known.items() if copy.fetched}
            for layer in await asyncio.to_thread(self._layers.all):
                if layer.kind == "code" and layer.digest not in known:
                    await self.offer(layer.digest, layer.description)
        except Problem as problem:
            _log.error("action=tell-layers-failed detail=%r", problem.detail)

    async def offer(self, digest: str, description: str) -> None:
        """Let other machines know that a layer is here. Raises Problem."""
        sha256, size = await asyncio.to_thread(_measure, self._layers.path(digest))
        await self._put(digest, _Copy(self._here.address, sha256, size, description, fetched=False))

    async def _put(self, digest: str, copy: _Copy) -> None:
        value = msgspec.msgpack.encode(copy)
        await self._store.write([Write(space=_SPACE, key=f"{digest}/{self._here.id}", value=value)])

    async def _withdraw(self, digest: str) -> None:
        await self._store.write([Write(space=_SPACE, key=f"{digest}/{self._here.id}", value=None)])

    async def read(self, digest: str) -> AsyncGenerator[bytes]:
        """Yield the archive of a layer. Raises Problem `not-found`."""
        if not self._layers.has(digest):
            raise Problem("not-found", f"There is no layer {digest} here.")
        self._wanted[digest] += 1
        try:
            pieces = pack(self._layers.path(digest))
            while piece := await asyncio.to_thread(next, pieces, b""):
                yield piece
        except OSError as error:
            raise Problem("unavailable", f"The layer {digest} can't be read: {error.strerror}.") from error
        finally:
            self._wanted -= Counter([digest])

    @contextlib.asynccontextmanager
    async def holding(self, revision: Revision, *, ahead: bool = False) -> AsyncIterator[None]:
        """Have the layers and the image of a revision here, and keep them meanwhile. Raises Problem.

        `ahead` of its use there may be no room for the image.
        """
        digests = [digest for digest in (revision.code, revision.dependencies) if digest is not None]
        self._wanted.update(digests)
        try:
            for digest in digests:
                await self._need(digest)
            image: contextlib.AbstractAsyncContextManager[None] = contextlib.nullcontext()
            if self.images is not None and revision.image is not None:
                image = self.images.holding(revision.image, ahead=ahead)
            async with image:
                yield
        finally:
            self._wanted -= Counter(digests)

    async def _need(self, digest: str) -> None:
        if digest in self._fetched:
            self._fetched[digest] = self._fetched.pop(digest)  # to the end
        if self._layers.has(digest):
            return
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:  # many may need the same at once
            if not self._layers.has(digest):
                await self._fetch(digest)
        self._locks.pop(digest, None)

    async def _fetch(self, digest: str) -> None:
        copies = [_read(entry) for entry in await self._store.scan(_SPACE, prefix=f"{digest}/", limit=_PAGE)]
        reasons = []
        for _, machine, copy in copies:
            if machine == self._here.id:
                continue
            try:
                await self._fetch_from(digest, copy)
            except Problem as problem:
                reasons.append(problem.detail)
                continue
            _log.info("action=fetch layer=%s from=%s bytes=%d", digest, copy.address, copy.size)
            self._fetched[digest] = copy.size
            await self._put(digest, msgspec.structs.replace(copy, address=self._here.address, fetched=True))
            await self._shrink()
            return
        why = " ".join(reasons) or "No other machine says that it has it: push the app again."
        raise Problem("unavailable", f"The layer {digest} is not on this machine. {why}", retry_after=1)

    async def _fetch_from(self, digest: str, copy: _Copy) -> None:
        """Fetch a layer from one machine. Raises Problem."""
        import aiohttp  # it takes a while to import, and few need it

        with self._layers.new() as work:
            archive = work / "archive"
            total, size = hashlib.sha256(), 0
            try:
                timeout = aiohttp.ClientTimeout(connect=_SILENCE, sock_read=_SILENCE, total=None)
                async with (
                    aiohttp.ClientSession(timeout=timeout) as session,
                    session.get(f"https://{copy.address}{PATH}{digest}", ssl=self._link.client) as answer,
                ):
                    if answer.status != 200:
                        raise Problem("unavailable", f"{copy.address} answers {answer.status}.")
                    with archive.open("xb") as file:
                        async for piece in answer.content.iter_chunked(1 << 18):
                            size += len(piece)
                            if size > copy.size:
                                break
                            total.update(piece)
                            await asyncio.to_thread(file.write, piece)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                detail = f"{copy.address} could not give it: {error or 'no answer in time'}."
                raise Problem("unavailable", detail) from error
            if total.hexdigest() != copy.sha256:
                raise Problem("unavailable", f"What {copy.address} gave is not what it should be.")
            tree = work / "tree"
            tree.mkdir()
            try:
                await asyncio.to_thread(unpack, archive, tree)
            except OSError as error:
                raise Problem("unavailable", f"The layer could not be stored: {error.strerror}.") from error
            await asyncio.to_thread(self._layers.seal, digest, tree, "code", copy.description)

    async def _shrink(self) -> None:
        """Remove what was fetched and used longest ago, as far as there is too much."""
        for digest, size in list(self._fetched.items()):
            if sum(self._fetched.values()) <= self._most:
                return
            if self._wanted[digest] or digest in self.in_use():
                continue
            del self._fetched[digest]
            if not self._layers.has(digest):
                continue  # it was garbage meanwhile
            _log.info("action=drop layer=%s bytes=%d", digest, size)
            dying = self._layers.withdraw(digest)
            await asyncio.to_thread(trees.remove, dying)
            await self._withdraw(digest)


def _nothing(_: Revision) -> None:
    """Do nothing."""


def _read(entry: Entry) -> tuple[str, str, _Copy]:
    """Return digest, machine and copy of an entry."""
    digest, _, machine = entry.key.partition("/")
    return digest, machine, msgspec.msgpack.decode(entry.value, type=_Copy)


def _measure(folder: Path) -> tuple[str, int]:
    """Return the SHA-256 of a layer's archive, and how long that is."""
    total, size = hashlib.sha256(), 0
    for piece in pack(folder):
        total.update(piece)
        size += len(piece)
    return total.hexdigest(), size
