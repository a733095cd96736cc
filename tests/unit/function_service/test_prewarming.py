"""A day in the life of a function that is called every half hour: the fleet on a fake engine and a fake clock."""

from pathlib import Path

import pytest

from function_service.engines.fake import FakeEngine
from function_service.policies import Ember, HybridHistogram, Policy
from function_service.scaler import LEAD
from tests.support.fleet import Gateway, World, until, world

PERIOD = 1800.0
CALLS = 24
EARLY = 1500  # seconds after a call before which no policy here pre-warms


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr("pilotlight.clock.steady", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def look(w: World) -> None:
    """Do what the service does as time passes, and wait for what it has begun."""
    w.fleet._scale()
    w.fleet._demote()
    await until(lambda: all(i.ending is None for i in w.fleet.all()) and not w.fleet._tasks)


async def call(w: World, gateway: Gateway, clock: Clock) -> bool:
    """Call once, as a gateway does that gives the lease back at once; return whether it was cold."""
    lease = await w.fleet.acquire("f", gateway.peer, 1.0)
    w.fleet.record("f", lease.instance, clock.now, 0.01)
    await w.fleet.release(lease.id)
    return lease.cold


async def be_called_every_half_hour(w: World, gateway: Gateway, clock: Clock) -> list[bool]:
    """Return which of the calls were cold. The service looks every second where there may be something to do."""
    cold = []
    for _ in range(CALLS):
        cold.append(await call(w, gateway, clock))
        last = clock.now
        for after in (*range(1, EARLY, 60), *range(EARLY, int(PERIOD))):
            clock.now = last + after
            await look(w)
        clock.now = last + PERIOD
    return cold


@pytest.mark.parametrize("policy", [Ember(), HybridHistogram()], ids=lambda policy: type(policy).__name__)
async def test_what_is_called_at_regular_times_is_ready_then_and_takes_no_memory_in_between(
    tmp_path: Path, clock: Clock, policy: Policy
) -> None:
    async with world(FakeEngine(), tmp_path, policy=policy) as w:
        gateway = w.gateway()
        await w.deploy()
        cold = await be_called_every_half_hour(w, gateway, clock)
        assert cold[0]
        assert not any(cold[CALLS // 2 :])
        assert not await call(w, gateway, clock)
        last, held = clock.now, 0
        for second in range(int(PERIOD - LEAD)):
            clock.now = last + second
            await look(w)
            held += len(w.fleet.all())
        assert held < PERIOD / 4
        for second in range(int(PERIOD - LEAD), int(PERIOD) + 1):
            clock.now = last + second
            await look(w)
        assert len(w.fleet.all()) == 1
        clock.now = last + 2 * 86400  # no call comes
        await look(w)
        assert w.fleet.all() == []


async def test_blank_sandboxes_go_too_when_no_function_is_called_any_more(
    tmp_path: Path, clock: Clock
) -> None:
    async with world(FakeEngine(), tmp_path, policy=Ember(), waiting=2) as w:
        gateway = w.gateway()
        await w.deploy()
        await be_called_every_half_hour(w, gateway, clock)
        await until(lambda: len(w.engine.sandboxes) == 2 + len(w.fleet.all()))
        clock.now += 7 * 86400
        await look(w)
        await until(lambda: not w.engine.sandboxes)
        assert await call(w, gateway, clock), "and the function is there all the same"
        await look(w)
        await until(lambda: len(w.engine.sandboxes) == 2 + len(w.fleet.all()))
