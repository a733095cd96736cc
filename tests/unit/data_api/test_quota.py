"""The limit of an app's documents: asked for in portions, and anew after a while."""

import asyncio

import pytest

from baas.quota import Quota
from pilotlight.problems import Problem
from pilotlight.store import PLACE, Write
from pilotlight.store_memory import MemoryStore
from tests.support.clock import Clock


class CountingStore(MemoryStore):
    """A store that counts how often it is asked for sizes."""

    asked = 0

    async def size(self, prefix: str) -> int:
        self.asked += 1
        return await super().size(prefix)


class SlowStore(CountingStore):
    """One that takes its time to tell sizes, and may fail to."""

    def __init__(self) -> None:
        super().__init__()
        self.tells = asyncio.Event()
        self.problem: Problem | None = None

    async def size(self, prefix: str) -> int:
        size = await super().size(prefix)
        await self.tells.wait()
        if self.problem is not None:
            raise self.problem
        return size


async def outcomes(claims: list[asyncio.Task[None]]) -> list[str]:
    async with asyncio.timeout(10):
        found = await asyncio.gather(*claims, return_exceptions=True)
    return [each.kind if isinstance(each, Problem) else "" for each in found]


async def put(store: MemoryStore, size: int, app: str = "shop") -> None:
    write = Write(space=f"data/{app}/things", key="k", value=b"x" * (size - 1 - PLACE))
    await store.write([write])


async def test_the_store_is_asked_once_for_many_writes() -> None:
    store = CountingStore()
    quota = Quota(store, 100 << 20, clock=Clock())
    for _ in range(1000):
        await quota.claim("shop", 1000)
    assert store.asked == 1
    for _ in range(10):
        await quota.claim("shop", 1 << 20)
    assert 3 <= store.asked <= 5


async def test_what_is_left_is_the_limit_of_each_app_by_itself() -> None:
    store = CountingStore()
    quota = Quota(store, 10_000, clock=Clock())
    await put(store, 9_000)
    await quota.claim("shop", 1_000)
    with pytest.raises(Problem, match="take 9000 bytes, and may take 10000") as refusal:
        await quota.claim("shop", 1_001)
    assert refusal.value.kind == "too-large"
    await quota.claim("shopping", 10_000)


async def test_what_others_have_written_or_deleted_is_known_after_a_while() -> None:
    store, clock = CountingStore(), Clock()
    quota = Quota(store, 10_000, clock=clock)
    await quota.claim("shop", 10)
    await put(store, 9_000)
    await quota.claim("shop", 2_000)  # out of its portion
    clock.now += 11
    with pytest.raises(Problem):
        await quota.claim("shop", 2_000)
    await put(store, 5_000)
    await quota.claim("shop", 2_000)  # at once: who was refused has no portion


async def test_many_who_want_more_at_once_have_the_store_asked_for_all() -> None:
    store = SlowStore()
    quota = Quota(store, 100_000, clock=Clock())
    claims = [asyncio.create_task(quota.claim("shop", 3000)) for _ in range(50)]
    await asyncio.sleep(0)
    store.tells.set()
    # Twice, as the first time was before the others came; the second time the first one's is not written yet
    assert sorted(await outcomes(claims)) == [""] * (1 + 33) + ["too-large"] * 16
    assert store.asked == 2


async def test_a_store_that_can_not_tell_is_asked_for_all_who_wait() -> None:
    store = SlowStore()
    store.problem = Problem("unavailable", "It does not answer.", retry_after=1)
    quota = Quota(store, 100_000, clock=Clock())
    claims = [asyncio.create_task(quota.claim("shop", 1)) for _ in range(50)]
    await asyncio.sleep(0)
    store.tells.set()
    assert await outcomes(claims) == ["unavailable"] * 50
    assert store.asked == 2
    store.problem = None
    await quota.claim("shop", 1)


async def test_what_was_deleted_before_counts_though_the_store_is_being_asked_already() -> None:
    store = SlowStore()
    quota = Quota(store, 10_000, clock=Clock())
    await put(store, 9_000)
    former = asyncio.create_task(quota.claim("shop", 2_000))
    await asyncio.sleep(0)  # the store has looked, and not answered yet
    await put(store, 5_000)
    later = asyncio.create_task(quota.claim("shop", 2_000))
    await asyncio.sleep(0)
    store.tells.set()
    assert await outcomes([former, later]) == ["too-large", ""]


async def test_who_asks_and_goes_leaves_it_to_the_next_one() -> None:
    store = SlowStore()
    quota = Quota(store, 10_000, clock=Clock())
    claims = [asyncio.create_task(quota.claim("shop", 2_000)) for _ in range(3)]
    await asyncio.sleep(0)
    claims[0].cancel()
    store.tells.set()
    assert await outcomes(claims[1:]) == ["", ""]
