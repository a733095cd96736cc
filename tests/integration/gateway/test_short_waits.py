"""Calls that wait for a slot of a function which has all its instances: without aiohttp, and back to it in need."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from function_service.contract import Machines
from tests.fakes.instances import Exchange
from tests.integration.gateway.conftest import Caller, Rack
from tests.support.platform import free_port


@dataclass
class Busy:
    """The function `f`, whose only instance has a call that ends when `free` is set."""

    rack: Rack
    free: asyncio.Event
    seen: list[str] = field(default_factory=list)
    closing: bool = False  # whether the instance closes connections, from now on
    callers: list[Caller] = field(default_factory=list)

    async def handle(self, exchange: Exchange) -> None:
        body = await exchange.body()
        self.seen.append(exchange.target)
        if exchange.target == "/hold":
            await self.free.wait()
        if self.closing:
            exchange.keep_alive = False
            await exchange.reply(200, b"last", ("Connection", "close"))
        else:
            await exchange.reply(200, body or exchange.target.encode())

    async def caller(self) -> Caller:
        self.callers.append(Caller(*await self.rack.connect()))
        return self.callers[-1]

    async def waiting(self, count: int) -> None:
        """Return once so many calls wait."""
        async with asyncio.timeout(10):
            while await self.queued() != count:
                await asyncio.sleep(0.005)

    async def queued(self) -> int:
        async with self.rack.get("/metrics") as metrics:
            found = [
                line
                for line in (await metrics.text()).splitlines()
                if line.startswith("pilotlight_queue_length{")
            ]
        return int(float(found[0].split()[-1])) if found else 0


@pytest.fixture
async def busy(rack: Rack, long_way: list[str], request: pytest.FixtureRequest) -> AsyncIterator[Busy]:
    busy = Busy(rack, asyncio.Event())
    await rack.deploy("f", busy.handle, max_instances=1, **getattr(request, "param", {}))
    first = await busy.caller()
    await first.call("/first")
    first.send("/hold")
    async with asyncio.timeout(10):
        while "/hold" not in busy.seen:
            await asyncio.sleep(0.001)
    del long_way[:]
    yield busy
    busy.free.set()
    for each in busy.callers:
        each.writer.close()


async def test_they_are_answered_in_their_order_and_say_how_long_they_waited(busy: Busy, long_way) -> None:
    callers = [await busy.caller() for _ in range(5)]
    for number, each in enumerate(callers):
        each.send(f"/{number}", b"body", "POST")
        await busy.waiting(number + 1)
    busy.free.set()
    for each in callers:
        status, head, body = await each.receive()
        assert (status, body) == (200, b"body")
        waited = float(head.split("wait;dur=")[1].split(",")[0])
        assert waited > 1
        assert "Pilotlight-Start: warm" in head
    assert busy.seen[2:] == [f"/{number}" for number in range(5)]
    assert long_way == []
    await busy.rack.service.until(lambda: len(busy.rack.service.usage) == 7)
    assert all(call.waited > 0.001 for call in busy.rack.service.usage[2:])


async def test_a_caller_that_goes_away_leaves_the_queue(busy: Busy, long_way) -> None:
    staying, going = await busy.caller(), await busy.caller()
    going.send("/going")
    await busy.waiting(1)
    staying.send("/staying")
    await busy.waiting(2)
    going.writer.close()
    await busy.waiting(1)
    busy.free.set()
    assert (await staying.receive())[2] == b"/staying"
    assert "/going" not in busy.seen
    await busy.rack.service.until(lambda: 499 in [call.status for call in busy.rack.service.usage])
    assert busy.rack.service.stopped == []
    assert long_way == []


async def test_a_caller_that_goes_away_as_its_turn_comes_takes_no_slot_with_it(busy: Busy) -> None:
    for number in range(20):
        going = await busy.caller()
        going.send(f"/going-{number}")
        await busy.waiting(1)
        busy.free.set()
        await asyncio.sleep(number * 0.0001)
        going.writer.transport.abort()
        after = await busy.caller()
        assert (await after.call("/after"))[0] == 200
        busy.free.clear()
        busy.callers[0].send("/hold")
        seen = len(busy.seen)
        async with asyncio.timeout(10):
            while "/hold" not in busy.seen[seen - 1 :]:
                await asyncio.sleep(0.001)


async def test_what_comes_behind_one_that_waits_is_answered_behind_it(busy: Busy, long_way) -> None:
    caller = await busy.caller()
    caller.send("/one")
    await busy.waiting(1)
    caller.send("/two")
    busy.free.set()
    assert [(await caller.receive())[2] for _ in range(2)] == [b"/one", b"/two"]
    assert long_way == ["/function/f/one (begun)", "/function/f/two"]


async def test_an_instance_that_closes_its_connections_is_connected_to_anew(busy: Busy, long_way) -> None:
    caller = await busy.caller()
    caller.send("/next")
    await busy.waiting(1)
    busy.closing = True
    busy.free.set()
    assert (await caller.receive())[2] == b"last"
    assert long_way == ["/function/f/next (begun)"]


async def test_when_the_instance_dies_they_are_answered_by_the_next_one(busy: Busy, long_way) -> None:
    caller = await busy.caller()
    caller.send("/next")
    await busy.waiting(1)
    await busy.rack.service.instances_made[0].kill()
    assert (await busy.callers[0].receive())[0] == 502
    status, head, body = await caller.receive()
    assert (status, body) == (200, b"/next")
    assert "Pilotlight-Start: cold" in head
    assert long_way == ["/function/f/hold (begun)", "/function/f/next (begun)"]


@pytest.mark.parametrize("busy", [{"timeout": 30.0}], indirect=True)
async def test_when_the_function_moves_and_comes_back_they_are_answered_here(busy: Busy) -> None:
    caller = await busy.caller()
    caller.send("/next")
    await busy.waiting(1)
    service = busy.rack.service
    service.tell(Machines((f"127.0.0.1:{free_port()}",), ""))  # which does not answer
    await busy.rack.settle()
    await service.stop_serving()
    await busy.waiting(0)  # the other machine is asked from now on
    await service.start()
    assert (await caller.receive())[2] == b"/next"


async def test_a_function_that_is_deleted_meanwhile_is_unknown(busy: Busy) -> None:
    caller = await busy.caller()
    caller.send("/next")
    await busy.waiting(1)
    await busy.rack.service.delete_function("f")
    status, _, body = await caller.receive()
    assert (status, json.loads(body)["type"]) == (404, "urn:pilotlight:problem:unknown-function")


@pytest.mark.parametrize("busy", [{"timeout": 0.8}], indirect=True)
async def test_their_time_counts_from_the_arrival(busy: Busy) -> None:
    busy.rack.service.gate.clear()  # there is no other instance when the one that is held runs out of time
    caller = await busy.caller()
    began = asyncio.get_running_loop().time()
    status, _, body = await caller.call("/next")
    assert (status, json.loads(body)["type"]) == (504, "urn:pilotlight:problem:timeout")
    assert 0.7 < asyncio.get_running_loop().time() - began < 5
    assert "/next" not in busy.seen
    await busy.waiting(0)


async def test_a_gateway_that_stops_answers_them(busy: Busy) -> None:
    caller = await busy.caller()
    caller.send("/next")
    await busy.waiting(1)
    stopping = asyncio.create_task(busy.rack.stop())
    await asyncio.sleep(0.05)
    busy.free.set()
    status, head, body = await caller.receive()
    assert (status, body) == (200, b"/next")
    assert "Connection: close" in head
    await stopping


@pytest.mark.parametrize("settings", [20], indirect=True)
async def test_of_calls_that_come_at_once_as_many_wait_as_there_is_room_for(rack: Rack, long_way) -> None:
    open_ = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await open_.wait()
        await exchange.reply(200, b"done")

    await rack.deploy("f", slow, max_instances=1)
    waiting = [asyncio.create_task(rack.get("/function/f/wait").__aenter__()) for _ in range(20)]
    async with asyncio.timeout(10):
        while True:
            async with rack.get("/metrics") as metrics:
                if 'pilotlight_queue_length{function="f"} 19.0' in await metrics.text():
                    break
    callers = [Caller(*await rack.connect()) for _ in range(10)]
    del long_way[:]
    for each in callers:
        each.send("/more")
    answers = [asyncio.create_task(each.receive()) for each in callers]
    await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
    while sum(each.done() for each in answers) < 9:
        await asyncio.sleep(0.01)
    assert long_way == []
    open_.set()
    assert sorted(each[0] for each in await asyncio.gather(*answers)) == [200] + [429] * 9
    for each in waiting:
        (await each).close()
    for each in callers:
        each.writer.close()
