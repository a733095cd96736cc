"""How long snapshots are kept, on a fake engine: as long as their functions are worth it, and there is room."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from function_service.contract import FunctionConfig, Revision
from function_service.engines.base import Assignment, Sandbox, Use
from function_service.engines.fake import FakeEngine
from function_service.keeper import Keeper
from function_service.policies import Ember, Fixed
from function_service.pool import Pool
from function_service.snapshots import Snapshots
from runtimes.declaration import Interpreter
from tests.support.fleet import until

PYTHON = Interpreter("python", "3.11", "/usr/bin/python3")
MEGABYTE = 1 << 20


class Heavy(FakeEngine):
    """Each sandbox of it takes 40 MB."""

    def use(self, sandbox: Sandbox) -> Use:
        return Use(40 * MEGABYTE, 0.0, 1)


def revision(name: str) -> Revision:
    config = FunctionConfig(name=name, runtime=PYTHON.name, handler="h")
    return Revision(id=f"{name}-1", app="a", config=config, code="c", commit="d", created=0.0)


@contextlib.asynccontextmanager
async def snapshots_of(*names: str, memory: int) -> AsyncIterator[Snapshots]:
    """Give snapshots of functions whose starts were slow, in this order; nothing of them is left afterwards."""
    engine = Heavy()
    pool = Pool(engine, (PYTHON,), {})
    made = Snapshots(engine, pool, (PYTHON,), memory)
    made.keep({revision(name).id for name in names})
    try:
        for name in names:
            await slow_starts(made, name)
        yield made
    finally:
        await made.close()
        await pool.close()
    assert engine.sandboxes == {}


async def slow_starts(snapshots: Snapshots, name: str) -> None:
    """Tell of two starts whose imports were slow, and wait for what they lead to."""
    assignment = Assignment("a", name, "h", 1, {}, Path("code"), None, 128 * MEGABYTE, 1.0, ())
    for _ in range(2):
        snapshots.started(revision(name), assignment, 50.0, called=True)
    await until(lambda: not snapshots._tasks)


async def test_a_snapshot_stays_while_its_function_is_worth_it() -> None:
    async with snapshots_of("a", "b", memory=1024 * MEGABYTE) as snapshots:
        snapshots.tidy(lambda _name, _used: True)
        assert "a-1" in snapshots
        snapshots.tidy(lambda name, _used: name == "b")
        await until(lambda: not snapshots._tasks)
        assert "a-1" not in snapshots
        assert "b-1" in snapshots


async def test_where_room_is_short_the_one_goes_that_was_used_least_lately() -> None:
    async with snapshots_of("a", "b", memory=50 * MEGABYTE) as snapshots:
        snapshots.tidy(lambda _name, _used: True)
        await until(lambda: not snapshots._tasks)
        assert "a-1" not in snapshots
        assert "b-1" in snapshots


async def test_what_takes_more_than_all_may_is_no_snapshot_and_says_so() -> None:
    async with snapshots_of("a", memory=30 * MEGABYTE) as snapshots:
        assert "a-1" not in snapshots
        assert "40 MB" in snapshots.unfit("a-1")
        assert "--snapshot-memory" in snapshots.unfit("a-1")


@pytest.mark.parametrize(
    ("policy", "idle", "worth"),
    [
        (Fixed(600), 800, True),
        (Fixed(600), 1000, False),
        (Fixed(3600), 3000, True),
        (Ember(), 60, True),
        (Ember(), 7 * 86400, False),
    ],
)
def test_a_function_is_worth_one_while_its_policy_holds_anything_of_it(policy, idle, worth) -> None:
    keeper = Keeper(policy)
    keeper.live([revision("f")], 0.0)
    now = 0.0
    for _ in range(20):
        keeper.record("f", now, now)
        now += 100.0
    assert keeper.is_worth_a_snapshot("f", 0.0, now - 100.0 + idle) is worth
    assert keeper.is_worth_a_snapshot("f", now - 101.0 + idle, now - 100.0 + idle), "it was used a second ago"
    assert not keeper.is_worth_a_snapshot("none", 0.0, now)
