"""The limit of an app's documents: asked for in portions, and anew after a while."""

import pytest

from baas.quota import Quota
from pilotlight.problems import Problem
from pilotlight.store import PLACE, Write
from pilotlight.store_memory import MemoryStore


class CountingStore(MemoryStore):
    """A store that counts how often it is asked for sizes."""

    asked = 0

    async def size(self, prefix: str) -> int:
        self.asked += 1
        return await super().size(prefix)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


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
