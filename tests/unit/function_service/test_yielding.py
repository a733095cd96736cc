"""Who meets his CPU limit gives way while the machine has time left over."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from function_service.engines.embedded.yielding import HOLD, TICK, Yielding


@dataclass(eq=False)
class Group:
    """A control group as the kernel keeps one."""

    met: int = 0
    gives_way: bool = False
    looked_at: list[float] = field(default_factory=list)

    def limit_met(self) -> int:
        self.looked_at.append(time.monotonic())
        return self.met

    def give_way(self) -> None:
        self.gives_way = True

    def give_way_no_more(self) -> None:
        self.gives_way = False


class Machine:
    """How much of the processors' time is left over."""

    def __init__(self) -> None:
        self.share = 0.5
        self._left, self._at = 0.0, time.monotonic()

    def left_over(self) -> tuple[float, float]:
        now = time.monotonic()
        self._left += (now - self._at) * self.share * (os.cpu_count() or 1)
        self._at = now
        return now, self._left


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def above() -> Group:
    return Group(gives_way=True)  # as a service that was killed may have left it


@pytest.fixture
async def yielding(above: Group, machine: Machine) -> AsyncIterator[Yielding]:
    yielding = Yielding(above, machine.left_over)
    task = asyncio.create_task(yielding.run())
    await asyncio.sleep(0)
    yield yielding
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def become(group: Group, *, gives_way: bool) -> None:
    async with asyncio.timeout(HOLD + 10):
        while group.gives_way != gives_way:
            await asyncio.sleep(TICK / 5)


async def test_who_meets_its_limit_gives_way_until_it_has_not_for_a_while(
    yielding: Yielding, above: Group
) -> None:
    hog, neighbour = Group(), Group()
    yielding.watch(hog, "hog")
    yielding.watch(neighbour, "neighbour")
    assert not above.gives_way
    hog.met += 1
    await become(hog, gives_way=True)
    assert above.gives_way
    assert not neighbour.gives_way
    began = time.monotonic()
    await become(hog, gives_way=False)
    assert time.monotonic() - began > HOLD - 3 * TICK
    assert not above.gives_way


async def test_what_its_function_did_just_before_counts_for_the_next_group(yielding: Yielding) -> None:
    first, second, other = Group(), Group(), Group()
    yielding.watch(first, "hog")
    first.met += 1
    await become(first, gives_way=True)
    yielding.forget(first)
    yielding.watch(second, "hog")
    yielding.watch(other, "other")
    assert second.gives_way
    assert not other.gives_way
    await become(second, gives_way=False)


async def test_a_group_that_a_killed_service_has_left_giving_way_is_freed(yielding: Yielding) -> None:
    group = Group(gives_way=True)
    yielding.watch(group, "survivor")
    assert not group.gives_way


async def test_where_no_time_is_left_over_nobody_gives_way(
    yielding: Yielding, above: Group, machine: Machine
) -> None:
    hog = Group()
    yielding.watch(hog, "hog")
    hog.met += 1
    await become(hog, gives_way=True)
    machine.share = 0.0
    await become(hog, gives_way=False)
    assert not above.gives_way
    hog.met += 1
    await asyncio.sleep(4 * TICK)
    assert not hog.gives_way
    machine.share = 0.5
    hog.met += 1
    await become(hog, gives_way=True)


async def test_the_last_one_that_is_forgotten_frees_the_group_above(yielding: Yielding, above: Group) -> None:
    hogs = [Group(), Group()]
    for hog in hogs:
        yielding.watch(hog, "hog")
        hog.met += 1
    for hog in hogs:
        await become(hog, gives_way=True)
    yielding.forget(hogs[0])
    assert above.gives_way
    yielding.forget(hogs[1])
    assert not above.gives_way


async def test_on_a_quiet_machine_nobody_is_looked_at(yielding: Yielding, machine: Machine) -> None:
    machine.share = 1.0
    group = Group()
    yielding.watch(group, "quiet")
    await asyncio.sleep(6 * TICK)
    assert len(group.looked_at) == 1  # when it was added


async def test_of_many_groups_each_has_its_turn(yielding: Yielding) -> None:
    groups = [Group() for _ in range(100)]
    for number, group in enumerate(groups):
        yielding.watch(group, f"f{number}")
    last = groups[-1]
    last.met += 1
    await become(last, gives_way=True)
    assert sum(len(group.looked_at) for group in groups[:20]) < 20 * 5
