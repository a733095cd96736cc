"""A copy of a platform's stores, from each kind into each: what goes over, and what is refused."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path

import pytest
from redis import Redis

from pilotlight import sqlite_file, store_whole
from pilotlight.problems import Problem
from pilotlight.store import Store, Write
from pilotlight.store_redis import RedisStore
from pilotlight.store_sqlite import SqliteStore
from pilotlight.store_whole import NAMES, Source, Target
from pilotlight.store_whole_redis import RedisSource, RedisTarget
from pilotlight.store_whole_sqlite import SqliteSource, SqliteTarget
from tests.support.redis_groups import Cluster, Sentinels
from tests.support.redis_server import RedisServer, running

SPACES = ("a", "data/shop/things", "data/shop/thïngs", "\U0001f525/\uffff")
KEYS = ("", "\0", "a", "ab", "ä", "\U0001f525", "\uffff")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    with Redis.from_url(server.url()) as client:
        client.flushall()
    return server


class Place:
    """Where the two stores of a platform are, of one kind or the other."""

    def __init__(
        self, kind: str, redis: RedisServer | Sentinels | Cluster, database: int, folder: Path
    ) -> None:
        self.kind = kind
        self.url = redis.url(database)
        self.folder = folder
        folder.mkdir()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.db"

    async def store(self, name: str) -> Store:
        if self.kind == "redis":
            return await RedisStore.open(self.url, name)
        return await SqliteStore.open(self.path(name))

    def sources(self, stack: ExitStack) -> Mapping[str, Source]:
        if self.kind == "redis":
            owner = {"registry": "tests"}
            return {n: stack.enter_context(RedisSource(self.url, n, owner.get(n, ""))) for n in NAMES}
        return {n: stack.enter_context(SqliteSource(self.path(n))) for n in NAMES}

    def targets(self, stack: ExitStack) -> Mapping[str, Target]:
        if self.kind == "redis":
            owner = {"registry": "tests"}
            return {n: stack.enter_context(RedisTarget(self.url, n, owner.get(n, ""))) for n in NAMES}
        registry = self.path("registry")
        return {n: stack.enter_context(SqliteTarget(self.path(n), registry)) for n in NAMES}

    def left(self) -> list[str]:
        """List what is there."""
        with Redis.from_url(self.url) as client:
            there = sorted(key.decode() for key in client.scan_iter())
        return there + sorted(path.name for path in self.folder.iterdir())


@pytest.fixture(params=["sqlite", "redis"])
def source(request: pytest.FixtureRequest, redis: RedisServer, tmp_path: Path) -> Place:
    return Place(request.param, redis, 0, tmp_path / "source")


@pytest.fixture(params=["sqlite", "redis"])
def target(request: pytest.FixtureRequest, redis: RedisServer, tmp_path: Path) -> Place:
    return Place(request.param, redis, 1, tmp_path / "target")


async def copy(source: Place, target: Place) -> dict[str, store_whole.Summary]:
    def copy() -> dict[str, store_whole.Summary]:
        with ExitStack() as stack:
            return store_whole.copy(source.sources(stack), target.targets(stack))

    return await asyncio.to_thread(copy)


def held(place: Place) -> dict[str, store_whole.Summary]:
    with ExitStack() as stack:
        return {name: store_whole.summarise(each) for name, each in place.sources(stack).items()}


async def fill(place: Place) -> None:
    for name in NAMES:
        async with AsyncExitStack() as stack:
            store = await place.store(name)
            stack.push_async_callback(store.close)
            ends = (None, 1000.5, 1e-9)  # the last has expired before it is copied
            odd = [
                Write(space=space, key=key, value=os.urandom(number * 50), ttl=ends[number % 3])
                for space in SPACES
                for number, key in enumerate(KEYS)
            ]
            await store.write(odd)
            many = [Write(space="many", key=f"{i:05}", value=b"x" * 600) for i in range(3000)]
            for begin in range(0, len(many), 100):  # a store has five seconds for each
                await store.write(many[begin : begin + 100])
            await store.write([Write(space="many", key="last", value=b"1")])
            await store.write([Write(space="many", key="last", value=None)])  # its version was given out


async def test_everything_goes_over_with_its_version_and_end_and_what_follows_is_newer(
    source: Place, target: Place
) -> None:
    await fill(source)
    before = source.left()
    copied = await copy(source, target)
    assert source.left() == before
    assert {name: each.entries > 3000 for name, each in copied.items()} == dict.fromkeys(NAMES, True)
    for name in NAMES:
        old, new = await source.store(name), await target.store(name)
        for space in (*SPACES, "many"):
            entries = await old.scan(space, limit=10_000)
            assert len(entries) > 3
            assert await new.scan(space, limit=10_000) == entries
        for prefix in ("many", "data/", "a"):
            async with asyncio.timeout(60):  # what has expired counts until it is swept
                while await new.size(prefix) != await old.size(prefix):
                    await asyncio.sleep(0.01)
        [last] = await old.write([Write(space="many", key="next", value=b"")])
        assert await new.write([Write(space="many", key="next", value=b"")]) == [last]
        await old.close()
        await new.close()


@pytest.mark.parametrize("kind", ["redis", "oldest_redis", "sentinels", "cluster"])
async def test_there_and_back_it_is_the_same(
    kind: str, request: pytest.FixtureRequest, redis: RedisServer, tmp_path: Path
) -> None:
    first = Place("sqlite", redis, 0, tmp_path / "first")
    there = Place("redis", request.getfixturevalue(kind), 0, tmp_path / "there")
    back = Place("sqlite", redis, 0, tmp_path / "back")
    await fill(first)
    assert await copy(first, there) == await copy(there, back)
    for name in NAMES:
        with (
            closing(sqlite3.connect(first.path(name))) as one,
            closing(sqlite3.connect(back.path(name))) as other,
        ):
            for table in ("entries", "sizes"):
                rows = f"SELECT * FROM {table} ORDER BY 1, 2"
                assert one.execute(rows).fetchall() == other.execute(rows).fetchall()


async def test_what_is_there_already_is_not_touched(source: Place, target: Place) -> None:
    await fill(source)
    store = await target.store("documents")
    await store.write([Write(space="mine", key="k", value=b"v")])
    await store.close()
    before = target.left()
    with pytest.raises(Problem, match="nothing is overwritten"):
        await copy(source, target)
    assert target.left() == before


@pytest.fixture
async def full(redis: RedisServer, tmp_path: Path) -> Place:
    place = Place("sqlite", redis, 0, tmp_path / "source")
    await fill(place)
    return place


@pytest.mark.parametrize("store", NAMES)
@pytest.mark.parametrize("step", ["begin", "put", "records", "finish"])
def test_where_it_fails_nothing_is_left(
    full: Place, target: Place, step: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        targets = target.targets(stack)

        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(targets[store], step, fail)
        with pytest.raises(KeyboardInterrupt):
            store_whole.copy(full.sources(stack), targets)
    assert target.left() == []


KILLED = """
import os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from pilotlight import store_whole
from tests.conformance.test_store_copies import Place
from tests.support.redis_server import RedisServer
source_kind, target_kind, folder, redis, step, store = sys.argv[1:]
source, target = (Place.__new__(Place) for _ in range(2))
server = RedisServer(Path(redis))
source.kind, source.url, source.folder = source_kind, server.url(0), Path(folder) / "source"
target.kind, target.url, target.folder = target_kind, server.url(1), Path(folder) / "target"
with ExitStack() as stack:
    targets = target.targets(stack)
    what = getattr(targets[store], step)
    def die(*given):
        done = what(*given)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(targets[store], step, die)
    store_whole.copy(source.sources(stack), targets)
"""


@pytest.mark.parametrize(
    ("step", "store"),
    [("begin", "registry"), ("put", "registry"), ("put", "documents"), ("finish", "documents")],
)
async def test_what_a_killed_copy_leaves_is_told_opened_by_nobody_and_removed_by_the_next(
    full: Place, target: Place, step: str, store: str, redis: RedisServer, tmp_path: Path
) -> None:
    words = (full.kind, target.kind, str(tmp_path), str(redis.folder), step, store)
    ended = subprocess.run([sys.executable, "-c", KILLED, *words], check=False, timeout=250)
    assert ended.returncode == -signal.SIGKILL
    with Redis.from_url(target.url) as client:  # else it is another's for 15 s
        client.delete("{pilotlight:registry}:owner")
    left = target.left()
    assert left
    with pytest.raises(Problem, match="interrupted `pilotlight store migrate`"):
        await target.store("registry")
    assert target.left() == left
    copied = await copy(full, target)
    assert await asyncio.to_thread(held, target) == copied
    assert not [name for name in target.left() if "unfinished" in name or "new" in name]


def test_a_record_that_arrives_otherwise_is_noticed(
    full: Place, target: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        targets = target.targets(stack)
        put = targets["documents"].put
        monkeypatch.setattr(
            targets["documents"],
            "put",
            lambda records: put([*records[:-1], records[-1]._replace(expires=1.0)]),
        )
        with pytest.raises(Problem, match=r"documents: .* was read, and .* has arrived"):
            store_whole.copy(full.sources(stack), targets)
    assert target.left() == []


async def test_a_redis_in_use_is_neither_read_nor_filled(redis: RedisServer, tmp_path: Path) -> None:
    place = Place("redis", redis, 0, tmp_path / "unused")
    store = await RedisStore.open(place.url, "registry", owner="a platform")
    for opened in (place.sources, place.targets):
        with ExitStack() as stack, pytest.raises(Problem, match="in use by another platform"):
            await asyncio.to_thread(opened, stack)
    await store.close()


def test_what_is_not_there_or_from_a_newer_version_is_told(redis: RedisServer, tmp_path: Path) -> None:
    place = Place("redis", redis, 0, tmp_path / "unused")
    with pytest.raises(Problem, match="no store"):
        RedisSource(place.url, "documents", "")
    with pytest.raises(Problem, match="no store"):
        SqliteSource(tmp_path / "none.db")
    with Redis.from_url(place.url) as client:
        client.set("{pilotlight:documents}:schema", "99")
    with pytest.raises(Problem, match="newer"):
        RedisSource(place.url, "documents", "")
    with pytest.raises(Problem, match="newer"), RedisTarget(place.url, "documents", "") as target:
        target.check_empty()
    sqlite_file.make(tmp_path / "newer.db")
    with sqlite3.connect(tmp_path / "newer.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Problem, match="newer"):
        SqliteSource(tmp_path / "newer.db")


async def test_a_redis_that_an_older_version_has_filled_is_copied_whole(
    redis: RedisServer, tmp_path: Path
) -> None:
    old, new = Place("redis", redis, 0, tmp_path / "old"), Place("sqlite", redis, 1, tmp_path / "new")
    await fill(old)
    whole = await copy(old, new)
    with Redis.from_url(old.url) as client:
        for name in NAMES:
            client.delete(f"{{pilotlight:{name}}}:spaces")  # the first schema had none
            client.set(f"{{pilotlight:{name}}}:schema", "1")
    assert await copy(old, Place("redis", redis, 2, tmp_path / "other")) == whole


MEASURED = """
import resource, sys
from pathlib import Path
from pilotlight import sqlite_file, store_whole
from pilotlight.store_whole import Record
from pilotlight.store_whole_sqlite import SqliteTarget
from pilotlight.store_whole_redis import RedisTarget
kind, folder, url = sys.argv[1:]
big = bytes(1 << 20)

class Big:
    def last(self): return 200
    def records(self):
        for i in range(200): yield [Record("s", f"{i:05}", big, i + 1, None)]

class Empty(Big):
    def last(self): return 0
    def records(self): yield from ()

paths = {name: Path(folder, f"{name}.db") for name in store_whole.NAMES}
if kind == "sqlite":
    targets = {name: SqliteTarget(path, paths["registry"]) for name, path in paths.items()}
else:
    targets = {name: RedisTarget(url, name, "") for name in paths}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store_whole.copy({"registry": Empty(), "documents": Big()}, targets)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_large_documents_are_not_all_in_memory_at_once(kind: str, redis: RedisServer, tmp_path: Path) -> None:
    words = (sys.executable, "-c", MEASURED, kind, str(tmp_path), redis.url(3))
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=250)
    assert int(done.stdout) < 120  # MB, of 200
