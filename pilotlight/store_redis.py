"""The store in Redis, 6.2 or newer (see store.py for what it promises).

Of each space there are two keys, `order` (a sorted set of its keys, for scans) and `values` (a hash; a value
behind its version and its end). What each space takes stands in the hash `sizes`, and the names of the spaces
in order in `spaces`, so that those of one app are found among all. All keys of a store carry one hash tag, so
that a change is one script on one node, whole or not at all
(https://redis.io/docs/latest/develop/programmability/eval-intro/). Time is Redis' own, so that services on
several machines agree on what has expired.
"""

import asyncio
import contextlib
import logging
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Self

from redis import exceptions
from redis.asyncio import Redis, RedisCluster

from pilotlight import redis_address, redis_client
from pilotlight import store_redis_scripts as scripts
from pilotlight.history import BOUNDS, Batch, Bounds, LogOf, Position
from pilotlight.history_redis import HEAD, RedisHistory
from pilotlight.problems import Problem
from pilotlight.redis_address import Address
from pilotlight.redis_client import Script
from pilotlight.store import Conflict, Entry, Write, after_prefix

_log = logging.getLogger(__name__)

_WITHIN: Final = 5.0  # seconds for an answer, and for a free connection before it
_SEE_TO_MASTER: Final = 2.0  # seconds
_SWEEP_BATCH: Final = 500
_EXAMINED: Final = 1000  # keys that one script looks at, so that others need not wait long for Redis
CLAIM: Final = 15  # seconds that a claim lasts beyond the end of who made it

SCHEMA: Final = len(scripts.STEPS) + 1
UNFINISHED: Final = b"unfinished"
"""Stands in the place of the schema while a store is filled with what another one holds."""


class RedisStore:
    """A Store in Redis. Made by `open`."""

    def __init__(
        self,
        redis: Redis | RedisCluster,
        name: str,
        address: Address,
        owner: str,
        shared: bool,
        clock: Callable[[], float] | None,
        sweep_every: float,
        log_of: LogOf,
        bounds: Bounds,
    ) -> None:
        self._redis = redis
        self._free = asyncio.Semaphore(redis_client.CONNECTIONS)
        self._where = address.shown
        self._replicated = address.kind != "server"
        self._owner = owner
        self._shared = shared
        self._tag = f"{{pilotlight:{name}}}".encode()
        self._clock = clock
        self._sweep_every = sweep_every
        self._get = Script(redis, scripts.GET)
        self._scan = Script(redis, scripts.SCAN)
        self._write = Script(redis, scripts.WRITE)
        self._expired = Script(redis, scripts.EXPIRED)
        self._swept = Script(redis, scripts.SWEEP)
        self._claimed = Script(redis, scripts.CLAIMED)
        self._sized = Script(redis, scripts.SIZE)
        self._dropped = Script(redis, scripts.DROP)
        self._given_up = Script(redis, scripts.GIVEN_UP)
        self._history = RedisHistory(redis, self._tag, self._asking, log_of, bounds)
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    @classmethod
    async def open(
        cls,
        url: str,
        name: str,
        *,
        owner: str = "",
        shared: bool = False,
        clock: Callable[[], float] | None = None,
        sweep_every: float = 10.0,
        log_of: LogOf = lambda _space: None,
        bounds: Bounds = BOUNDS,
    ) -> Self:
        """Open the store of that name in the Redis at url (see redis_address.py).

        Where an `owner` is named nobody but that one writes until it is closed: others are refused when they
        open it, and an owner who has lost it meanwhile can't write any more. With `shared`, several processes
        name the same owner, and it stays theirs for a while after one has closed it. `clock` replaces Redis'
        time (seconds since the epoch); `sweep_every` is how often expired entries are deleted, in seconds
        (nobody sees them any more once they have expired); `log_of` and `bounds` say of what there is a
        history, and how much of one (see history.py). Raises Problem `invalid-request` where the url has an
        option that there is not; `unavailable` where Redis is not there, refuses, is too old, or holds what a
        newer version has written; `conflict` where it belongs to another owner.
        """
        address = redis_address.parse(url)
        redis = redis_client.connect(address, f"pilotlight-{name}")
        store = cls(redis, name, address, owner, shared, clock, sweep_every, log_of, bounds)
        try:
            found = await store._check()
            await store._claim()
            await store._migrate(found)
            await store._history.start()
        except BaseException:
            await store._redis.aclose()
            raise
        store._tasks.append(asyncio.create_task(store._sweep_for_ever(), name=f"sweep {name}"))
        if address.kind == "sentinel":
            store._tasks.append(asyncio.create_task(store._keep_to_master(), name=f"master {name}"))
        if owner:
            store._tasks.append(asyncio.create_task(store._claim_for_ever(), name=f"claim {name}"))
        return store

    async def _check(self) -> int:
        """Return the schema that the store is in. Raises Problem."""
        async with self._asking():
            server = await self._redis.info("server", **await redis_client.holding(self._redis, self._tag))
            redis_client.check_server(server, self._where)
            found = await self._redis.get(self._schema)
            if found is None:  # one that is full can't be written to
                await self._redis.set(self._schema, SCHEMA, nx=True)
                found = await self._redis.get(self._schema)
            return check_schema(found, self._where)

    async def _migrate(self, found: int) -> None:
        """Bring what an older version has written to the newest schema, step by step."""
        for step in scripts.STEPS[found - 1 :]:
            async with self._asking():
                await Script(self._redis, step)([self._schema, self._sizes, self._spaces], [])

    async def _claim(self) -> None:
        if not self._owner:
            return
        async with self._asking():
            other = await self._claimed([self._tag + b":owner"], [self._owner, CLAIM])
        if other is not None:
            raise taken(self._where, other)

    async def _claim_for_ever(self) -> None:
        while True:
            await asyncio.sleep(CLAIM / 3)
            try:
                await self._claim()
            except Problem as problem:
                _log.error("%s", problem.detail)

    async def _keep_to_master(self) -> None:
        """Ask the sentinels now and then: a master that is relieved, but lives, may go on for ten seconds."""
        while True:
            await asyncio.sleep(_SEE_TO_MASTER)
            with contextlib.suppress(Problem):  # whoever wants something is told
                async with self._asking():
                    await redis_client.keep_to_master(self._redis)

    async def weakness(self) -> str:
        """Tell why Redis may lose what it has acknowledged; empty where it keeps it."""
        asked = (
            "appendonly",
            "appendfsync",
            "maxmemory-policy",
            "min-replicas-to-write",
            "min-replicas-max-lag",
        )
        try:
            async with self._asking():
                where = await redis_client.holding(self._redis, self._tag)
                found = await self._redis.config_get(*asked, **where)
        except Problem as problem:
            return f"The settings of the Redis at {self._where} can't be read: {problem.detail}"
        if found.get("appendonly") != "yes":
            return f"The Redis at {self._where} keeps no log of what is written (appendonly no)."
        if found.get("maxmemory-policy", "noeviction") != "noeviction":
            return (
                f"The Redis at {self._where} drops what it has no memory for "
                f"(maxmemory-policy {found['maxmemory-policy']})."
            )
        if found.get("appendfsync") != "always":
            return (
                f"The Redis at {self._where} loses up to a second of writes in a power cut "
                f"(appendfsync {found.get('appendfsync')})."
            )
        if not self._replicated:
            return ""
        bound = "nothing bounds how much that is (min-replicas-to-write 0)"
        if found.get("min-replicas-to-write", "0") != "0":
            bound = f"about {found.get('min-replicas-max-lag')} seconds of writes (min-replicas-max-lag)"
        return f"Where another server takes over at {self._where}, what it had not got yet is lost: {bound}."

    async def get(self, space: str, key: str) -> Entry | None:
        """Return the entry, or None where there is none or it has expired. Raises Problem `unavailable`."""
        async with self._asking():
            packed = await self._get([self._values(space)], [self._now(), key.encode()])
        return None if packed is None else _entry(key, packed)

    async def scan(self, space: str, prefix: str = "", after: str = "", limit: int = 100) -> list[Entry]:
        """Return up to `limit` entries whose keys start with prefix and are greater than after, in order.

        Raises Problem `unavailable`.
        """
        first, last = _bounds(b"", prefix)
        if after >= prefix:
            first = b"(" + after.encode()
        names = [self._order(space), self._values(space)]
        entries: list[Entry] = []
        while (wanted := limit - len(entries)) > 0:
            async with self._asking():
                found, resume = await self._scan(names, [self._now(), first, last, wanted, _EXAMINED])
            entries += (
                _entry(key.decode(), packed) for key, packed in zip(found[::2], found[1::2], strict=True)
            )
            if resume is None:
                break
            first = b"(" + resume
        return entries

    async def write(self, writes: Sequence[Write]) -> list[int]:
        """Make all changes or none; return the versions that stand then (ABSENT for deletions).

        How durable that is, Redis' own settings say: see `weakness`. A later write of the same call sees the
        earlier ones. Raises Conflict, and Problem `unavailable`: the changes may have been made all the same
        where the answer was lost.
        """
        if not writes:
            self._check_open()
            return []
        parts = (b":expiring", b":owner", b":sizes", b":spaces")
        names = [*self._history.numbers, *(self._tag + part for part in parts)]
        places: dict[str, int] = {}
        logs: dict[str | None, int] = {None: 0}
        arguments: list[Any] = [self._now(), self._owner, CLAIM, *self._history.bounds]
        for write in writes:
            if write.space not in places:
                places[write.space] = len(names) + 1  # Lua counts from 1
                names += (self._order(write.space), self._values(write.space))
            if (log := self._history.log_of(write.space)) is not None and log not in logs:
                logs[log] = len(names) + 1
                names += self._history.keys(log)
            arguments += (
                places[write.space],
                write.key.encode(),
                write.value or b"",
                "check" if write.check else "delete" if write.value is None else "put",
                "" if write.expect is None else write.expect,
                "" if write.ttl is None else repr(write.ttl),
                "" if write.expires is None else repr(write.expires),
                logs[log],
                write.space.encode(),
            )
        async with self._asking():
            outcome, *rest = await self._write(names, arguments)
        if outcome == b"lost":
            raise taken(self._where, rest[0])
        if outcome == b"conflict":
            raise Conflict(*rest)
        self._history.tell(places)
        return [int(version) for version in rest[0]]

    async def drop(self, space: str) -> None:
        """Delete everything in a space. Raises Problem `unavailable`."""
        async with self._asking():
            names = [self._order(space), self._values(space), self._sizes, self._spaces]
            if (log := self._history.log_of(space)) is not None:
                names += (*self._history.numbers, self._history.keys(log)[1])
            await self._dropped(names, [space.encode()])
        self._history.tell([space])

    async def size(self, prefix: str) -> int:
        """Return what the entries take in all spaces whose names start with prefix, in bytes.

        Raises Problem `unavailable`.
        """
        first, last = _bounds(self._order(""), prefix)
        total = 0
        while True:
            async with self._asking():
                part, resume = await self._sized([self._sizes, self._spaces], [first, last, _EXAMINED])
            total += int(part)
            if resume is None:
                return total
            first = b"(" + resume

    async def position(self) -> Position:
        """Return where the history is now. Raises Problem `unavailable`."""
        return await self._history.position()

    async def changes(self, space: str, after: Position, limit: int = 100) -> Batch:
        """Return changes of a space that come after a position.

        Raises Gone, Problem `unavailable`; see `History.changes`.
        """
        return await self._history.changes(space, after, limit)

    def watch(self, space: str) -> contextlib.AbstractContextManager[asyncio.Event]:
        """Return a context whose event is set soon after each change of a space."""
        return self._history.watch(space)

    async def close(self) -> None:
        """End what was begun, and the connections. Closing twice does nothing."""
        if self._closed:
            return
        await self._history.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            if self._owner and not self._shared:
                async with self._asking():
                    await self._given_up([self._tag + b":owner"], [self._owner])
        except Problem as problem:  # it ends by itself
            _log.warning("%s", problem.detail)
        self._closed = True
        await self._redis.aclose()

    def _now(self) -> str:
        return "" if self._clock is None else repr(self._clock())

    @property
    def _schema(self) -> bytes:
        return self._tag + b":schema"

    @property
    def _sizes(self) -> bytes:
        return self._tag + b":sizes"

    @property
    def _spaces(self) -> bytes:
        return self._tag + b":spaces"

    def _order(self, space: str) -> bytes:
        return self._tag + b":order:" + space.encode()

    def _values(self, space: str) -> bytes:
        return self._tag + b":values:" + space.encode()

    def _check_open(self) -> None:
        if self._closed:
            raise Problem("unavailable", "The store is closed; the platform is stopping.")

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Bound the wait, and turn what goes wrong into words that name the remedy. Raises Problem."""
        self._check_open()
        try:
            async with asyncio.timeout(_WITHIN), self._free:
                yield
        except TimeoutError as error:
            await redis_client.look_again(self._redis)
            late = exceptions.TimeoutError(f"no answer in {_WITHIN:g} s")
            raise redis_client.problem(late, self._where) from error
        except redis_client.FAILURES as error:
            raise redis_client.problem(error, self._where) from error

    async def _sweep_for_ever(self) -> None:
        while True:
            more = False
            try:
                more = await self.sweep()
            except Problem as problem:
                _log.warning("%s", problem.detail)
            await asyncio.sleep(0 if more else self._sweep_every)

    async def sweep(self) -> bool:
        """Delete some expired entries; tell whether there may be more. Raises Problem `unavailable`."""
        expiring = self._tag + b":expiring"
        async with self._asking():
            marks: list[bytes] = await self._expired([expiring], [self._now(), _SWEEP_BATCH])
            by_order: dict[bytes, list[bytes]] = {}
            for mark in marks:
                (length,) = struct.unpack_from(">I", mark)
                by_order.setdefault(mark[4 : 4 + length], []).append(mark)
            for order, its in by_order.items():
                space = order.removeprefix(self._order("")).decode()
                names = [expiring, order, self._values(space), self._sizes, self._spaces]
                if (log := self._history.log_of(space)) is not None:
                    names += (*self._history.numbers, *self._history.keys(log))
                await self._swept(names, [self._now(), *self._history.bounds, space.encode(), *its])
        return len(marks) == _SWEEP_BATCH


def _bounds(head: bytes, prefix: str) -> tuple[bytes, bytes]:
    """Return where what starts with a prefix begins and ends in a sorted set whose members have a head."""
    end = after_prefix(prefix)
    return b"[" + head + prefix.encode(), b"+" if end is None else b"(" + head + end.encode()


def check_schema(found: bytes | str | None, where: str) -> int:
    """Return the schema of what is in a Redis, which may be an older one.

    Raises Problem `unavailable` where it is none that this version knows, or half of a whole.
    """
    if found == UNFINISHED:
        raise Problem(
            "unavailable",
            f"In the Redis at {where} is what an interrupted `pilotlight store migrate` has left. Run that "
            "again, or empty the database.",
        )
    if found is None or not found.isdigit() or not 1 <= int(found) <= SCHEMA:
        raise Problem(
            "unavailable",
            f"What is in the Redis at {where} was written by a newer Pilotlight "
            f"(schema {found!r}; this one knows {SCHEMA}). Use that version again.",
        )
    return int(found)


def taken(where: str, other: bytes) -> Problem:
    """Return the refusal of a store that belongs to somebody else."""
    return Problem(
        "conflict",
        f"The Redis at {where} is in use by another platform ({other.decode(errors='replace')}). "
        f"Stop that one and wait {CLAIM} s, or name another database with --store.",
    )


def mark(order: bytes, key: bytes) -> bytes:
    """Return what stands for an entry in the set of those that expire."""
    return struct.pack(">I", len(order)) + order + key


def _entry(key: str, packed: bytes) -> Entry:
    version, expires = HEAD.unpack_from(packed)
    return Entry(key, packed[HEAD.size :], version, expires or None)
