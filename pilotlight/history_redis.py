"""The history of a Redis store (see history.py, and history_redis_scripts.py for how it is kept).

Whoever waits for a change, of this process or of another one, is woken by one task which looks now and then:
any number of them costs one short question and no connection, and it goes on when Redis was away.
"""

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from redis.asyncio import Redis, RedisCluster

from pilotlight import history_redis_scripts as scripts
from pilotlight.history import BATCH, Batch, Bounds, Change, LogOf, Position, Watchers, judge
from pilotlight.ids import short_id
from pilotlight.problems import Problem
from pilotlight.redis_client import Script

HEAD: Final = struct.Struct(">qd")  # of a value: version; seconds since the epoch, or 0 for never
_EXAMINED: Final = 200  # changes that one script looks at: those of other spaces are among them
_LOOK_EVERY: Final = 0.1  # seconds


class RedisHistory:
    """What a RedisStore has of a history. `asking` is to surround each call of Redis; `start` comes first."""

    def __init__(
        self,
        redis: Redis | RedisCluster,
        tag: bytes,
        asking: Callable[[], AbstractAsyncContextManager[None]],
        log_of: LogOf,
        bounds: Bounds,
    ) -> None:
        self.log_of = log_of
        self.bounds = (bounds.changes, bounds.bytes, bounds.spaces)
        self._redis = redis
        self._tag = tag
        self._asking = asking
        self.numbers = (tag + b":counter", tag + b":life", tag + b":gaps")
        self._changes = Script(redis, scripts.CHANGES)
        self._latest = Script(redis, scripts.LATEST)
        self._era = ""
        self._watchers = Watchers()
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find out the era, and begin one where there is none. Raises Problem."""
        name = self._tag + b":era"
        async with self._asking():
            found: Any = await self._redis.get(name)
            if found is None:  # one that is full can't be written to
                await self._redis.set(name, short_id(), nx=True)
                found = await self._redis.get(name)
        self._era = bytes(found).decode()

    async def close(self) -> None:
        """End what was begun."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def keys(self, log: str) -> tuple[bytes, bytes]:
        """Return the stream of a log, and the hash about it."""
        return self._tag + b":changes:" + log.encode(), self._tag + b":log:" + log.encode()

    async def position(self) -> Position:
        """Return where the history is now. Raises Problem `unavailable`."""
        async with self._asking():
            return Position(self._era, int(await self._redis.get(self.numbers[0]) or 0))

    async def changes(self, space: str, after: Position, limit: int) -> Batch:
        """Return changes, as `History.changes` does. Raises Gone, Problem `unavailable`."""
        log = self.log_of(space)
        assert log is not None, f"there is no history of {space}"  # noqa: S101
        counter, _, gaps = self.numbers
        names = [*self.keys(log), counter, gaps]
        number = after.number
        while True:
            async with self._asking():
                last, trimmed, found, reached = await self._changes(
                    names, [number, space.encode(), limit, _EXAMINED, BATCH]
                )
            judge(Position(after.era, number), self._era, int(last), int(trimmed))
            number = int(reached)
            if found or number >= int(last):
                return Batch([_change(*each) for each in found], Position(self._era, number))

    @contextlib.contextmanager
    def watch(self, space: str) -> Iterator[asyncio.Event]:
        """Have an event set soon after each change of a space."""
        with self._watchers.watch(space) as event:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(), name="look for changes")
            yield event

    def tell(self, spaces: Iterable[str]) -> None:
        """Wake those who watch a space: it was changed by this process."""
        self._watchers.tell(spaces)

    async def _look(self) -> None:
        """Tell of what changes, as long as somebody wants to know."""
        seen: dict[str, bytes | None] = {}
        while self._watchers:
            spaces = self._watchers.spaces()
            try:
                abouts = [self.keys(self.log_of(space) or "")[1] for space in spaces]
                async with self._asking():
                    found = await self._latest(abouts, [space.encode() for space in spaces])
                now = dict(zip(spaces, found, strict=True))
            except Problem:
                now = {}  # whoever is waiting will ask, and be told
            self._watchers.tell(space for space in spaces if now.get(space) != seen.get(space))
            seen = now
            await asyncio.sleep(_LOOK_EVERY)


def _change(number: bytes, key: bytes, what: bytes, packed: bytes) -> Change:
    if what != b"put":
        return Change(int(number), key.decode(), None, expired=what == b"expired")
    _, expires = HEAD.unpack_from(packed)
    return Change(int(number), key.decode(), packed[HEAD.size :], expires or None)
