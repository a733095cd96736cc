"""Leases: what is asked for, who gets a slot, and that nothing is lost whoever leaves when."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_service.contract import Access, Lease, Route, RouteTable, Stages
from gateway.broker import Broker
from gateway.leases import FunctionLeases, HeldLease, State, instances_to_ask
from pilotlight.problems import Problem


def route(**changes) -> Route:
    values = {"function": "f", "app": "a", "revision": "r1", "access": Access.PUBLIC, "timeout": 10.0}
    return Route(**{**values, "concurrency": 1, "max_instances": 20, **changes})


class Service:
    """The gateway's door of a function service, in memory. `acquire` waits until the test grants it."""

    def __init__(self) -> None:
        self.pending: list[asyncio.Future] = []
        self.asked = 0
        self.released: list[str] = []
        self.claimed: list[str] = []
        self.away: list[Problem] = []  # what the next stops are answered
        self.stopped: list[str] = []
        self.diagnosed: list[str] = []
        self.held: set[str] = set()
        self._numbers = itertools.count(1)

    async def acquire(self, function: str, wait: float) -> Lease:
        self.asked += 1
        future = asyncio.get_running_loop().create_future()
        self.pending.append(future)
        try:
            lease = await future
        finally:
            self.pending.remove(future)
        self.held.add(lease.id)
        return lease

    def grant(self, **changes) -> Lease:
        number = next(self._numbers)
        values = {
            "id": f"l{number}",
            "function": "f",
            "revision": "r1",
            "instance": f"i{number}",
            "socket": "/nowhere",
            "concurrency": 1,
            "cold": True,
            "stages": Stages(),
            "idle": 30.0,
        }
        lease = Lease(**{**values, **changes})
        next(future for future in self.pending if not future.done()).set_result(lease)
        return lease

    def refuse(self, kind: str) -> None:
        next(future for future in self.pending if not future.done()).set_exception(Problem(kind, "because"))

    async def claim(self, leases: list[str]) -> None:
        self.claimed += leases

    async def release(self, lease: str) -> None:
        self.held.discard(lease)
        self.released.append(lease)

    async def stop(self, lease: str, reason: str) -> None:
        if self.away:
            raise self.away.pop()
        self.held.discard(lease)
        self.stopped.append(lease)

    async def diagnose(self, lease: str) -> tuple[str, str, list[str]]:
        self.held.discard(lease)
        self.diagnosed.append(lease)
        return "crashed", "It exited with 1.", ["boom"]


def validate(function: FunctionLeases) -> None:
    """Assert what must always hold."""
    waiting = [waiter for waiter in function.waiters if not waiter.handed.done()]
    assert not (function.free and waiting), "a call waits although a slot is free"
    assert set(function.free) == {held for held in function.open if not held.full}
    assert len(function.free) == len(set(function.free))
    assert all(held.state is State.OPEN for held in function.open)
    assert all(held.state is State.DRAINING for held in function.draining)
    assert all(0 <= held.busy <= held.lease.concurrency for held in function.open | function.draining)
    assert all(held.busy for held in function.draining), "an idle lease was not released"
    assert len(function.acquires) + len(function.open) <= max(
        function.route.max_instances, len(function.open)
    )


async def spin() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def broker(service: Service) -> AsyncIterator[Broker]:
    broker = Broker(service, 1000)  # type: ignore[arg-type]
    yield broker
    await broker.close(1.0)
    assert not service.held, "a lease was not given back"


async def wait(broker: Broker, on: Route) -> tuple[HeldLease, bool]:
    waiter = broker.queue(on)
    return await broker.slot(waiter), waiter.cold


async def come(broker: Broker, on: Route) -> tuple[HeldLease, bool]:
    """Take a slot or wait for one, with nothing between, as the gateway does it."""
    held = broker.take(on)
    return (held, False) if held is not None else await wait(broker, on)


def calls(broker: Broker, count: int, on: Route) -> list[asyncio.Task]:
    return [asyncio.create_task(wait(broker, on)) for _ in range(count)]


@given(
    waiting=st.integers(0, 1000),
    concurrency=st.integers(1, 50),
    under_way=st.integers(0, 50),
    held=st.integers(0, 50),
    max_instances=st.integers(1, 50),
)
def test_never_more_is_asked_for_than_waiting_calls_need_nor_than_is_allowed(
    waiting: int, concurrency: int, under_way: int, held: int, max_instances: int
) -> None:
    ask = instances_to_ask(
        waiting=waiting, concurrency=concurrency, under_way=under_way, held=held, max_instances=max_instances
    )
    assert ask >= 0
    if ask:
        assert ask + under_way <= math.ceil(waiting / concurrency)
        assert ask + under_way + held <= max_instances


def test_the_example_of_the_docstring() -> None:
    assert instances_to_ask(waiting=10, concurrency=4, under_way=1, held=0, max_instances=20) == 2


async def test_five_hundred_calls_ask_once_per_instance_needed(broker: Broker, service: Service) -> None:
    on = route(concurrency=10, max_instances=8)

    async def call() -> None:
        held, _ = await wait(broker, on)
        await spin()
        broker.give_back(held)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for _ in range(500):
            group.create_task(call())
        await spin()
        assert service.asked == 8
        for _ in range(8):
            service.grant(concurrency=10)
    assert service.asked == 8


async def test_who_waits_longest_is_served_first(broker: Broker, service: Service) -> None:
    first, second, third = calls(broker, 3, route(max_instances=1))
    await spin()
    service.grant()
    held, cold = await first
    assert cold
    broker.give_back(held)
    assert (await second) == (held, False)
    assert not third.done()
    broker.give_back(held)
    broker.give_back((await third)[0])


async def test_the_lease_that_was_used_last_is_used_first(broker: Broker, service: Service) -> None:
    one, two = calls(broker, 2, route())
    await spin()
    service.grant()
    service.grant()
    first, second = (await one)[0], (await two)[0]
    broker.give_back(first)
    broker.give_back(second)
    assert broker.take(route()) is second
    assert broker.take(route()) is first
    assert broker.take(route()) is None
    broker.give_back(first)
    broker.give_back(second)


async def test_a_full_queue_refuses(service: Service) -> None:
    broker = Broker(service, 2)  # type: ignore[arg-type]
    waiting = calls(broker, 2, route())
    await spin()
    with pytest.raises(Problem) as refusal:
        await wait(broker, route())
    assert refusal.value.kind == "overloaded"
    assert refusal.value.retry_after == 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await broker.close(1.0)


async def test_a_call_that_leaves_the_queue_cancels_the_acquire_nobody_needs(
    broker: Broker, service: Service
) -> None:
    one, two = calls(broker, 2, route())
    await spin()
    assert len(service.pending) == 2
    one.cancel()
    await spin()
    assert len(service.pending) == 1
    service.grant()
    broker.give_back((await two)[0])


async def test_an_acquire_whose_call_was_served_by_another_instance_goes_on(
    broker: Broker, service: Service
) -> None:
    one, two = calls(broker, 2, route())
    await spin()
    service.grant()
    held = (await one)[0]
    broker.give_back(held)
    broker.give_back((await two)[0])
    assert len(service.pending) == 1
    service.grant()
    await spin()
    assert broker.counts()["f"] == (2, 0)


async def test_a_slot_handed_to_a_call_that_is_leaving_goes_to_the_next(
    broker: Broker, service: Service
) -> None:
    one, two, three = calls(broker, 3, route(max_instances=1))
    await spin()
    service.grant()
    held, _ = await one
    broker.give_back(held)  # hands it to the second call
    two.cancel()  # which is cancelled before it can run
    async with asyncio.timeout(5):
        assert (await three)[0] is held
    assert two.cancelled()
    broker.give_back(held)
    assert broker.counts()["f"] == (1, 0)


STEPS = ("come", "come", "cancel", "grant", "refuse", "end", "end", "die", "recall", "swap", "spin")


@given(st.data())
def test_whoever_leaves_when_no_lease_is_lost(data: st.DataObject) -> None:
    """Random walks over: a call comes, a call is cancelled, an acquire ends, a call ends, an instance dies."""

    async def walk() -> None:
        service = Service()
        broker = Broker(service, 50)  # type: ignore[arg-type]
        on = route(concurrency=data.draw(st.integers(1, 3)), max_instances=data.draw(st.integers(1, 4)))
        waiting: list[asyncio.Task] = []
        running: list[HeldLease] = []
        steps = data.draw(
            st.lists(
                st.sampled_from(STEPS),
                max_size=40,
            )
        )
        for step in steps:
            match step:
                case "come":
                    waiting.append(asyncio.create_task(come(broker, on)))
                case "cancel" if waiting:
                    waiting[data.draw(st.integers(0, len(waiting) - 1))].cancel()
                case "grant" if any(not future.done() for future in service.pending):
                    service.grant(concurrency=on.concurrency, revision=on.revision)
                case "refuse" if any(not future.done() for future in service.pending):
                    service.refuse(data.draw(st.sampled_from(["no-capacity", "init-failed", "unavailable"])))
                case "end" if running:
                    broker.give_back(running.pop())
                case "die" if running:
                    broker.ended(running[-1].lease.id)
                    service.held.discard(running[-1].lease.id)
                case "recall" if running:
                    broker.recall(running[-1].lease.id)
                case "swap":
                    on = route(
                        concurrency=on.concurrency, max_instances=on.max_instances, revision=on.revision + "x"
                    )
                    broker.swap(RouteTable({"f": on}, {}))
                case "spin":
                    await spin()
            for function in broker._functions.values():
                validate(function)
            for task in [task for task in waiting if task.done()]:
                waiting.remove(task)
                if not task.cancelled() and task.exception() is None:
                    running.append(task.result()[0])
        for task in waiting:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        running += [result[0] for result in results if isinstance(result, tuple)]
        for held in running:
            broker.give_back(held)
        await broker.close(1.0)
        assert not service.held, "a lease was not given back"
        assert not service.pending, "an acquire was not cancelled"
        assert all(not function.waiters for function in broker._functions.values())

    asyncio.run(walk())


async def test_a_new_revision_drains_the_leases_of_the_old_one(broker: Broker, service: Service) -> None:
    one, two = calls(broker, 2, route())
    await spin()
    service.grant()
    service.grant()
    busy, idle = (await one)[0], (await two)[0]
    broker.give_back(idle)
    broker.swap(RouteTable({"f": route(revision="r2")}, {}))
    await spin()
    assert service.released == [idle.lease.id]
    assert broker.take(route(revision="r2")) is None
    broker.give_back(busy)
    await spin()
    assert service.released == [idle.lease.id, busy.lease.id]


async def test_a_lease_of_the_old_revision_that_arrives_after_the_switch_is_not_used(
    broker: Broker, service: Service
) -> None:
    (call,) = calls(broker, 1, route())
    await spin()
    broker.swap(RouteTable({"f": route(revision="r2")}, {}))
    old = service.grant(revision="r1")
    await spin()
    assert service.released == [old.id]
    assert not call.done()
    service.grant(revision="r2")
    held, _ = await call
    assert held.lease.revision == "r2"
    broker.give_back(held)


async def test_a_lease_of_a_revision_newer_than_the_table_is_used(broker: Broker, service: Service) -> None:
    (call,) = calls(broker, 1, route())
    await spin()
    service.grant(revision="r2")
    held, _ = await call
    broker.swap(RouteTable({"f": route(revision="r2")}, {}))
    assert held.state is State.OPEN
    broker.give_back(held)


async def test_a_function_that_is_deleted_fails_its_queue(broker: Broker, service: Service) -> None:
    (call,) = calls(broker, 1, route())
    await spin()
    broker.swap(RouteTable({}, {}))
    with pytest.raises(Problem) as refusal:
        await call
    assert refusal.value.kind == "unknown-function"
    await spin()
    assert not service.pending


async def test_recall_lets_the_last_call_end_before_the_release(broker: Broker, service: Service) -> None:
    (call,) = calls(broker, 1, route())
    await spin()
    service.grant()
    held, _ = await call
    broker.recall(held.lease.id)
    await spin()
    assert not service.released
    broker.give_back(held)
    await spin()
    assert service.released == [held.lease.id]


async def test_an_ended_instance_is_neither_used_nor_released(broker: Broker, service: Service) -> None:
    (call,) = calls(broker, 1, route())
    await spin()
    service.grant()
    held, _ = await call
    broker.give_back(held)
    broker.ended(held.lease.id)
    service.held.clear()
    await spin()
    assert broker.take(route()) is None
    assert not service.released


async def test_an_idle_lease_is_released_after_its_time(broker: Broker, service: Service) -> None:
    (call,) = calls(broker, 1, route())
    await spin()
    lease = service.grant(idle=0.02)
    broker.give_back((await call)[0])
    async with asyncio.timeout(5):
        while not service.released:
            await asyncio.sleep(0.001)
    assert service.released == [lease.id]
    assert broker.take(route()) is None


async def test_a_lease_that_is_used_again_is_kept_past_its_time(broker: Broker, service: Service) -> None:
    (call,) = calls(broker, 1, route())
    await spin()
    service.grant(idle=0.02)
    held, _ = await call
    broker.give_back(held)
    assert broker.take(route()) is held
    loop = asyncio.get_running_loop()
    fired = loop.create_future()
    loop.call_later(0.03, fired.set_result, None)
    await fired
    assert not service.released
    broker.give_back(held)


@pytest.mark.parametrize("kind", ["init-failed", "crashed", "out-of-memory", "timeout", "no-capacity"])
async def test_a_failed_start_ends_all_calls_that_nothing_else_can_serve(
    broker: Broker, service: Service, kind: str
) -> None:
    waiting = calls(broker, 5, route(max_instances=1))
    await spin()
    service.refuse(kind)
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [problem.kind for problem in ended] == [kind] * 5
    assert len({id(problem) for problem in ended}) == 5
    assert service.asked == 1


async def test_without_capacity_calls_wait_for_the_instances_there_are(
    broker: Broker, service: Service
) -> None:
    one, two = calls(broker, 2, route())
    await spin()
    service.grant()
    await spin()
    service.refuse("no-capacity")
    held, _ = await one
    assert not two.done()
    broker.give_back(held)
    broker.give_back((await two)[0])


async def test_while_the_function_service_is_away_calls_wait_for_it(broker: Broker, service: Service) -> None:
    (call,) = calls(broker, 1, route())
    await spin()
    service.refuse("unavailable")
    await spin()
    assert not call.done()
    assert broker._functions["f"].vain().kind == "unavailable"
    async with asyncio.timeout(5):
        while not service.pending:
            await asyncio.sleep(0.001)
    service.grant()
    broker.give_back((await call)[0])
    assert broker._functions["f"].vain().kind == "timeout"


async def test_leases_outlive_the_connection_and_are_given_back_when_it_is_there_again(
    broker: Broker, service: Service
) -> None:
    one, two = calls(broker, 2, route())
    await spin()
    service.grant()
    service.grant()
    busy, idle = (await one)[0], (await two)[0]
    broker.give_back(idle)
    broker.disconnected()
    assert broker.take(route()) is idle
    broker.give_back(idle)
    broker.reconnected()
    assert broker.take(route()) is None
    assert busy.state is State.DRAINING
    await spin()
    assert (service.claimed, service.released) == ([busy.lease.id], [idle.lease.id])
    broker.give_back(busy)
    await spin()
    assert service.released == [idle.lease.id, busy.lease.id]


async def test_leases_are_claimed_again_when_the_function_service_is_lost_again(
    broker: Broker, service: Service
) -> None:
    (one,) = calls(broker, 1, route())
    await spin()
    service.grant()
    busy, _ = await one
    for _ in range(2):
        broker.disconnected()
        broker.reconnected()
        await spin()
    assert service.claimed == [busy.lease.id] * 2
    broker.give_back(busy)
    await spin()
    assert service.released == [busy.lease.id]


async def test_a_stop_is_asked_for_until_the_function_service_is_there_to_hear_it(
    broker: Broker, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.broker._PAUSE", 0.01)
    (one,) = calls(broker, 1, route())
    await spin()
    service.grant()
    held, _ = await one
    service.away = [Problem("unavailable", "It may be restarting.") for _ in range(3)]
    await broker.stop(held, "too slow")
    assert (service.away, service.stopped) == ([], [held.lease.id])
    broker.give_back(held)


async def test_a_stop_is_asked_once_and_frees_the_place_for_another(broker: Broker, service: Service) -> None:
    one, two = calls(broker, 2, route(max_instances=1))
    await spin()
    service.grant()
    held, _ = await one
    ending = broker.stop(held, "too slow")
    assert broker.stop(held, "again") is ending
    broker.give_back(held)
    await ending
    assert service.stopped == [held.lease.id]
    assert not two.done()
    service.grant()
    broker.give_back((await two)[0])
    problem = await broker.diagnose(held)
    assert problem.kind == "crashed"
    assert "too slow" in problem.detail
    assert not service.diagnosed


async def test_a_diagnosis_is_asked_once_for_all_calls_of_an_instance(
    broker: Broker, service: Service
) -> None:
    one, two = calls(broker, 2, route(concurrency=2))
    await spin()
    service.grant(concurrency=2)
    held, _ = await one
    await two
    problems = await asyncio.gather(broker.diagnose(held), broker.diagnose(held))
    assert [problem.detail for problem in problems] == ["It exited with 1."] * 2
    assert problems[0].extra == {"logs": ["boom"]}
    assert service.diagnosed == [held.lease.id]
    broker.give_back(held)
    broker.give_back(held)


async def test_an_orphaned_lease_is_given_back(broker: Broker, service: Service) -> None:
    (call,) = calls(broker, 1, route())
    await spin()
    lease = service.grant()
    broker.give_back((await call)[0])
    broker.orphaned(lease)
    await spin()
    assert service.released == [lease.id]


async def test_closing_fails_the_queue_and_gives_everything_back(service: Service) -> None:
    broker = Broker(service, 10)  # type: ignore[arg-type]
    one, two = calls(broker, 2, route())
    await spin()
    service.grant()
    held, _ = await one
    closing = asyncio.create_task(broker.close(1.0))
    await spin()
    with pytest.raises(Problem) as refusal:
        await two
    assert refusal.value.kind == "unavailable"
    broker.give_back(held)
    await closing
    assert not service.pending


async def test_an_idle_lease_is_given_back_where_another_gateway_wants_one(
    broker: Broker, service: Service
) -> None:
    on = route(max_instances=2)
    tasks = calls(broker, 2, on)
    await spin()
    busy, idle = service.grant(), service.grant()
    (first, _), (second, _) = await asyncio.gather(*tasks)
    broker.give_back(second)
    broker.spare("f")
    await spin()
    assert service.released == [idle.id]
    assert not service.pending, "nobody waits, so nothing is asked for"
    broker.give_back(first)
    assert service.held == {busy.id}


async def test_a_busy_lease_is_given_back_when_its_calls_have_ended_and_one_at_a_time(
    broker: Broker, service: Service
) -> None:
    on = route(max_instances=2)
    tasks = calls(broker, 2, on)
    await spin()
    service.grant()
    service.grant()
    (first, _), (second, _) = await asyncio.gather(*tasks)
    waiting = calls(broker, 1, on)
    broker.spare("f")
    assert not broker._functions["f"].draining, "it has just begun to use them"
    first.since = second.since = 0.0
    broker.spare("f")
    broker.spare("f")
    await spin()
    assert service.released == []
    broker.give_back(first)
    broker.give_back(second)
    await spin()
    assert len(service.released) == 1
    (third, _) = await waiting[0]
    broker.give_back(third)
    broker.spare("unknown")


async def test_a_call_whose_time_runs_out_as_it_is_handed_a_slot_is_told_so(
    broker: Broker, service: Service
) -> None:
    waiter = broker.queue(route())
    leaving = asyncio.create_task(broker.slot(waiter))
    await spin()
    service.grant()
    async with asyncio.timeout(5):
        while not waiter.handed.done():
            await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert waiter.left is not None
    assert waiter.left.kind == "timeout"
