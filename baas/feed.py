"""The changes of a collection, as server-sent events.

(https://html.spec.whatwg.org/multipage/server-sent-events.html.)
Each reader reads the store's history at its own pace, a batch at a time: a slow one takes no more memory than
others. One that takes nothing for a while is cut off, and goes on later from the last event that it has.
"""

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Final

from aiohttp import web

from baas.metrics import Metrics
from baas.plan import space_of
from baas.request import Feed
from baas.response import shown
from baas.sending import cut_off, piece
from pilotlight.history import Batch, Change, Gone, History, Position
from pilotlight.problems import Problem
from pilotlight.server_name import sign
from pilotlight.store import Entry

_log = logging.getLogger(__name__)

MOST: Final = 256
MOST_OF_APP: Final = 64
"""Readers at a time."""

_BATCH: Final = 100  # changes that are read at a time, and that a reader is behind at least
_HEARTBEAT: Final = 15.0  # seconds without a change after which a reader is told that it is still connected
_PAUSE: Final = 1.0  # seconds until a store that was not available is asked again
_LASTS: Final = 3000.0  # seconds; the gateway breaks off what lasts for an hour
_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would wait for more
}


class Feeds:
    """All that are being read."""

    def __init__(self, history: History, metrics: Metrics) -> None:
        self._history = history
        self._metrics = metrics
        self._readers: Counter[str] = Counter()
        self._news: set[asyncio.Event] = set()
        self._ended = False

    def end(self) -> None:
        """Have all of them end, and no other one begin."""
        self._ended = True
        for news in self._news:
            news.set()

    async def serve(self, http: web.BaseRequest, feed: Feed) -> web.StreamResponse:
        """Answer a reader, until it goes or the feed ends. Raises Problem where it can't begin."""
        space = space_of(feed.app, feed.collection)
        with self._place(feed.app), self._history.watch(space) as news, self._listed(news):
            since = feed.since or await self._history.position()
            try:
                batch = await self._history.changes(space, since, _BATCH)
            except Gone:
                raise _gone(feed.collection) from None
            response = web.StreamResponse(headers=_HEADERS)
            await sign(response).prepare(http)
            try:
                await piece(response, b"retry: 1000\nid: %b\n\n" % str(since).encode())
                await self._follow(response, space, batch, news)
                await response.write_eof()
            except Gone:
                body = json.dumps(_gone(feed.collection).document()).encode()
                await piece(response, b"event: gone\ndata: %b\n\n" % body)
                await response.write_eof()
            except TimeoutError:
                cut_off(http)
            except ConnectionError:
                raise
            except Exception:  # noqa: BLE001  the head is out: the end of the connection is all that can be told
                _log.exception("A feed failed")
                cut_off(http)
        return response

    async def _follow(
        self, response: web.StreamResponse, space: str, batch: Batch, news: asyncio.Event
    ) -> None:
        """Send what there is and what comes. Raises Gone, TimeoutError for a reader that takes nothing."""
        clock = asyncio.get_running_loop().time
        end = clock() + _LASTS
        while True:
            for change in batch.changes:
                await piece(response, _event(batch.position.era, change))
            if self._ended or clock() > end:
                return
            if not batch.changes and not await _heard(news):
                await piece(response, _heartbeat(batch.position))
            news.clear()
            batch = await self._next(response, space, batch.position)

    async def _next(self, response: web.StreamResponse, space: str, after: Position) -> Batch:
        """Read on, also where the store is away for a while. Raises Gone, TimeoutError."""
        while True:
            try:
                return await self._history.changes(space, after, _BATCH)
            except Problem as problem:
                if problem.kind != "unavailable":
                    raise
                if self._ended:
                    return Batch([], after)
                await piece(response, _heartbeat(after))
                await asyncio.sleep(_PAUSE)

    @contextlib.contextmanager
    def _place(self, app: str) -> Iterator[None]:
        """Count a reader. Raises Problem `overloaded` where there are too many, `unavailable` at the end."""
        if self._ended:
            raise Problem("unavailable", "The platform is stopping. Try again in a moment.", retry_after=1)
        for have, most, whose in (
            (self._readers[app], MOST_OF_APP, f"of the app {app!r}"),
            (self._readers.total(), MOST, "of this platform"),
        ):
            if have >= most:
                raise Problem(
                    "overloaded",
                    f"All {most} feeds {whose} are in use. End some, or pass the changes on from one.",
                    retry_after=5,
                )
        self._readers[app] += 1
        self._metrics.feeds.inc()
        try:
            yield
        finally:
            self._metrics.feeds.dec()
            self._readers[app] -= 1
            if not self._readers[app]:
                del self._readers[app]

    @contextlib.contextmanager
    def _listed(self, news: asyncio.Event) -> Iterator[None]:
        self._news.add(news)
        try:
            yield
        finally:
            self._news.discard(news)


async def _heard(news: asyncio.Event) -> bool:
    """Wait for news, and tell whether they came in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_HEARTBEAT):
            await news.wait()
    return news.is_set()


def _heartbeat(position: Position) -> bytes:
    """Return what is no event for a reader, who learns by it from where to go on all the same."""
    return b": nothing new\nid: %b\n\n" % str(position).encode()


def _event(era: str, change: Change) -> bytes:
    if change.value is not None:
        data = shown(Entry(change.key, change.value, change.number, change.expires))
    else:
        members = {"key": change.key, "deleted": True} | ({"expired": True} if change.expired else {})
        data = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()
    return b"id: %b\ndata: %b\n\n" % (str(Position(era, change.number)).encode(), data)


def _gone(collection: str) -> Problem:
    return Problem(
        "gone",
        f"Some changes after this position are no longer kept. Read all of {collection!r} anew, and go on "
        "from the Pilotlight-Position of its first page.",
    )
