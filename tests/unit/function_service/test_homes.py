"""Which machine a function is at home on: claims that are taken, kept, lost, given up, and that lapse."""

import pytest

from function_service.contract import Machines
from function_service.homes import Homes
from pilotlight.machines import Machine, machine_of
from pilotlight.problems import Problem
from pilotlight.store_memory import MemoryStore


class World:
    """Services of several machines on one store, and a clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.store = MemoryStore(clock=lambda: self.now)

    def service(self, name: str, address: str = "") -> Homes:
        here = Machine(name, address or f"{name}:1")
        return Homes(self.store, here, clock=lambda: self.now, lease=6.0)


async def elsewhere(homes: Homes, function: str = "f") -> str | None:
    """Return where a function is that can't be taken."""
    with pytest.raises(Problem) as caught:
        await homes.take(function)
    return machine_of(caught.value)


async def test_who_comes_first_has_a_function_and_others_are_told_where_it_is() -> None:
    world = World()
    one, two = world.service("one"), world.service("two")
    await one.take("f")
    await one.take("f")
    assert await elsewhere(two) == "one:1"
    await two.take("g")
    assert await elsewhere(one, "g") == "two:1"


async def test_a_claim_lasts_as_long_as_it_is_renewed_and_lapses_when_its_service_is_dead() -> None:
    world = World()
    one, two = world.service("one"), world.service("two")
    one.present = lambda: {"f"}
    await one.take("f")
    for _ in range(5):
        world.now += 4
        await one.renew()
    assert await elsewhere(two) == "one:1"
    world.now += 6.1
    await two.take("f")
    assert await elsewhere(one) == "two:1"


async def test_functions_without_instances_are_given_up_at_once() -> None:
    world = World()
    one, two = world.service("one"), world.service("two")
    await one.take("f")
    await one.renew()
    await two.take("f")


async def test_a_service_that_has_lost_a_function_lets_go_of_it_and_keeps_the_others() -> None:
    world = World()
    one, two = world.service("one"), world.service("two")
    lost: list[str] = []
    one.present, one.on_lost = lambda: {"f", "g", "h"}, lost.append
    for function in ("f", "g", "h"):
        await one.take(function)
    world.now += 7  # it could not renew them, and one was asked for elsewhere
    await two.take("g")
    await one.renew()
    assert lost == ["g"]
    assert await elsewhere(two, "f") == "one:1"
    assert await elsewhere(two, "h") == "one:1"


async def test_the_next_service_of_a_machine_has_what_the_former_one_had() -> None:
    world = World()
    await world.service("one").take("f")
    again, two = world.service("one", "elsewhere:2"), world.service("two")
    again.present = lambda: {"f"}  # an instance has outlived the former one
    await again.renew()
    assert await elsewhere(two) == "elsewhere:2"


async def test_a_service_that_stops_gives_everything_up() -> None:
    world = World()
    one, two = world.service("one"), world.service("two")
    await one.meet()
    await one.take("f")
    await one.close()
    await two.take("f")
    await two.meet()
    assert two.machines == Machines(())
    await two.close()


async def test_machines_know_each_other_and_where_the_repositories_are() -> None:
    world = World()
    one, two = world.service("one"), world.service("two")
    told: list[Machines] = []
    two.on_machines = told.append
    await one.meet()
    await one.settle()
    await two.meet()
    assert told == [Machines(("one:1",), "one:1")]
    with pytest.raises(Problem, match="one:1") as caught:
        await two.settle()
    assert caught.value.kind == "conflict"
    await world.service("one", "moved:1").settle()
    with pytest.raises(Problem, match="moved:1"):
        await two.settle()
    await one.close()
    await two.close()
