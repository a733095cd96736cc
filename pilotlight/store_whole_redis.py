"""A Redis store as a whole (see store_whole.py, and store_redis.py for how it is kept there)."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, Final, Self

from redis import exceptions

from pilotlight import redis_address, redis_client, store_redis, store_redis_scripts
from pilotlight.history_redis import HEAD
from pilotlight.problems import Problem
from pilotlight.redis_client import Script
from pilotlight.store import size_of
from pilotlight.store_redis import CLAIM, SCHEMA, UNFINISHED
from pilotlight.store_whole import Record

_WITHIN: Final = 30.0  # seconds for an answer: nobody else waits for this Redis' store
_PAGE: Final = 32  # entries that are read at a time: documents, the largest ones, have up to a megabyte


class _Whole:
    """What source and target have in common."""

    def __init__(self, url: str, name: str, owner: str) -> None:
        """Connect, and claim the store for `owner` where one is named, until the end. Raises Problem."""
        address = redis_address.parse(url)
        self._where = address.shown
        self._owner = owner
        self._redis = redis_client.connect(address, f"pilotlight-{name}")
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        tag = f"{{pilotlight:{name}}}".encode()
        self._order, self._values = tag + b":order:", tag + b":values:"
        self._sizes, self._spaces = tag + b":sizes", tag + b":spaces"
        self._counter, self._expiring = tag + b":counter", tag + b":expiring"
        self._history = [tag + b":life", tag + b":gaps", tag + b":era"]
        self._owned, self._schema = tag + b":owner", tag + b":schema"
        self._mark = b"{pilotlight:registry}:schema"
        self._claimed = Script(self._redis, store_redis_scripts.CLAIMED)
        self._given_up = Script(self._redis, store_redis_scripts.GIVEN_UP)
        with contextlib.ExitStack() as stack:
            stack.callback(self._disconnect)
            with self._asking():
                server = self._run(self._about(tag))
                redis_client.check_server(server, self._where)
                self._claim()
            stack.pop_all()

    def __enter__(self) -> Self:
        """Have it claimed until the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the claim up, and close the connection. Raises Problem."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._disconnect)
            if self._owner:
                stack.enter_context(self._asking())
                self._run(self._given_up([self._owned], [self._owner]))

    def _disconnect(self) -> None:
        try:
            self._run(self._redis.aclose())
        finally:
            self._runner.close()

    def last(self) -> int:
        """Return the last version that was given out."""
        with self._asking():
            return int(self._command("GET", self._counter) or 0)

    def records(self) -> Iterator[list[Record]]:
        """Yield all records in the order of space and key."""
        with self._asking():
            for order in self._orders():
                space = order.removeprefix(self._order)
                yield from self._records(space)

    def _records(self, space: bytes) -> Iterator[list[Record]]:
        first = b"-"
        while True:
            self._claim()
            keys = self._command("ZRANGEBYLEX", self._order + space, first, "+", "LIMIT", "0", str(_PAGE))
            if not keys:
                return
            packed = self._command("HMGET", self._values + space, *keys)
            yield [_record(space, key, value) for key, value in zip(keys, packed, strict=True)]
            first = b"(" + keys[-1]

    def _orders(self) -> Iterator[bytes]:
        """Yield the names of the sets of keys, one for each space, in order."""
        first = b"-"
        while orders := self._command("ZRANGEBYLEX", self._spaces, first, "+", "LIMIT", "0", "1000"):
            yield from orders
            first = b"(" + orders[-1]

    async def _about(self, key: bytes) -> Any:
        return await self._redis.info("server", **await redis_client.holding(self._redis, key))

    def _command(self, *words: bytes | str) -> Any:
        return self._run(self._redis.execute_command(*words))

    def _run(self, asked: Coroutine[Any, Any, Any]) -> Any:
        """Wait for what Redis is asked, and have nothing of it left where that is cut short."""
        loop = self._runner.get_loop()
        task = loop.create_task(asyncio.wait_for(asked, _WITHIN))
        try:
            return loop.run_until_complete(task)
        except BaseException:
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
            raise

    def _claim(self) -> None:
        if not self._owner:
            return
        if (other := self._run(self._claimed([self._owned], [self._owner, CLAIM]))) is not None:
            raise store_redis.taken(self._where, other)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            late = exceptions.TimeoutError(f"no answer in {_WITHIN:g} s")
            raise redis_client.problem(late, self._where) from error
        except redis_client.FAILURES as error:
            raise redis_client.problem(error, self._where) from error


class RedisSource(_Whole):
    """A store that is read, and that no platform may be using."""

    def __init__(self, url: str, name: str, owner: str) -> None:
        """Open it, and claim it for `owner` where one is named, until the end. Raises Problem."""
        super().__init__(url, name, owner)
        with contextlib.ExitStack() as stack:
            stack.push(self)
            with self._asking():
                if (schema := self._command("GET", self._schema)) is None:
                    raise Problem("not-found", f"There is no store in the Redis at {self._where}.")
                found = store_redis.check_schema(schema, self._where)
                for step in store_redis_scripts.STEPS[found - 1 :]:
                    self._run(Script(self._redis, step)([self._schema, self._sizes, self._spaces], []))
            stack.pop_all()


class RedisTarget(_Whole):
    """A store that is filled."""

    def check_empty(self) -> None:
        """Raise Problem `conflict` where the store holds something, or has done so."""
        with self._asking():
            if self._command("GET", self._mark) == UNFINISHED:
                return
            if (schema := self._command("GET", self._schema)) is not None:
                store_redis.check_schema(schema, self._where)
            if self._command("EXISTS", self._counter, self._sizes):
                raise Problem(
                    "conflict",
                    f"The Redis at {self._where} holds what a platform keeps there. Name another database, "
                    "or empty that one: nothing is overwritten.",
                )

    def clear(self) -> None:
        """Remove all that is in the store, and last what it says of itself."""
        with self._asking():
            for order in self._orders():
                self._claim()
                space = order.removeprefix(self._order)
                self._command("UNLINK", order, self._values + space)
            self._command("UNLINK", self._expiring, self._counter, self._sizes, self._spaces, *self._history)
            self._command("UNLINK", self._schema)

    def begin(self, last: int) -> None:
        """Mark the store as one that is not whole."""
        with self._asking():
            self._command("SET", self._schema, UNFINISHED)
            self._command("SET", self._counter, str(last))

    def put(self, records: list[Record]) -> None:
        """Write records."""
        with self._asking():
            self._claim()
            self._run(self._put(records))

    async def _put(self, records: list[Record]) -> None:
        asked = self._redis.pipeline(transaction=False)
        for record in records:
            space, key = record.space.encode(), record.key.encode()
            order = self._order + space
            asked.zadd(order, {key: 0})
            head = HEAD.pack(record.version, record.expires or 0)
            asked.hset(self._values + space, key, head + record.value)
            asked.hincrby(self._sizes, order, size_of(record.key, record.value))
            asked.zadd(self._spaces, {order: 0})
            if record.expires is not None:
                asked.zadd(self._expiring, {store_redis.mark(order, key): record.expires})
        await asked.execute()

    def finish(self) -> None:
        """Let platforms open it."""
        with self._asking():
            self._claim()
            self._command("SET", self._schema, str(SCHEMA))


def _record(space: bytes, key: bytes, packed: bytes) -> Record:
    version, expires = HEAD.unpack_from(packed)
    return Record(space.decode(), key.decode(), packed[HEAD.size :], version, expires or None)
