"""What every history promises (pilotlight/history.py), tested on each store that keeps one."""

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from pilotlight import sqlite_file
from pilotlight.history import BATCH, BOUNDS, Bounds, Change, Gone, Position
from pilotlight.ids import short_id
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Conflict, Write
from pilotlight.store_memory import MemoryStore
from pilotlight.store_redis import RedisStore
from pilotlight.store_sqlite import SqliteStore
from pilotlight.stores import FollowedStore
from tests.support.clock import Clock
from tests.support.redis_groups import ask
from tests.support.redis_server import RedisServer, running

Open = Callable[..., Awaitable[FollowedStore]]
SMALL = Bounds(changes=20, bytes=1 << 20, spaces=3)


def log_of(space: str) -> str | None:
    """Return the part before the slash; without one there is no history."""
    return space.partition("/")[0] if "/" in space else None


@pytest.fixture(params=["memory", "sqlite", "redis", "oldest_redis", "sentinels", "cluster"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Open]:
    """What opens one store; but for the one in memory, again and again."""
    name = short_id()
    async with AsyncExitStack() as stack:

        async def open_(bounds: Bounds = BOUNDS) -> FollowedStore:
            how: dict[str, Any] = {"clock": clock, "log_of": log_of, "bounds": bounds}
            store: FollowedStore
            if request.param == "memory":
                store = MemoryStore(**how)
            elif request.param == "sqlite":
                store = await SqliteStore.open(tmp_path / "store.db", sweep_every=0.02, **how)
            else:
                url = request.getfixturevalue(request.param).url()
                store = await RedisStore.open(url, name, sweep_every=0.02, **how)
            stack.push_async_callback(store.close)
            return store

        yield open_


@pytest.fixture
async def store(opened: Open) -> FollowedStore:
    return await opened()


def put(key: str, value: bytes = b"v", *, space: str = "a/s", **more: Any) -> Write:
    return Write(space=space, key=key, value=value, **more)


def delete(key: str, *, space: str = "a/s", **more: Any) -> Write:
    return Write(space=space, key=key, value=None, **more)


async def read(store: FollowedStore, after: Position, space: str = "a/s", limit: int = 100) -> list[Change]:
    """Read all that follows, batch by batch."""
    found: list[Change] = []
    while (batch := await store.changes(space, after, limit)).changes:
        assert len(batch.changes) <= limit
        found += batch.changes
        after = batch.position
    return found


def shown(changes: list[Change]) -> list[tuple[str, bytes | None]]:
    return [(change.key, change.value) for change in changes]


class TestReading:
    async def test_changes_come_in_their_order_with_their_versions(self, store: FollowedStore) -> None:
        start = await store.position()
        [one] = await store.write([put("k", b"1")])
        [two, _] = await store.write([put("l", b"2"), delete("k")])
        [three] = await store.write([put("k", b"3")])
        found = await read(store, start)
        assert shown(found) == [("k", b"1"), ("l", b"2"), ("k", None), ("k", b"3")]
        numbers = [change.number for change in found]
        assert numbers == sorted(set(numbers))
        assert [numbers[0], numbers[1], numbers[3]] == [one, two, three]
        for index, number in enumerate(numbers):
            assert await read(store, Position(start.era, number)) == found[index + 1 :]
        assert (await store.position()).number == numbers[-1]

    async def test_spaces_are_read_apart(self, store: FollowedStore) -> None:
        start = await store.position()
        await store.write([put("1"), put("2", space="a/t"), put("3", space="b/s"), put("4")])
        assert [key for key, _ in shown(await read(store, start))] == ["1", "4"]
        assert [key for key, _ in shown(await read(store, start, "a/t"))] == ["2"]
        assert [key for key, _ in shown(await read(store, start, "b/s"))] == ["3"]
        assert await read(store, start, "b/none") == []

    async def test_what_was_refused_or_only_checked_is_no_change(self, store: FollowedStore) -> None:
        [version] = await store.write([put("k")])
        start = await store.position()
        with pytest.raises(Conflict):
            await store.write([put("a"), delete("k"), put("b", expect=7)])
        assert await store.write([delete("k", check=True, expect=version)]) == [version]
        assert await store.write([delete("none", check=True, expect=ABSENT), delete("none")]) == [ABSENT] * 2
        assert await read(store, start) == []
        assert await store.get("a/s", "k") is not None

    async def test_a_check_that_fails_undoes_all(self, store: FollowedStore) -> None:
        with pytest.raises(Conflict) as conflict:
            await store.write([put("a"), delete("k", check=True, expect=3)])
        assert (conflict.value.index, conflict.value.found) == (1, ABSENT)
        assert await store.get("a/s", "a") is None

    async def test_pages_meet_without_gap_or_overlap(self, store: FollowedStore) -> None:
        start = await store.position()
        await store.write([put(f"{i:03}", space=("a/s", "a/t")[i % 2]) for i in range(700)])
        found = await read(store, start, limit=7)
        assert [change.key for change in found] == [f"{i:03}" for i in range(0, 700, 2)]

    async def test_a_batch_of_large_values_is_short(self, store: FollowedStore) -> None:
        start = await store.position()
        await store.write([put(f"{i}", bytes(BATCH // 2)) for i in range(5)])
        assert len((await store.changes("a/s", start)).changes) == 2
        assert len(await read(store, start)) == 5

    async def test_any_text_and_any_value_comes_back(self, store: FollowedStore) -> None:
        start = await store.position()
        await store.write([put("ü\x00\n", b"\x00\xff"), put("", b"")])
        assert shown(await read(store, start)) == [("ü\x00\n", b"\x00\xff"), ("", b"")]


class TestExpiry:
    async def test_a_write_tells_the_end_and_the_end_is_a_change(
        self, store: FollowedStore, clock: Clock
    ) -> None:
        start = await store.position()
        await store.write([put("k", ttl=5), put("l", ttl=6), put("stays", ttl=100)])
        clock.now += 50
        async with asyncio.timeout(30):
            while len(found := await read(store, start)) < 5:
                await asyncio.sleep(0.01)
        assert [change.expires for change in found] == [1_000_005, 1_000_006, 1_000_100, None, None]
        assert [(c.key, c.value, c.expired) for c in found[3:]] == [("k", None, True), ("l", None, True)]
        await store.write([put("other")])
        assert len(await read(store, start)) == 6  # once only

    async def test_what_takes_the_place_of_an_expired_one_comes_behind_its_end(
        self, opened: Open, clock: Clock
    ) -> None:
        store = await opened()
        start = await store.position()
        await store.write([put("k", b"1", ttl=5), put("l", ttl=5)])
        clock.now += 5
        await store.write([put("k", b"2", expect=ABSENT), delete("l")])
        async with asyncio.timeout(30):
            while len(found := await read(store, start)) < 5:
                await asyncio.sleep(0.01)
        [first, _, *rest] = found
        assert first.value == b"1"
        assert [(c.value, c.expired) for c in rest if c.key == "l"] == [(None, True)]
        of_k = [(c.value, c.expired) for c in rest if c.key == "k"]
        assert of_k == [(None, True), (b"2", False)]


class TestBounds:
    async def test_the_oldest_are_trimmed_and_who_needs_them_is_told(self, opened: Open) -> None:
        store = await opened(SMALL)
        start = await store.position()
        [first] = await store.write([put("0")])
        for i in range(1, 60):
            await store.write([put(f"{i}")])
        for after in (start.number, first):
            with pytest.raises(Gone):
                await store.changes("a/s", Position(start.era, after))
        kept = []
        for number in range((await store.position()).number, first, -1):
            try:
                kept = await read(store, Position(start.era, number))
            except Gone:
                break
        assert 15 <= len(kept) <= 20
        assert [change.key for change in kept] == [f"{i}" for i in range(60 - len(kept), 60)]

    async def test_bytes_count_too(self, opened: Open) -> None:
        store = await opened(Bounds(changes=1000, bytes=100_000))
        start = await store.position()
        await store.write([put("large", bytes(60_000))])
        assert len(await read(store, start)) == 1
        await store.write([put("other", bytes(60_000))])
        with pytest.raises(Gone):
            await read(store, start)

    async def test_a_quiet_space_loses_nothing_to_a_busy_one(self, opened: Open) -> None:
        store = await opened(SMALL)
        await store.write([put("early", space="a/quiet")])
        start = await store.position()
        await store.write([put(f"{i}") for i in range(100)])
        assert await read(store, start, "a/quiet") == []
        await store.write([put("late", space="a/quiet")])
        assert shown(await read(store, start, "a/quiet")) == [("late", b"v")]
        with pytest.raises(Gone):
            await read(store, start)

    async def test_of_many_spaces_none_is_thought_to_be_whole_that_is_not(self, opened: Open) -> None:
        store = await opened(SMALL)
        start = await store.position()
        for i in range(60):
            await store.write([put("k", space=f"a/{i:02}")])
        for i in range(30):
            with pytest.raises(Gone):
                await store.changes(f"a/{i:02}", start)
        await store.write([put("l", space="a/00")])
        end = await store.position()
        assert await read(store, end, "a/00") == []

    async def test_another_log_loses_nothing(self, opened: Open) -> None:
        store = await opened(SMALL)
        start = await store.position()
        await store.write([put("k", space="b/s")])
        await store.write([put(f"{i}") for i in range(100)])
        assert shown(await read(store, start, "b/s")) == [("k", b"v")]

    async def test_a_position_of_the_future_or_of_another_life_is_gone(self, store: FollowedStore) -> None:
        now = await store.position()
        for wrong in (Position(now.era, now.number + 1), Position("0000000000", now.number)):
            with pytest.raises(Gone):
                await store.changes("a/s", wrong)

    async def test_a_dropped_space_is_to_be_read_anew(self, store: FollowedStore) -> None:
        await store.write([put("k"), put("k", space="a/t")])
        start = await store.position()
        await store.drop("a/s")
        with pytest.raises(Gone):
            await store.changes("a/s", start)
        after = await store.position()
        assert await read(store, start, "a/t") == []
        await store.write([put("l")])
        assert shown(await read(store, after)) == [("l", b"v")]


class TestWatching:
    async def test_a_change_wakes_those_of_its_space(self, store: FollowedStore) -> None:
        with store.watch("a/s") as news, store.watch("a/t") as other:
            async with asyncio.timeout(30):
                for write in (put("k"), put("k"), delete("k")):
                    news.clear()
                    start = await store.position()
                    await store.write([write])
                    while not await read(store, start):
                        await news.wait()
                        news.clear()
                await store.write([put("k", space="a/t")])
                await other.wait()
        await store.write([put("k")])

    async def test_what_is_kept_outlasts_the_store_that_was_opened(
        self, opened: Open, request: pytest.FixtureRequest
    ) -> None:
        if request.node.callspec.params["opened"] == "memory":
            return  # it ends with the process
        store = await opened()
        start = await store.position()
        await store.write([put("k", b"1")])
        await store.close()
        again = await opened()
        await again.write([put("k", b"2")])
        assert shown(await read(again, start)) == [("k", b"1"), ("k", b"2")]


async def test_a_closed_store_refuses(store: FollowedStore) -> None:
    start = await store.position()
    await store.close()
    for call in (store.position(), store.changes("a/s", start)):
        with pytest.raises(Problem) as refusal:
            await call
        assert refusal.value.kind == "unavailable"


@pytest.mark.parametrize(
    "text", ["", "12", "abc-1", "0123456789-", "0123456789-01", "0123456789--1", "0123456789-1 "]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a position"):
        Position.parse(text)


def test_a_position_is_read_as_it_is_written() -> None:
    assert str(Position.parse("0123456789-17")) == "0123456789-17"


class TestOnDisk:
    async def test_one_of_an_older_version_begins_an_era_and_keeps_what_it_has(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        store = await SqliteStore.open(path)
        await store.write([put("k")])
        await store.close()
        with sqlite3.connect(path) as old:  # the schema before there was a history
            for statement in (
                "DROP TABLE changes",
                "DROP TABLE trimmed",
                "ALTER TABLE counter DROP COLUMN era",
                "PRAGMA user_version = 2",
            ):
                old.execute(statement)
        old.close()
        store = await SqliteStore.open(path, log_of=log_of)
        start = await store.position()
        assert len(start.era) == 10
        await store.write([put("l")])
        assert shown(await read(store, start)) == [("l", b"v")]
        assert len(await store.scan("a/s")) == 2
        await store.close()

    async def test_in_a_new_era_positions_of_the_former_one_are_gone(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        store = await SqliteStore.open(path, log_of=log_of)
        start = await store.position()
        await store.write([put("k")])
        await store.close()
        sqlite_file.begin_era(path)
        store = await SqliteStore.open(path, log_of=log_of)
        with pytest.raises(Gone):
            await store.changes("a/s", start)
        assert await read(store, Position((await store.position()).era, 0)) == []
        await store.close()

    async def test_spaces_without_a_history_take_no_room_for_one(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "a.db", log_of=log_of)
        await store.write([put("k", space="registry"), put("k", space="registry")])
        await store.close()
        with sqlite3.connect(tmp_path / "a.db") as file:
            assert file.execute("SELECT count(*) FROM changes").fetchone() == (0,)
        file.close()


def life(server: RedisServer) -> str:
    return str(ask(server, "INFO", "replication")["master_replid"])


class TestInRedis:
    async def test_writes_of_several_processes_come_in_one_order_and_wake_all(
        self, redis: RedisServer
    ) -> None:
        name = short_id()
        stores = [await RedisStore.open(redis.url(), name, log_of=log_of) for _ in range(3)]
        start = await stores[0].position()

        async def write(number: int) -> list[int]:
            answered = []
            for i in range(50):
                answered += await stores[number].write([put(f"{number}/{i}")])
            return answered

        async def follow() -> list[int]:
            numbers: list[int] = []
            after = start
            with stores[2].watch("a/s") as news:
                while len(numbers) < 100:
                    news.clear()
                    batch = await stores[2].changes("a/s", after)
                    numbers += [change.number for change in batch.changes]
                    after = batch.position
                    if not batch.changes:
                        await news.wait()
            return numbers

        async with asyncio.timeout(60):
            first, second, followed = await asyncio.gather(write(0), write(1), follow())
        assert followed == sorted(first + second)
        for store in stores:
            await store.close()

    async def test_a_full_one_can_be_emptied_also_where_there_is_a_history(self) -> None:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
            store = await RedisStore.open(server.url(), "a", log_of=log_of)
            await store.write([put("k"), put("l")])
            start = await store.position()
            client = Redis.from_url(server.url())
            await client.config_set("maxmemory", 1)
            with pytest.raises(Problem, match="It is full"):
                await store.write([put("k", b"new")])
            await store.write([delete("k"), delete("l")])
            assert shown(await read(store, start)) == [("k", None), ("l", None)]
            await client.aclose()
            await store.close()

    async def test_who_has_seen_what_redis_has_lost_is_told_and_others_go_on(self) -> None:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), appendonly="no") as server:
            store = await RedisStore.open(server.url(), "a", log_of=log_of)
            start = await store.position()
            await store.write([put("kept")])
            kept = await store.position()
            for lives in range(3):
                ask(server, "SAVE")
                await store.write([put("lost"), delete("lost")])
                lost = await store.position()
                server.kill()
                with pytest.raises(Problem):
                    await store.position()
                server.start(appendonly="no")
                assert await read(store, kept) == []
                with pytest.raises(Gone):
                    await store.changes("a/s", lost)
                await store.write([put(f"{number}") for number in range(5)])
                await store.drop("a/t")
                with pytest.raises(Gone):
                    await store.changes("a/s", lost)
                assert shown(await read(store, kept)) == [(f"{number}", b"v") for number in range(5)]
                assert len(await read(store, start)) == 1 + 5 * (lives + 1)
                kept = await store.position()
            await store.close()

    async def test_who_has_seen_what_was_in_a_redis_that_is_empty_now_is_told(self) -> None:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), appendonly="no") as server:
            store = await RedisStore.open(server.url(), "a", log_of=log_of)
            former = await store.write([put(f"{number}") for number in range(5)])
            lost = await store.position()
            mark = life(server)[:3]
            while life(server)[:3] == mark:  # they are of chance
                server.kill()
                with pytest.raises(Problem):
                    await store.position()
                server.start(appendonly="no")
            start = await store.position()
            assert set(await store.write([put(f"{number}") for number in range(10)])).isdisjoint(former)
            with pytest.raises(Gone):
                await store.changes("a/s", lost)
            assert len(await read(store, start)) == 10
            await store.close()

    async def test_one_of_an_older_version_is_brought_to_one_that_such_a_version_refuses(
        self, redis: RedisServer
    ) -> None:
        name = short_id()
        store = await RedisStore.open(redis.url(), name)
        await store.close()
        client = Redis.from_url(redis.url())
        await client.set(f"{{pilotlight:{name}}}:schema", "2")
        await client.delete(f"{{pilotlight:{name}}}:era")
        again, other = await asyncio.gather(*(RedisStore.open(redis.url(), name) for _ in range(2)))
        assert await client.get(f"{{pilotlight:{name}}}:schema") == b"3"
        assert await again.position() == await other.position()
        await client.aclose()
        await again.close()
        await other.close()
