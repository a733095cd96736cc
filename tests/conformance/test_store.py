"""What every store promises (pilotlight/store.py), tested on each; and what only the one on disk does."""

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from pilotlight import sqlite_file
from pilotlight.ids import short_id
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, PLACE, Conflict, Entry, Store, Write
from pilotlight.store_memory import MemoryStore
from pilotlight.store_redis import RedisStore
from pilotlight.store_sqlite import SqliteStore
from tests.support import redis_groups, redis_server
from tests.support.clock import Clock
from tests.support.platform import free_port
from tests.support.redis_groups import Cluster, Sentinels, ask
from tests.support.redis_server import RedisServer, running


@pytest.fixture(params=["memory", "sqlite", "redis", "oldest_redis", "sentinels", "cluster"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    if request.param == "memory":
        store: Store = MemoryStore(clock=clock)
    elif request.param == "sqlite":
        store = await SqliteStore.open(tmp_path / "store.db", clock=clock)
    else:
        url = request.getfixturevalue(request.param).url()
        store = await RedisStore.open(url, short_id(), clock=clock)
    yield store
    await store.close()


def put(
    key: str, value: bytes = b"v", *, space: str = "s", expect: int | None = None, ttl: float | None = None
) -> Write:
    return Write(space=space, key=key, value=value, expect=expect, ttl=ttl)


def delete(key: str, *, space: str = "s", expect: int | None = None) -> Write:
    return Write(space=space, key=key, value=None, expect=expect)


async def keys(store: Store, **arguments: Any) -> list[str]:
    return [entry.key for entry in await store.scan("s", **arguments)]


class TestGettingAndWriting:
    async def test_what_is_not_there_is_none(self, store: Store) -> None:
        assert await store.get("s", "k") is None

    async def test_what_was_written_is_read_with_its_version(self, store: Store) -> None:
        [version] = await store.write([put("k", b"one")])
        assert version > ABSENT
        assert await store.get("s", "k") == Entry("k", b"one", version)

    async def test_a_second_write_replaces_and_makes_a_greater_version(self, store: Store) -> None:
        [first] = await store.write([put("k", b"one", ttl=5)])
        [second] = await store.write([put("k", b"two")])
        assert second > first
        assert await store.get("s", "k") == Entry("k", b"two", second)

    async def test_a_deletion_answers_absent_and_the_entry_is_gone(self, store: Store) -> None:
        await store.write([put("k")])
        assert await store.write([delete("k")]) == [ABSENT]
        assert await store.get("s", "k") is None

    async def test_deleting_what_is_not_there_is_no_error(self, store: Store) -> None:
        assert await store.write([delete("k")]) == [ABSENT]

    async def test_a_version_is_not_used_again_after_a_deletion(self, store: Store) -> None:
        [first] = await store.write([put("k")])
        await store.write([delete("k")])
        [second] = await store.write([put("k")])
        assert second > first

    async def test_an_empty_value_is_a_value(self, store: Store) -> None:
        await store.write([put("k", b"")])
        entry = await store.get("s", "k")
        assert entry is not None
        assert entry.value == b""

    async def test_no_writes_are_no_error(self, store: Store) -> None:
        assert await store.write([]) == []

    async def test_spaces_do_not_see_each_other(self, store: Store) -> None:
        await store.write(
            [put("k", b"1", space="a"), put("k", b"2", space="ab"), put("k", b"3", space="a/b")]
        )
        assert [entry.value for entry in await store.scan("a")] == [b"1"]

    async def test_dropping_a_space_leaves_the_others(self, store: Store) -> None:
        await store.write([put("k", space="a"), put("l", space="a"), put("k", space="b")])
        await store.drop("a")
        assert await store.scan("a") == []
        assert len(await store.scan("b")) == 1

    @pytest.mark.parametrize("key", ["", "ü/ü", "a\x00b", "😀", "k" * 5000, "%_'\""])
    async def test_any_text_is_a_key(self, store: Store, key: str) -> None:
        await store.write([put(key, b"x"), put(key + "y", b"y")])
        entry = await store.get("s", key)
        assert entry is not None
        assert (entry.key, entry.value) == (key, b"x")

    async def test_half_a_character_is_refused_and_harms_nothing(self, store: Store) -> None:
        with pytest.raises(UnicodeEncodeError):
            await store.write([put("\ud800")])
        with pytest.raises(UnicodeEncodeError):
            await store.get("s", "\ud800")
        await store.write([put("k")])

    async def test_a_large_value_comes_back_whole(self, store: Store) -> None:
        value = os.urandom(2 << 20)
        await store.write([put("k", value)])
        entry = await store.get("s", "k")
        assert entry is not None
        assert entry.value == value

    async def test_a_closed_store_refuses(self, store: Store) -> None:
        await store.close()
        for call in (store.get("s", "k"), store.scan("s"), store.write([put("k")]), store.drop("s")):
            with pytest.raises(Problem) as refusal:
                await call
            assert refusal.value.kind == "unavailable"
        await store.close()


class TestCompareAndSet:
    async def test_absent_creates_once(self, store: Store) -> None:
        [version] = await store.write([put("k", expect=ABSENT)])
        with pytest.raises(Conflict) as conflict:
            await store.write([put("k", expect=ABSENT)])
        assert (conflict.value.index, conflict.value.found) == (0, version)

    async def test_a_version_that_stands_is_replaced_and_an_old_one_is_not(self, store: Store) -> None:
        [first] = await store.write([put("k")])
        [second] = await store.write([put("k", expect=first)])
        with pytest.raises(Conflict) as conflict:
            await store.write([put("k", expect=first)])
        assert conflict.value.found == second

    async def test_a_deletion_can_expect_too(self, store: Store) -> None:
        [version] = await store.write([put("k")])
        with pytest.raises(Conflict):
            await store.write([delete("k", expect=version + 1)])
        await store.write([delete("k", expect=version)])
        with pytest.raises(Conflict) as conflict:
            await store.write([delete("k", expect=version)])
        assert conflict.value.found == ABSENT
        await store.write([delete("k", expect=ABSENT)])

    async def test_one_conflict_undoes_all_and_is_named(self, store: Store) -> None:
        await store.write([put("b", b"old")])
        with pytest.raises(Conflict) as conflict:
            await store.write([put("a"), put("b", b"new"), put("c", expect=77), put("d")])
        assert (conflict.value.index, conflict.value.found) == (2, ABSENT)
        assert [(e.key, e.value) for e in await store.scan("s")] == [("b", b"old")]

    async def test_a_later_write_of_one_call_sees_the_earlier_ones(self, store: Store) -> None:
        versions = await store.write(
            [put("k", b"1", expect=ABSENT), delete("k"), put("k", b"2", expect=ABSENT)]
        )
        entry = await store.get("s", "k")
        assert entry == Entry("k", b"2", versions[2])

    async def test_of_many_who_race_for_a_version_one_wins(self, store: Store) -> None:
        async def create(name: int) -> bool:
            try:
                await store.write([put("k", str(name).encode(), expect=ABSENT)])
            except Conflict:
                return False
            return True

        won = await asyncio.gather(*(create(name) for name in range(50)))
        assert won.count(True) == 1
        entry = await store.get("s", "k")
        assert entry is not None
        assert int(entry.value) == won.index(True)

    async def test_no_increment_of_a_compare_and_set_loop_is_lost(self, store: Store) -> None:
        async def increment() -> None:
            while True:
                entry = await store.get("s", "n")
                value, version = (int(entry.value), entry.version) if entry else (0, ABSENT)
                try:
                    await store.write([put("n", str(value + 1).encode(), expect=version)])
                except Conflict:
                    continue
                return

        await asyncio.gather(*(increment() for _ in range(30)))
        entry = await store.get("s", "n")
        assert entry is not None
        assert entry.value == b"30"

    async def test_concurrent_writes_each_get_a_version_of_their_own(self, store: Store) -> None:
        answers = await asyncio.gather(*(store.write([put(f"{i}"), put(f"{i}b")]) for i in range(300)))
        versions = [version for answer in answers for version in answer]
        assert len(set(versions)) == 600
        assert {e.version for e in await store.scan("s", limit=1000)} == set(versions)


class TestScanning:
    async def test_keys_come_in_the_order_of_their_characters(self, store: Store) -> None:
        names = ["b", "a", "B", "a/b", "aa", "é", "z", "\uffff", "😀", ""]
        await store.write([put(name) for name in names])
        # `after` is exclusive, so the empty key is only seen by get
        assert await keys(store) == sorted(name for name in names if name)

    async def test_a_prefix_bounds_on_both_sides(self, store: Store) -> None:
        await store.write([put(name) for name in ["a", "ab", "ab/1", "abc", "ac", "b"]])
        assert await keys(store, prefix="ab") == ["ab", "ab/1", "abc"]

    @pytest.mark.parametrize("prefix", ["\U0010ffff", "a\U0010ffff", "\ud7ff", "%", "_"])
    async def test_a_prefix_is_plain_text_at_the_edges_of_unicode_too(
        self, store: Store, prefix: str
    ) -> None:
        inside = [prefix, prefix + "b", prefix + "\U0010ffff"]
        await store.write([put(key) for key in [*inside, "A", "b", "\ue000", "\U0010fffe"]])
        assert await keys(store, prefix=prefix) == inside

    async def test_pages_meet_without_gap_or_overlap(self, store: Store) -> None:
        await store.write([put(f"{i:03}") for i in range(25)])
        seen: list[str] = []
        while page := await keys(store, after=seen[-1] if seen else "", limit=7):
            seen += page
        assert seen == [f"{i:03}" for i in range(25)]

    async def test_after_may_name_what_is_not_there(self, store: Store) -> None:
        await store.write([put("a"), put("c")])
        assert await keys(store, after="b") == ["c"]
        assert await keys(store, prefix="c", after="a") == ["c"]
        assert await keys(store, prefix="a", after="b") == []

    @pytest.mark.parametrize("limit", [0, -1])
    async def test_a_limit_below_one_gives_nothing(self, store: Store, limit: int) -> None:
        await store.write([put("a")])
        assert await keys(store, limit=limit) == []


class TestSize:
    async def test_entries_count_for_key_value_and_place(self, store: Store) -> None:
        assert await store.size("") == 0
        await store.write([put("ü", b"four", space="a/x"), put("k", b"", space="a/y"), put("k", space="b")])
        assert await store.size("a/") == (2 + 4 + PLACE) + (1 + PLACE)
        assert await store.size("a/x") == 6 + PLACE
        assert await store.size("") == await store.size("a/") + await store.size("b")
        assert await store.size("c") == 0

    async def test_replacing_deleting_and_dropping_give_back(self, store: Store) -> None:
        await store.write([put("k", b"x" * 1000), put("l", b"y" * 10), put("k", space="t")])
        await store.write([put("k", b"z")])
        assert await store.size("s") == (1 + 1 + PLACE) + (1 + 10 + PLACE)
        await store.write([delete("k"), delete("not there"), put("l", b""), put("l", b"two")])
        assert await store.size("s") == 1 + 3 + PLACE
        await store.drop("s")
        assert await store.size("s") == 0
        assert await store.size("t") == 2 + PLACE

    async def test_what_was_refused_takes_nothing(self, store: Store) -> None:
        await store.write([put("k")])
        with pytest.raises(Conflict):
            await store.write([put("l", b"x" * 100), put("k", expect=ABSENT)])
        assert await store.size("s") == 2 + PLACE

    async def test_a_replaced_entry_that_had_expired_counts_once(self, store: Store, clock: Clock) -> None:
        await store.write([put("k", b"x" * 100, ttl=1)])
        clock.now += 2
        await store.write([put("k", b"yy", expect=ABSENT)])
        assert await store.size("s") == 3 + PLACE


class TestExpiry:
    async def test_an_entry_tells_when_it_expires(self, store: Store, clock: Clock) -> None:
        await store.write([put("k", ttl=5)])
        entry = await store.get("s", "k")
        assert entry is not None
        assert entry.expires == clock.now + 5

    async def test_an_expired_entry_is_gone_at_once(self, store: Store, clock: Clock) -> None:
        await store.write([put("k", ttl=5), put("l")])
        clock.now += 4.9
        assert await keys(store) == ["k", "l"]
        clock.now += 0.1
        assert await store.get("s", "k") is None
        assert await keys(store) == ["l"]

    async def test_expired_entries_do_not_use_up_the_limit(self, store: Store, clock: Clock) -> None:
        await store.write([put("a", ttl=1), put("b", ttl=1), put("c"), put("d")])
        clock.now += 2
        assert await keys(store, limit=2) == ["c", "d"]

    async def test_an_expired_entry_counts_as_absent(self, store: Store, clock: Clock) -> None:
        [version] = await store.write([put("k", ttl=5)])
        clock.now += 5
        with pytest.raises(Conflict) as conflict:
            await store.write([put("k", expect=version)])
        assert conflict.value.found == ABSENT
        await store.write([put("k", expect=ABSENT)])

    async def test_writing_without_a_ttl_ends_it(self, store: Store, clock: Clock) -> None:
        await store.write([put("k", ttl=5)])
        await store.write([put("k")])
        clock.now += 100
        assert await store.get("s", "k") is not None

    async def test_what_is_to_end_at_a_moment_ends_then_whenever_it_is_written(
        self, store: Store, clock: Clock
    ) -> None:
        await store.write([put("k", ttl=5)])
        clock.now += 3
        before = await store.get("s", "k")
        assert before is not None
        await store.write([Write(space="s", key="k", value=b"changed", expires=before.expires)])
        entry = await store.get("s", "k")
        assert entry is not None
        assert (entry.value, entry.expires) == (b"changed", before.expires)
        clock.now += 2
        assert await store.get("s", "k") is None


NAMES = st.text(alphabet="ab\x00é/\U0010ffff", max_size=3)
SPACES = st.sampled_from(["s", "t"])
ONE_WRITE = st.tuples(
    SPACES,
    NAMES,
    st.none() | st.binary(max_size=4),
    st.sampled_from(["any", "any", "absent", "current", "stale"]),
    st.none() | st.sampled_from([1.0, 10.0]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(ONE_WRITE, max_size=4)),
        st.tuples(st.just("scan"), SPACES, NAMES, NAMES, st.integers(0, 5)),
        st.tuples(st.just("get"), SPACES, NAMES),
        st.tuples(st.just("drop"), SPACES),
        st.tuples(st.just("pass"), st.sampled_from([0.5, 2.0, 20.0])),
        st.tuples(st.just("reopen")),
    ),
    max_size=20,
)


class Pair:
    """A store that lasts beside one in memory; every call is made on both and must end alike."""

    def __init__(self, reopen: Callable[[Clock], Awaitable[Store]]) -> None:
        self.reopen = reopen
        self.clock = Clock()
        self.memory = MemoryStore(clock=self.clock)

    async def open(self) -> None:
        self.disk = await self.reopen(self.clock)

    async def both(self, call: Callable[[Store], Awaitable[object]]) -> list[Any]:
        outcomes: list[Any] = []
        for store in (self.memory, self.disk):
            try:
                outcomes.append(await call(store))
            except Conflict as conflict:
                outcomes.append(("conflict", conflict.index, conflict.found))
        return outcomes

    async def run(self, steps: list[Any]) -> None:
        # Versions differ where a failed call used some up, so each store is told its own
        for step in steps:
            match step:
                case ("write", wanted):
                    await self.write(wanted)
                case ("scan", space, prefix, after, limit):
                    left, right = await self.both(lambda s: s.scan(space, prefix, after, limit))
                    assert [(e.key, e.value, e.expires) for e in left] == [
                        (e.key, e.value, e.expires) for e in right
                    ]
                case ("get", space, key):
                    left, right = await self.both(lambda s: s.get(space, key))
                    assert (left and (left.value, left.expires)) == (right and (right.value, right.expires))
                case ("drop", space):
                    await self.both(lambda s: s.drop(space))
                case ("pass", seconds):
                    self.clock.now += seconds
                case ("reopen",):
                    await self.disk.close()
                    await self.open()

    async def write(self, wanted: list[tuple[str, str, bytes | None, str, float | None]]) -> None:
        outcomes: list[Any] = []
        for store in (self.memory, self.disk):
            writes = []
            for space, key, value, expect, ttl in wanted:
                entry = await store.get(space, key)
                current = entry.version if entry else ABSENT
                expected = {"any": None, "absent": ABSENT, "current": current, "stale": current + 1_000_000}[
                    expect
                ]
                writes.append(Write(space=space, key=key, value=value, expect=expected, ttl=ttl))
            try:
                versions = await store.write(writes)
                outcomes.append([version > ABSENT for version in versions])
                assert len({v for v in versions if v}) == sum(1 for v in versions if v)
            except Conflict as conflict:
                outcomes.append((conflict.index, conflict.found > ABSENT))
        assert outcomes[0] == outcomes[1]


async def compare(reopen: Callable[[Clock], Awaitable[Store]], steps: list[Any]) -> None:
    pair = Pair(reopen)
    await pair.open()
    try:
        await pair.run(steps)
    finally:
        await pair.disk.close()


@settings(max_examples=60)
@given(steps=STEPS)
def test_the_store_on_disk_behaves_as_the_one_in_memory(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        asyncio.run(compare(lambda clock: SqliteStore.open(path, clock=clock), steps))


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_the_store_in_redis_behaves_as_the_one_in_memory(redis: RedisServer, steps: list[Any]) -> None:
    name = short_id()
    asyncio.run(compare(lambda clock: RedisStore.open(redis.url(), name, clock=clock), steps))


class TestOnDisk:
    """What only the store in a file promises."""

    async def test_everything_is_there_after_reopening(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "a.db")
        [version] = await store.write([put("k", b"v", ttl=1000)])
        await store.write([put("gone")])
        [last] = await store.write([put("gone")])
        await store.write([delete("gone")])
        entry = await store.get("s", "k")
        await store.close()
        store = await SqliteStore.open(tmp_path / "a.db")
        assert await store.get("s", "k") == entry
        assert entry is not None
        assert entry.version == version
        assert (await store.write([put("new")]))[0] > last
        await store.close()

    async def test_closing_leaves_one_file_that_its_owner_alone_can_read(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "a.db")
        await store.write([put("k")])
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
        await store.close()
        assert [path.name for path in tmp_path.iterdir()] == ["a.db"]

    async def test_closing_ends_every_thread(self, tmp_path: Path) -> None:
        before = set(threading.enumerate())
        store = await SqliteStore.open(tmp_path / "a.db")
        await asyncio.gather(store.write([put("k")]), store.get("s", "k"), store.scan("s"))
        await store.close()
        left = {thread for thread in set(threading.enumerate()) - before if "a.db" in thread.name}
        assert not left

    async def test_writes_that_are_queued_when_it_closes_are_made(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "a.db")
        queued = [asyncio.create_task(store.write([put(f"{i}")])) for i in range(100)]
        await asyncio.sleep(0)  # each task has run up to its wait
        await store.close()
        await asyncio.gather(*queued)
        store = await SqliteStore.open(tmp_path / "a.db")
        assert len(await store.scan("s", limit=1000)) == 100
        await store.close()

    async def test_readers_do_not_wait_for_a_long_write(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "a.db")
        await store.write([put("k", b"before")])
        other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # holds the lock of writers
        waiting = asyncio.create_task(store.write([put("k", b"after")]))
        for _ in range(5):
            entry = await asyncio.wait_for(store.get("s", "k"), 2)
            assert entry is not None
            assert entry.value == b"before"
        assert not waiting.done()
        other.execute("ROLLBACK")
        other.close()
        await waiting
        await store.close()

    async def test_a_cancelled_caller_leaves_the_store_usable(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "a.db")
        tasks = [asyncio.create_task(store.write([put("k", b"%d" % i)])) for i in range(100)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        [version] = await store.write([put("k", b"last")])
        assert await store.get("s", "k") == Entry("k", b"last", version)
        await store.close()

    async def test_expired_entries_leave_the_file_in_time(self, tmp_path: Path) -> None:
        clock = Clock()
        store = await SqliteStore.open(tmp_path / "a.db", clock=clock, sweep_every=0.01)
        await store.write([put(f"{i}", ttl=1) for i in range(1200)] + [put("stays", ttl=100)])
        clock.now += 2
        other = sqlite3.connect(tmp_path / "a.db")
        async with asyncio.timeout(10):
            while other.execute("SELECT count(*) FROM entries").fetchone()[0] != 1:
                await asyncio.sleep(0.01)
        other.close()
        await store.close()

    async def test_a_full_disk_is_told_and_survived(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "a.db")
        await store.write([put("k", b"kept")])
        store._writer._connection.execute("PRAGMA max_page_count = 20")
        with pytest.raises(Problem, match="disk is full") as refusal:
            await store.write([put("k", os.urandom(1 << 20))])
        assert refusal.value.kind == "unavailable"
        store._writer._connection.execute("PRAGMA max_page_count = 100000")
        entry = await store.get("s", "k")
        assert entry is not None
        assert entry.value == b"kept"
        assert (await store.write([put("k", b"new", expect=entry.version)]))[0] > entry.version
        await store.close()

    async def test_a_file_that_is_no_database_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.db").write_bytes(b"no database at all" * 100)
        with pytest.raises(Problem, match="no database") as refusal:
            await SqliteStore.open(tmp_path / "a.db")
        assert refusal.value.kind == "unavailable"

    async def test_a_damaged_file_is_told_when_it_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        store = await SqliteStore.open(path)
        await store.write([put(f"{i:04}", os.urandom(500)) for i in range(500)])
        await store.close()
        with path.open("r+b") as file:
            file.seek(40960)
            file.write(os.urandom(path.stat().st_size - 40960))
        store = await SqliteStore.open(path)
        with pytest.raises(Problem, match="damaged"):
            await store.scan("s", limit=1000)
        await store.close()

    async def test_the_database_of_another_program_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        other = sqlite3.connect(tmp_path / "a.db")
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
        other.close()
        with pytest.raises(Problem, match="another program"):
            await SqliteStore.open(tmp_path / "a.db")

    async def test_a_file_of_a_newer_version_is_refused(self, tmp_path: Path) -> None:
        await (await SqliteStore.open(tmp_path / "a.db")).close()
        other = sqlite3.connect(tmp_path / "a.db")
        other.execute("PRAGMA user_version = 99")
        other.close()
        with pytest.raises(Problem, match="newer Pilotlight"):
            await SqliteStore.open(tmp_path / "a.db")

    async def test_what_an_older_version_has_written_is_brought_up_to_date_whole_or_not_at_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, newest = tmp_path / "a.db", sqlite_file._SCHEMA
        monkeypatch.setattr(sqlite_file, "_SCHEMA", newest[:1])
        sqlite_file.make(path)
        with contextlib.closing(sqlite_file.connect(path)) as old:
            old.execute("INSERT INTO entries VALUES ('s', 'k', x'0102', 7, NULL)")
            old.execute("UPDATE counter SET last = 7")
        whole = path.read_bytes()
        monkeypatch.setattr(sqlite_file, "_SCHEMA", (*newest, ("CREATE TABLE more (a)", "NO SQL AT ALL")))
        with pytest.raises(Problem):
            await SqliteStore.open(path)
        assert path.read_bytes() == whole
        monkeypatch.setattr(sqlite_file, "_SCHEMA", newest)
        store = await SqliteStore.open(path)
        assert await store.get("s", "k") == Entry("k", b"\1\2", 7)
        assert await store.size("s") == PLACE + 3
        assert await store.write([put("k")]) == [8]
        await store.close()

    async def test_a_folder_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(Problem, match="can't be made"):
            await SqliteStore.open(tmp_path / "none" / "a.db")

    @pytest.mark.parametrize("left", [("a.db.new",), ("a.db.new", "a.db.new-wal", "a.db.new-shm")])
    async def test_an_opening_that_was_interrupted_is_completed_by_the_next(
        self, tmp_path: Path, left: tuple[str, ...]
    ) -> None:
        for name in left:  # what a kill during the first start leaves
            (tmp_path / name).write_bytes(b"half of something")
        store = await SqliteStore.open(tmp_path / "a.db")
        await store.write([put("k")])
        await store.close()
        assert [path.name for path in tmp_path.iterdir()] == ["a.db"]

    @pytest.mark.parametrize("damage", ["cut to nothing", "cut in half", "its head overwritten"])
    async def test_a_file_that_was_damaged_is_refused_named_and_left_alone(
        self, tmp_path: Path, damage: str
    ) -> None:
        path = tmp_path / "a.db"
        store = await SqliteStore.open(path)
        await store.write([put(f"{i:04}", os.urandom(500)) for i in range(500)])
        await store.close()
        whole = path.read_bytes()
        kept = {
            "cut to nothing": b"",
            "cut in half": whole[: len(whole) // 2],
            "its head overwritten": bytes(4096) + whole[4096:],
        }[damage]
        path.write_bytes(kept)
        with pytest.raises(Problem, match=r"Restore a copy of it, or move it away") as refusal:
            await SqliteStore.open(path)
        assert refusal.value.kind == "unavailable"
        assert str(path) in refusal.value.detail
        assert path.read_bytes() == kept

    async def test_a_file_that_is_missing_while_its_log_is_there_is_not_made_anew(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "a.db"
        store = await SqliteStore.open(path)
        await store.write([put("k")])
        shutil.copy(tmp_path / "a.db-wal", tmp_path / "kept")
        await store.close()
        path.unlink()
        (tmp_path / "kept").rename(tmp_path / "a.db-wal")
        with pytest.raises(Problem, match=r"is missing, while a\.db-wal"):
            await SqliteStore.open(path)
        assert not path.exists()

    async def test_a_write_that_was_torn_is_there_as_a_whole_or_not_at_all(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "a.db")
        ends = []  # how long the log was when each write was answered
        for number in range(6):
            await store.write([put(f"{number}/{part}", os.urandom(3000)) for part in range(3)])
            ends.append((tmp_path / "a.db-wal").stat().st_size)
        copy = tmp_path / "copy"
        for cut in range(0, ends[-1] + 1, 1371):  # as a power cut in the midst of writing leaves it
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            shutil.copy(tmp_path / "a.db", copy)
            (copy / "a.db-wal").write_bytes((tmp_path / "a.db-wal").read_bytes()[:cut])
            torn = await SqliteStore.open(copy / "a.db")
            found = [entry.key for entry in await torn.scan("s")]
            whole = sum(end <= cut for end in ends)
            assert found == [f"{number}/{part}" for number in range(whole) for part in range(3)], cut
            await torn.write([put("9")])
            await torn.close()
        await store.close()

    async def test_every_answered_write_survives_kill_9(self, tmp_path: Path) -> None:
        program = """
import asyncio, sys
from pathlib import Path
from typing import Any
from pilotlight.store import Write
from pilotlight.store_sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    async def worker(name):
        for i in range(1_000_000):
            await store.write([Write(space="s", key=f"{name}/{i:06}", value=b"x" * 100),
                               Write(space="s", key=f"{name}/last", value=b"%d" % i)])
            print(f"{name}/{i:06}", flush=True)
    await asyncio.gather(*(worker(n) for n in range(4)))

asyncio.run(main())
"""
        path = tmp_path / "a.db"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(path), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        answered = [
            (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip() for _ in range(400)
        ]
        process.send_signal(signal.SIGKILL)
        rest = (await process.stdout.read()).decode().splitlines(keepends=True)
        await process.wait()
        answered += [line.strip() for line in rest if line.endswith("\n")]

        shutil.copytree(tmp_path, tmp_path / "copy")  # what a power cut would leave opens as well
        for copy in (path, tmp_path / "copy" / "a.db"):
            store = await SqliteStore.open(copy)
            found = {entry.key for entry in await store.scan("s", limit=1_000_000)}
            assert set(answered) <= found
            for name in range(4):  # both writes of a call, or none
                mine = sorted(key for key in found if key.startswith(f"{name}/0"))
                last = await store.get("s", f"{name}/last")
                assert (int(last.value) + 1 if last else 0) == len(mine)
            await store.close()


class TestInRedis:
    """What only the store in Redis promises."""

    async def test_what_was_acknowledged_is_there_after_redis_was_killed(self, tmp_path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
            store = await RedisStore.open(server.url(), "a")
            assert await store.weakness() == ""
            [version] = await store.write([put("k", b"v")])
            server.kill()
            with pytest.raises(Problem) as refusal:
                await store.write([put("k", b"w")])
            assert (refusal.value.kind, refusal.value.retry_after) == ("unavailable", 1)
            server.start()
            assert await store.get("s", "k") == Entry("k", b"v", version)
            assert (await store.write([put("k", b"w", expect=version)]))[0] > version
            await store.close()

    async def test_a_version_that_redis_has_lost_is_not_used_again(self) -> None:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), appendonly="no") as server:
            store = await RedisStore.open(server.url(), "a")
            [first] = await store.write([put("k")])
            ask(server, "SAVE")
            lost = [*await store.write([put("k")]), *await store.write([put("l")])]
            server.kill()
            with pytest.raises(Problem):
                await store.get("s", "k")
            server.start(appendonly="no")
            assert await store.get("s", "k") == Entry("k", b"v", first)
            versions = await store.write([put("k"), put("l")]) + await store.write([put("m")])
            assert versions == sorted(set(versions))
            assert versions[0] > max(lost)
            await store.close()

    @pytest.mark.parametrize(
        ("setting", "value", "said"),
        [
            ("appendonly", "no", "appendonly no"),
            ("appendfsync", "everysec", "up to a second"),
            ("maxmemory_policy", "allkeys-lru", "allkeys-lru"),
        ],
    )
    async def test_settings_that_may_lose_a_write_are_told(self, setting: str, value: str, said: str) -> None:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), **{setting: value}) as server:
            store = await RedisStore.open(server.url(), "a")
            assert said in await store.weakness()
            await store.close()

    async def test_a_full_one_takes_no_more_and_says_so_and_room_can_be_made(self) -> None:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
            store = await RedisStore.open(server.url(), "a")
            await store.write([put("k", b"old"), put("l"), put("t", space="t")])
            await store.close()
            client = Redis.from_url(server.url())
            await client.config_set("maxmemory", 1)
            store = await RedisStore.open(server.url(), "a")
            for writes in ([put("k", b"new")], [delete("l"), put("k", b"new")], [put("m")]):
                with pytest.raises(Problem, match="It is full") as refusal:
                    await store.write(writes)
                assert (refusal.value.kind, refusal.value.retry_after) == ("unavailable", 1)
            assert [(e.key, e.value) for e in await store.scan("s")] == [("k", b"old"), ("l", b"v")]
            await store.write([delete("l")])
            await store.drop("t")
            assert await store.size("") == 4 + PLACE
            await client.config_set("maxmemory", 0)
            await client.aclose()
            await store.write([put("k", b"new")])
            await store.close()

    async def test_an_owner_keeps_a_full_one(self) -> None:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
            store = await RedisStore.open(server.url(), "a", owner="me")
            await store.write([put("k")])
            client = Redis.from_url(server.url())
            await client.expire("{pilotlight:a}:owner", 5)
            await client.config_set("maxmemory", 1)
            again = await RedisStore.open(server.url(), "a", owner="me")
            assert await client.ttl("{pilotlight:a}:owner") > 5
            await again.write([delete("k")])
            await again.close()
            await store.close()
            await client.aclose()

    async def test_a_replica_is_named_as_what_it_is(self) -> None:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
            store = await RedisStore.open(server.url(), "a")
            client = Redis.from_url(server.url())
            await client.replicaof("127.0.0.1", "1")
            with pytest.raises(Problem, match="It is a replica") as refusal:
                await store.write([put("k")])
            assert (refusal.value.kind, refusal.value.retry_after) == ("unavailable", 1)
            await client.aclose()
            await store.close()

    async def test_what_some_spaces_take_is_found_without_a_look_at_the_others(
        self, redis: RedisServer
    ) -> None:
        store = await RedisStore.open(redis.url(), short_id(), sweep_every=1000)
        await store.write([put("k", space=f"evil/{number}") for number in range(3000)])
        await store.write([put("k", space="good/1"), put("k", space="good/2")])
        client = Redis.from_url(redis.url())
        await client.config_resetstat()
        assert await store.size("good/") == 2 * (2 + PLACE)
        done = await client.info("commandstats")
        assert sum(each["calls"] for each in done.values()) < 20
        await client.aclose()
        assert await store.size("evil/") == 3000 * (2 + PLACE)  # more than one script looks at
        await store.close()

    async def test_one_owner_at_a_time(self, redis: RedisServer) -> None:
        name = short_id()
        first = await RedisStore.open(redis.url(), name, owner="one")
        with pytest.raises(Problem) as refusal:
            await RedisStore.open(redis.url(), name, owner="two")
        assert refusal.value.kind == "conflict"
        assert "one" in refusal.value.detail
        again = await RedisStore.open(redis.url(), name, owner="one")  # after a crash it need not wait
        await again.close()
        second = await RedisStore.open(redis.url(), name, owner="two")
        with pytest.raises(Problem) as refusal:
            await first.write([put("k")])
        assert refusal.value.kind == "conflict"
        assert await second.get("s", "k") is None
        await first.close()
        await second.write([put("k")])
        await second.close()

    async def test_what_a_newer_version_has_written_is_refused(self, redis: RedisServer) -> None:
        name = short_id()
        await (await RedisStore.open(redis.url(), name)).close()
        client = Redis.from_url(redis.url())
        await client.set(f"{{pilotlight:{name}}}:schema", "99")
        await client.aclose()
        with pytest.raises(Problem, match="newer"):
            await RedisStore.open(redis.url(), name)

    async def test_what_an_older_version_has_written_is_brought_up_to_date(self, redis: RedisServer) -> None:
        name = short_id()
        store = await RedisStore.open(redis.url(), name)
        await store.write([put("k", space="data/a/one"), put("k", space="data/a/two"), put("k", space="b")])
        sizes = [await store.size(prefix) for prefix in ("", "data/a/", "b")]
        await store.close()
        client = Redis.from_url(redis.url())
        await client.delete(f"{{pilotlight:{name}}}:spaces")  # the first schema had none
        await client.set(f"{{pilotlight:{name}}}:schema", "1")
        again, other = await asyncio.gather(*(RedisStore.open(redis.url(), name) for _ in range(2)))
        assert [await again.size(prefix) for prefix in ("", "data/a/", "b")] == sizes
        await again.drop("b")
        assert await client.zcard(f"{{pilotlight:{name}}}:spaces") == 2
        assert await client.get(f"{{pilotlight:{name}}}:schema") == b"3"
        await client.aclose()
        await again.close()
        await other.close()

    async def test_what_belongs_to_another_platform_is_not_brought_up_to_date(
        self, redis: RedisServer
    ) -> None:
        name = short_id()
        store = await RedisStore.open(redis.url(), name, owner="one of an older version")
        client = Redis.from_url(redis.url())
        await client.set(f"{{pilotlight:{name}}}:schema", "1")
        with pytest.raises(Problem, match="in use by another platform"):
            await RedisStore.open(redis.url(), name, owner="a newer one")
        assert await client.get(f"{{pilotlight:{name}}}:schema") == b"1"
        await client.aclose()
        await store.close()

    async def test_where_none_is_the_refusal_names_the_place_but_no_password(self, tmp_path: Path) -> None:
        with pytest.raises(Problem) as refusal:
            await RedisStore.open(f"redis://me:secret@127.0.0.1:1/{0}", "a")
        assert refusal.value.kind == "unavailable"
        assert "127.0.0.1:1/0" in refusal.value.detail
        assert "secret" not in refusal.value.detail

    async def test_an_option_that_there_is_not_is_refused(self) -> None:
        with pytest.raises(Problem, match="can't be used") as refusal:
            await RedisStore.open("rediss://me:secret@127.0.0.1:1/0?ssl_nothing=1", "a")
        assert refusal.value.kind == "invalid-request"
        assert "secret" not in refusal.value.detail

    async def test_expired_entries_leave_it_in_time(self, redis: RedisServer, clock: Clock) -> None:
        name = short_id()
        store = await RedisStore.open(redis.url(), name, clock=clock)
        await store.write([put(f"{i}", ttl=1) for i in range(600)] + [put("stays", ttl=100), put("kept")])
        await store.write([put("0")])
        clock.now += 2
        while await store.sweep():
            pass
        client = Redis.from_url(redis.url())
        assert set(await client.hkeys(f"{{pilotlight:{name}}}:values:s")) == {b"stays", b"kept", b"0"}
        assert await client.zcard(f"{{pilotlight:{name}}}:order:s") == 3
        assert await client.zcard(f"{{pilotlight:{name}}}:expiring") == 1
        await client.aclose()
        await store.close()

    async def test_a_cancelled_caller_leaves_the_store_usable(self, redis: RedisServer) -> None:
        store = await RedisStore.open(redis.url(), short_id())
        tasks = [asyncio.create_task(store.write([put("k", b"%d" % i)])) for i in range(100)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        [version] = await store.write([put("k", b"last")])
        assert await store.get("s", "k") == Entry("k", b"last", version)
        await store.close()

    async def test_it_scans_on_past_many_that_have_expired(self, redis: RedisServer, clock: Clock) -> None:
        store = await RedisStore.open(redis.url(), short_id(), clock=clock, sweep_every=1000)
        await store.write([put(f"{i:04}", ttl=1) for i in range(1500)] + [put("9999")])
        clock.now += 2
        assert await keys(store, limit=5000) == ["9999"]
        await store.close()


class TestSentinelsAndClusters:
    """What is told where a store can't be opened, or may lose something."""

    @staticmethod
    async def refused(url: str, name: str = "a") -> str:
        with pytest.raises(Problem) as refusal:
            await RedisStore.open(url, name)
        assert refusal.value.kind == "unavailable"
        assert "secret" not in refusal.value.detail
        return refusal.value.detail

    async def test_sentinels_that_are_not_there_are_each_named(self) -> None:
        hosts = "127.0.0.1:1,127.0.0.1:2"
        said = await self.refused(f"redis+sentinel://me:secret@{hosts}/pilot/0?sentinel_password=secret")
        assert "127.0.0.1:1,127.0.0.1:2/pilot/0: No sentinel names a master" in said
        assert "127.0.0.1:1: " in said
        assert "127.0.0.1:2: " in said

    async def test_a_service_that_the_sentinels_do_not_know_is_named(self, sentinels: Sentinels) -> None:
        said = await self.refused(sentinels.url(service="other"))
        assert f"127.0.0.1:{sentinels.port} knows no service 'other'" in said

    async def test_sentinels_and_master_have_passwords_of_their_own(self) -> None:
        with redis_groups.sentinels(password="theirs") as group:
            ask(group.master(), "CONFIG SET", "requirepass", "s&cret")
            url = group.url().replace("://", "://default:s%26cret@")
            assert "Authentication" in await self.refused(url)
            assert "Authentication" in await self.refused(f"{group.url()}?sentinel_password=theirs")
            store = await RedisStore.open(f"{url}?sentinel_password=theirs", "a")
            await store.write([put("k")])
            await store.close()

    async def test_what_is_no_master_is_told(self) -> None:
        with redis_groups.sentinels(replicas=0) as group:
            ask(group.master(), "REPLICAOF", "127.0.0.1", "1")
            assert "which is a slave" in await self.refused(group.url())
            group.servers[0].kill()
            assert f"127.0.0.1:{group.servers[0].port}: " in await self.refused(group.url())

    async def test_one_is_not_taken_for_the_other(self, sentinels: Sentinels, cluster: Cluster) -> None:
        server = f"127.0.0.1:{sentinels.servers[0].port}"
        assert "unknown command" in await self.refused(f"redis+sentinel://{server}/pilot/0")
        assert "Cluster mode is not enabled" in await self.refused(f"redis+cluster://{server}")
        said = await self.refused(f"redis://127.0.0.1:{sentinels.port}")
        assert "is a sentinel: write redis+sentinel://" in said
        other = next(each for each in cluster.masters if each is not cluster.holding("a"))
        said = await self.refused(f"redis://127.0.0.1:{other.port}")
        assert "is a node of a Cluster: write redis+cluster://" in said

    @pytest.mark.parametrize("kind", ["server", "sentinels", "cluster"])
    async def test_all_of_them_can_be_reached_over_tls(self, kind: str, tmp_path: Path) -> None:
        settings = redis_server.tls(tmp_path)
        authority = settings["tls_ca_cert_file"]
        with contextlib.ExitStack() as stack:
            if kind == "server":
                where = redis_server.place(free_port(), settings)
                server = stack.enter_context(running(tmp_path, **where, **settings))
                url = f"rediss://127.0.0.1:{server.port}/0?ssl_ca_certs={authority}"
            elif kind == "sentinels":
                url = stack.enter_context(redis_groups.sentinels(**settings)).url()
            else:
                url = stack.enter_context(redis_groups.cluster(**settings)).url()
            store = await RedisStore.open(url, "a")
            [version] = await store.write([put("k", b"sealed")])
            assert await store.get("s", "k") == Entry("k", b"sealed", version)
            await store.close()
            assert "certificate" in await self.refused(url.partition("?")[0])
            await self.refused(url.partition("?")[0].replace("rediss", "redis"))

    @pytest.mark.parametrize("kind", ["sentinels", "cluster"])
    async def test_what_a_failover_may_lose_is_told(self, kind: str, request: pytest.FixtureRequest) -> None:
        group: Sentinels | Cluster = request.getfixturevalue(kind)
        store = await RedisStore.open(group.url(), "a")
        assert "keeps no log" in await store.weakness()
        for server in group.servers:
            ask(server, "CONFIG SET", "appendonly", "yes", "appendfsync", "always")
        assert "nothing bounds how much that is" in await store.weakness()
        for server in group.servers:
            ask(server, "CONFIG SET", "min-replicas-to-write", "1", "min-replicas-max-lag", "7")
        assert "about 7 seconds of writes" in await store.weakness()
        for server in group.servers:
            ask(server, "CONFIG SET", "min-replicas-to-write", "0", "appendonly", "no")
        await store.close()
