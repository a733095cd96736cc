"""Several gateways and the instances of one function: who holds all gives back, who waits longest gets it."""

import asyncio
from pathlib import Path

import pytest

from function_service.contract import Lease, Wanted
from function_service.engines import fake
from pilotlight.problems import Problem
from tests.support.fleet import Gateway, World, until, world


def acquire(w: World, gateway: Gateway, wait: float = 5.0) -> asyncio.Task[Lease]:
    return asyncio.create_task(w.fleet.acquire("f", gateway.peer, wait))


async def test_who_holds_the_only_instance_is_asked_for_it_and_who_waits_gets_it(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        one, other = w.gateway(), w.gateway()
        lease = await w.fleet.acquire("f", one.peer, 1.0)
        waiting = acquire(w, other)
        await until(lambda: Wanted("f") in one.told)
        assert not waiting.done()
        await w.fleet.release(lease.id)
        assert (await waiting).id == lease.id
        assert w.fleet.held(lease.id).holder is other.peer
        assert Wanted("f") not in other.told


async def test_who_gives_back_and_wants_again_waits_for_its_turn(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        one, other = w.gateway(), w.gateway()
        lease = await w.fleet.acquire("f", one.peer, 1.0)
        waiting = acquire(w, other)
        await until(lambda: Wanted("f") in one.told)
        returning = asyncio.create_task(w.fleet.release(lease.id))
        again = acquire(w, one)  # in the same turn of the loop, as a gateway whose calls wait does it
        await returning
        assert (await waiting).id == lease.id
        assert not again.done()
        await until(lambda: Wanted("f") in other.told)
        await w.fleet.release(lease.id)
        assert (await again).id == lease.id


async def test_a_gateway_that_holds_all_itself_is_refused_at_once(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        one = w.gateway()
        await w.fleet.acquire("f", one.peer, 1.0)
        with pytest.raises(Problem) as caught:
            await w.fleet.acquire("f", one.peer, 5.0)
        assert caught.value.kind == "no-capacity"


async def test_who_waits_in_vain_is_refused_in_the_end(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        one, other = w.gateway(), w.gateway()
        lease = await w.fleet.acquire("f", one.peer, 1.0)
        with pytest.raises(Problem) as caught:
            await w.fleet.acquire("f", other.peer, 0.01)
        assert caught.value.kind == "no-capacity"
        await w.fleet.release(lease.id)
        assert (await w.fleet.acquire("f", one.peer, 1.0)).id == lease.id, "nobody is left in the queue"


async def test_an_instance_that_is_being_started_for_another_gateway_is_waited_for(tmp_path: Path) -> None:
    async with world(fake.Slow(0.05), tmp_path) as w:
        await w.deploy(max_instances=1)
        one, other = w.gateway(), w.gateway()
        starting, waiting = acquire(w, one), acquire(w, other)
        lease = await starting
        await until(lambda: Wanted("f") in one.told)
        await w.fleet.release(lease.id)
        assert (await waiting).id == lease.id


async def test_what_the_dead_held_goes_to_who_waits(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        one, other = w.gateway(), w.gateway()
        lease = await w.fleet.acquire("f", one.peer, 1.0)
        waiting = acquire(w, other)
        await until(lambda: Wanted("f") in one.told)
        one.go()
        assert (await waiting).id != lease.id, "a gateway's instances end with it"


async def test_who_stops_waiting_lets_the_next_one_in(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        one, other, third = w.gateway(), w.gateway(), w.gateway()
        lease = await w.fleet.acquire("f", one.peer, 1.0)
        first = acquire(w, other)
        await until(lambda: Wanted("f") in one.told)
        second = acquire(w, third)
        await asyncio.sleep(0)
        returning = asyncio.create_task(w.fleet.release(lease.id))
        await asyncio.sleep(0)
        first.cancel()
        await returning
        assert (await second).id == lease.id
