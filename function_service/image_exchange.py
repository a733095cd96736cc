"""Images move between machines as layers do: who lacks one gets it from its registry or from another machine.

An image's id is a digest of all that is in it, so nothing is kept of who has which: the others are asked in
turn, and the engine sees that what comes is the one. What came is a cache with a bound: what was used longest
ago goes first. With the last revision that needs it, it goes in any case (garbage.py).
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final

from function_service.contract import Image
from function_service.engines.base import ImageTransport
from function_service.layers.store import LayerStore
from pilotlight.machines import Link
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

PATH: Final = "/machines/images/"
_CONNECT_WITHIN: Final = 10.0  # seconds
_SILENCE: Final = (
    300.0  # seconds without a byte: dockerd writes all of it to its disk before it gives the first
)
_FETCH_WITHIN: Final = 1800.0  # seconds
_AT_ONCE: Final = 2  # fetches, each of which takes room beside the layers meanwhile
_SHA256: Final = "sha256:"


class ImageExchange:
    """What this machine gives of images, and how it gets others."""

    def __init__(self, transport: ImageTransport, layers: LayerStore, link: Link, most: int) -> None:
        """`layers` has room for what is on its way; `most` is what fetched images may take, in bytes."""
        self._transport = transport
        self._layers = layers
        self._link = link
        self._most = most
        self._used: dict[str, None] = {}  # the ids, the one used longest ago first
        self._wanted: Counter[str] = Counter()  # by those who are about to use one
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self.machines: Callable[[], Collection[str]] = tuple  # the addresses of the others
        self.needed: Callable[[], Collection[str]] = tuple  # the ids that some revision needs

    async def close(self) -> None:
        """Give up what is on its way."""
        fetching = list(self._fetching.values())
        for task in fetching:
            task.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)

    async def has(self, image: str) -> bool:
        """Tell whether an image is here. Raises Problem."""
        return await self._transport.has(image)

    async def read(self, digest: str) -> AsyncGenerator[bytes]:
        """Yield an image for another machine, by the SHA-256 of its id. Raises Problem `not-found`.

        One that no function needs is nobody's business.
        """
        image = _SHA256 + digest
        if image not in self.needed() or not await self._transport.has(image):
            raise Problem("not-found", f"There is no image {digest[:64]} here that a function needs.")
        async with contextlib.aclosing(self._transport.pack(image)) as pieces:
            async for piece in pieces:
                yield piece

    @contextlib.asynccontextmanager
    async def holding(self, image: Image, *, ahead: bool) -> AsyncIterator[None]:
        """Have an image here, and keep it meanwhile; where that is `ahead` of its use, only if there is room.

        Raises Problem.
        """
        self._wanted[image.id] += 1
        self._used.pop(image.id, None)
        self._used[image.id] = None
        try:
            if not await self._transport.has(image.id) and not (ahead and await self._is_full()):
                await self._need(image)
            yield
        finally:
            self._wanted -= Counter([image.id])

    async def _is_full(self) -> bool:
        return sum((await self._transport.fetched()).values()) >= self._most

    async def _need(self, image: Image) -> None:
        """Wait for an image that is not here: many may need the same at once, and the next one does, too."""
        fetching = self._fetching.get(image.id)
        if fetching is None:
            fetching = asyncio.create_task(self._fetch(image), name=f"fetch {image.id}")
            self._fetching[image.id] = fetching
            fetching.add_done_callback(partial(self._fetched, image.id))
        await asyncio.shield(fetching)

    def _fetched(self, image: str, fetching: asyncio.Task[None]) -> None:
        del self._fetching[image]
        if not fetching.cancelled():
            fetching.exception()  # whoever waits is told; it may be that nobody does any more

    async def _fetch(self, image: Image) -> None:
        reasons = []
        async with self._turns:
            ways: list[Callable[[Image], Awaitable[None]]]
            ways = [self._pull] if self._transport.pulls(image) else []
            ways += [partial(self._ask, address) for address in self.machines()]
            for way in ways:
                try:
                    async with asyncio.timeout(_FETCH_WITHIN):
                        await way(image)
                except Problem as problem:
                    reasons.append(problem.detail)
                    continue
                except OSError as error:  # of the disk; or that it took too long
                    reasons.append(f"It could not be taken: {error.strerror or 'it took too long'}.")
                    continue
                await self._shrink()
                return
        why = " ".join(reasons) or "There is no other machine. Push the app again."
        what = f"The image {image.id[:19]} ({image.name})"
        raise Problem("unavailable", f"{what} is not on this machine. {why}", retry_after=1)

    async def _pull(self, image: Image) -> None:
        await self._transport.pull(image)
        _log.info("action=fetch image=%s from=%s", image.id, image.source)

    async def _ask(self, address: str, image: Image) -> None:
        """Fetch an image from one machine. Raises Problem."""
        with self._layers.new() as work:
            archive = work / "image"
            size = await self._download(address, image.id.removeprefix(_SHA256), archive)
            await self._transport.unpack(image.id, archive)
        _log.info("action=fetch image=%s from=%s bytes=%d", image.id, address, size)

    async def _download(self, address: str, digest: str, archive: Path) -> int:
        import aiohttp  # it takes a while to import, and few need it

        timeout = aiohttp.ClientTimeout(connect=_CONNECT_WITHIN, sock_read=_SILENCE, total=None)
        size = 0
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"https://{address}{PATH}{digest}", ssl=self._link.client) as answer,
            ):
                if answer.status != 200:
                    raise Problem("unavailable", f"{address} answers {answer.status}.")
                with archive.open("xb") as file:
                    async for piece in answer.content.iter_chunked(1 << 18):
                        size += len(piece)
                        if size > self._most:
                            raise Problem("unavailable", self._too_large(address))
                        await asyncio.to_thread(file.write, piece)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            detail = f"{address} could not give it: {error or 'no answer in time'}."
            raise Problem("unavailable", detail) from error
        return size

    def _too_large(self, address: str) -> str:
        return f"{address} gives more than {self._most >> 20} MB. Raise --max-fetched-images."

    async def _shrink(self) -> None:
        """Remove what was fetched and used longest ago, as far as there is too much."""
        fetched = await self._transport.fetched()
        order = {image: number for number, image in enumerate(self._used)}  # what is not in there goes first
        for image in sorted(fetched, key=lambda image: order.get(image, -1)):
            if sum(fetched.values()) <= self._most:
                return
            if not self._wanted[image] and await self._transport.drop(image):
                del fetched[image]
                self._used.pop(image, None)
                _log.info("action=drop image=%s", image)
