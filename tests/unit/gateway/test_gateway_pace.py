"""How many calls may wait: as many as get their slot in time, by how quickly those before them did."""

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker import Broker
from gateway.pace import Pace, longest_queue
from gateway.refusals import Refusals
from pilotlight.problems import Problem
from tests.unit.gateway.test_gateway_leases import Service, calls, route, spin


def paced(interval: float, count: int = 40) -> Pace:
    pace = Pace()
    for number in range(count):
        pace.handed(number * interval)
    return pace


def test_the_pace_is_that_of_the_latest_slots() -> None:
    assert paced(0.5, count=7).interval(4.0) is None
    assert paced(0.5).interval(40 * 0.5) == pytest.approx(0.5)
    changed = paced(0.5)
    for number in range(40):
        changed.handed(20.0 + number * 0.01)
    assert changed.interval(20.4) == pytest.approx(0.01)


def test_a_stop_slows_the_pace_and_an_empty_queue_forgets_it() -> None:
    pace = paced(0.01)
    assert pace.interval(0.4 + 32.0) == pytest.approx(1.0, rel=0.02)
    pace.begin(0.4)
    assert pace.interval(0.4) is None


@pytest.mark.parametrize(
    ("interval", "slots", "timeout", "longest"),
    [
        (0.005, 2, 10.0, 100),  # half a second's worth
        (15.0, 2, 60.0, 2),  # calls of 30 s on two slots: one behind each
        (4.0, 1, 10.0, 1),
        (7.0, 1, 10.0, 0),  # it would run out of time
        (0.0, 1, 10.0, 1 << 30),
    ],
)
def test_a_queue_is_as_long_as_what_can_be_answered_in_time(
    interval: float, slots: int, timeout: float, longest: int
) -> None:
    assert longest_queue(interval, slots=slots, wait=0.5, timeout=timeout) == longest


@given(
    interval=st.floats(1e-4, 100),
    slots=st.integers(1, 1000),
    wait=st.floats(0.01, 60),
    timeout=st.floats(0.1, 3600),
)
def test_who_may_wait_has_half_of_the_timeout_left(
    interval: float, slots: int, wait: float, timeout: float
) -> None:
    assert longest_queue(interval, slots=slots, wait=wait, timeout=timeout) * interval <= timeout / 2 + 1e-6


async def test_a_call_that_would_wait_too_long_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    service, on = Service(), route(max_instances=1, timeout=10.0)
    broker = Broker(service, 1000, 0.5)  # type: ignore[arg-type]
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    waiting = calls(broker, 55, on)
    await spin()
    service.grant()
    await spin()
    for number in range(25):  # one every 100 ms: five may wait
        assert number > 15 or broker.refusal(on) is None, "a queue that has just come up is a burst"
        (done,) = [task for task in waiting if task.done()][:1]
        waiting.remove(done)
        now += 0.1
        broker.give_back((await done)[0])
        await spin()
    with pytest.raises(Problem, match=r"29 calls wait .*--queue-wait") as refusal:
        broker.queue(on)
    assert (refusal.value.kind, refusal.value.retry_after) == ("overloaded", 1)
    while len(waiting) > 5:  # those that wait already are answered
        (done,) = [task for task in waiting if task.done()][:1]
        waiting.remove(done)
        now += 0.1
        broker.give_back((await done)[0])
        await spin()
    assert broker.refusal(on) is None
    for task in waiting:
        task.cancel()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(outcome, tuple):
            broker.give_back(outcome[0])
    await broker.close(1.0)


async def test_a_full_queue_is_looked_at_again_once_a_call_has_left_it_or_time_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, on = Service(), route(max_instances=1)
    broker = Broker(service, 2)  # type: ignore[arg-type]
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    waiting = calls(broker, 2, on)
    await spin()
    service.grant()
    await spin()
    waiting += calls(broker, 1, on)
    await spin()
    assert broker.refusal(on) is broker.refusal(on) is not None
    broker.give_back((await waiting[0])[0])
    await spin()
    assert broker.refusal(on) is None
    waiting += calls(broker, 1, on)
    await spin()
    said = broker.refusal(on)
    now += 1.0
    assert broker.refusal(on) is not said is not None
    for each in waiting[1:]:
        broker.give_back((await each)[0])
    await broker.close(1.0)


async def test_a_call_that_may_wait_does_whatever_the_clock_says_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, on = Service(), route(max_instances=1)
    broker = Broker(service, 1000, 0.5)  # type: ignore[arg-type]
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    waiting = calls(broker, 40, on)
    await spin()
    assert broker.join(on) is None, "its first instance is being started"
    service.grant()
    await spin()
    for _ in range(36):
        (done,) = [task for task in waiting if task.done()][:1]
        waiting.remove(done)
        now += 0.1
        broker.give_back((await done)[0])
        await spin()
    assert broker.refusal(on) is None
    now += 10.0  # the pace of that would be too slow
    waiter = broker.join(on)
    assert waiter is not None
    with pytest.raises(Problem, match="calls wait"):
        broker.queue(on)
    for each in waiting:
        broker.give_back((await each)[0])
    broker.give_back(await broker.slot(waiter))
    await broker.close(1.0)


async def test_instances_that_are_being_started_are_expected_to_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, on = Service(), route(max_instances=10)
    broker = Broker(service, 1000, 0.5)  # type: ignore[arg-type]
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    waiting = calls(broker, 60, on)
    await spin()
    service.grant()
    await spin()
    for _ in range(25):
        (done,) = [task for task in waiting if task.done()][:1]
        waiting.remove(done)
        now += 0.1
        broker.give_back((await done)[0])
        await spin()
    assert broker.refusal(on) is None, "ten instances would get 50 calls a slot within half a second"
    for task in waiting:
        task.cancel()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(outcome, tuple):
            broker.give_back(outcome[0])
    await broker.close(1.0)


async def test_a_flood_of_refusals_is_told_as_a_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusals = Refusals()
    assert sum(refusals.singly("f") for _ in range(500)) == 10
    assert sum(refusals.singly("g") for _ in range(3)) == 3
    refusals.close()
    assert [record.getMessage() for record in caplog.records] == [
        "action=calls-refused function=f refused=500 told=10"
    ]
    assert refusals.singly("f"), "the next period begins anew"
    refusals.close()
