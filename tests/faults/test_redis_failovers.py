"""Another server of a Redis takes over while some write to a store.

What holds: nothing that was written is made again, or numbered like something else; meanwhile writes are refused
in words; afterwards the store serves by itself, and has what was acknowledged and had been copied.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Entry, Write
from pilotlight.store_redis import RedisStore
from tests.support import redis_groups
from tests.support.redis_groups import Cluster, ask, copied, slot
from tests.support.redis_server import RedisServer

NAME = "a"  # of the store


class Writers:
    """Some who write one key after the other, once each, and keep what they are told."""

    def __init__(self, store: RedisStore) -> None:
        self.acknowledged: dict[str, int] = {}
        self.refused: list[Problem] = []
        self._store = store

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._write(f"{number}")) for number in range(4)]
            yield
            for task in tasks:
                task.cancel()

    async def _write(self, name: str) -> None:
        number = 0
        while True:
            key = f"{name}/{number}"
            number += 1
            try:
                # One that were made again would conflict with itself
                [version] = await self._store.write(
                    [Write(space="s", key=key, value=key.encode(), expect=ABSENT)]
                )
            except Problem as problem:
                self.refused.append(problem)
                await asyncio.sleep(0.01)
            else:
                self.acknowledged[key] = version

    async def more(self, count: int = 200) -> None:
        """Wait until so many more were acknowledged."""
        wanted = len(self.acknowledged) + count
        while len(self.acknowledged) < wanted:
            await asyncio.sleep(0.01)

    async def refusal(self) -> None:
        """Wait until one is refused."""
        wanted = len(self.refused) + 1
        while len(self.refused) < wanted:
            await asyncio.sleep(0.01)

    async def check(self, sure: dict[str, int]) -> None:
        """Hold what is there against what they were told; `sure` is what must be there."""
        assert {(each.kind, each.retry_after) for each in self.refused} <= {("unavailable", 1)}
        found = {entry.key: entry for entry in await self._store.scan("s", limit=1_000_000)}
        for key, version in sure.items():
            assert found[key] == Entry(key, key.encode(), version)
        numbers = self.acknowledged | {entry.key: entry.version for entry in found.values()}
        assert len(set(numbers.values())) == len(numbers)
        for key, version in self.acknowledged.items():
            assert key not in found or found[key].version == version


@pytest.fixture
async def writers(request: pytest.FixtureRequest) -> AsyncIterator[Writers]:
    """What writes to the group of the test."""
    store = await RedisStore.open(request.getfixturevalue("group").url(), NAME)
    yield Writers(store)
    await store.close()


ENDS = pytest.mark.parametrize("end", [RedisServer.kill, RedisServer.freeze])


class TestSentinels:
    @pytest.fixture
    def group(self):
        with redis_groups.sentinels(replicas=2, min_replicas_to_write="1") as group:
            yield group

    @ENDS
    async def test_when_the_master_ends_a_replica_serves_with_all_it_had(self, group, writers, end):
        async with writers.writing():
            await writers.more()
            sure = dict(writers.acknowledged)
            await asyncio.to_thread(copied, group.master())
            end(group.master())
            await writers.refusal()
            await writers.more()
        assert group.master() is not group.servers[0]
        await writers.check(sure)

    async def test_a_master_that_is_relieved_is_left_also_where_it_lives_on(self, group, writers):
        async with writers.writing():
            await writers.more()
            sure = dict(writers.acknowledged)
            await asyncio.to_thread(copied, group.master())
            with group.sentinel() as sentinel:
                sentinel.execute_command("SENTINEL FAILOVER", group.service)
            await writers.refusal()
            await writers.more()
        assert group.master() is not group.servers[0]
        await writers.check(sure)


class TestCluster:
    @pytest.fixture
    def group(self):
        with redis_groups.cluster(NAME) as group:
            yield group

    @ENDS
    async def test_when_a_master_ends_its_replica_serves_with_all_it_had(self, group, writers, end):
        async with writers.writing():
            await writers.more()
            sure = dict(writers.acknowledged)
            await asyncio.to_thread(copied, group.holding(NAME), f"{{pilotlight:{NAME}}}:copied")
            end(group.holding(NAME))
            await writers.refusal()
            await writers.more()
        await writers.check(sure)

    async def test_when_its_slot_moves_a_store_follows_and_loses_nothing(self, group, writers):
        async with writers.writing():
            await writers.more()
            await asyncio.to_thread(move, group)
            await writers.more()
        await writers.check(writers.acknowledged)


def move(group: Cluster) -> None:
    """Move the slot of the store to another master."""
    source = group.holding(NAME)
    target = next(server for server in group.masters if server is not source)
    here, there = (ask(server, "CLUSTER MYID") for server in (source, target))
    ask(target, "CLUSTER SETSLOT", slot(NAME), "IMPORTING", here)
    ask(source, "CLUSTER SETSLOT", slot(NAME), "MIGRATING", there)
    while keys := ask(source, "CLUSTER GETKEYSINSLOT", slot(NAME), 100):
        for key in keys:
            ask(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 10_000)
    for server in (target, source, *group.masters):
        ask(server, "CLUSTER SETSLOT", slot(NAME), "NODE", there)
