"""The machine's clock is set, by a day forth and back: nothing ends for it, and nothing stays longer."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from function_service.contract import Usage
from function_service.engines.fake import FakeEngine
from function_service.instance import State
from function_service.metrics import Metrics
from function_service.service import InvocationsDoor
from pilotlight import ids
from pilotlight.store import Write
from pilotlight.store_memory import MemoryStore
from pilotlight.store_sqlite import SqliteStore
from tests.support.fleet import until, world

DAY = 86400.0


@pytest.fixture(params=[DAY, -DAY], ids=["forth", "back"])
def set_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what sets the machine's clock, as far as this process is told."""
    real = time.time
    return lambda: monkeypatch.setattr(time, "time", lambda: real() + request.param)


async def test_an_idle_instance_stays_as_long_as_before(
    tmp_path: Path, set_clock: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(FakeEngine(), tmp_path) as w:  # the policy keeps it for a minute
        await w.deploy()
        lease = await w.fleet.acquire("f", w.gateway().peer, 1.0)
        door = InvocationsDoor(w.registry, w.fleet, Metrics(), w.logs)
        call = Usage("f", lease.revision, lease.instance, "r", time.time(), 0.01, 200, cold=True)
        set_clock()
        await door.report([call])  # of a call that began and ended before
        await w.fleet.release(lease.id)
        w.fleet._scale()
        assert [i.state for i in w.fleet.all()] == [State.IDLE]

        steady = w.fleet.all()[0].last_used + 61
        monkeypatch.setattr("pilotlight.clock.steady", lambda: steady)
        w.fleet._scale()
        await until(lambda: not w.fleet.all())


@pytest.mark.parametrize("kind", [MemoryStore, SqliteStore])
async def test_a_document_expires_after_the_time_that_was_said(
    tmp_path: Path, set_clock: Callable[[], None], kind: type
) -> None:
    store = await SqliteStore.open(tmp_path / "a.db") if kind is SqliteStore else MemoryStore()
    for key, ttl in (("long", DAY / 2), ("short", 0.1)):
        await store.write([Write(space="s", key=key, value=b"v", ttl=ttl)])
    set_clock()
    async with asyncio.timeout(60):
        while await store.get("s", "short") is not None:
            await asyncio.sleep(0.01)
    assert await store.get("s", "long") is not None
    await store.close()


def test_identifiers_go_on_growing(set_clock: Callable[[], None]) -> None:
    before = ids.new_id()
    set_clock()
    made = [ids.new_id()[:10] for _ in range(3)]
    assert sorted(made) == made
    assert before[:10] <= made[0]
