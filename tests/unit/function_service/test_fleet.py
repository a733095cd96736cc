"""The fleet and the pool on a fake engine: what is promised when things happen at once, or go wrong."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from function_service.contract import Ended, Recall
from function_service.engines import fake
from function_service.engines.base import Assignment, End, Sandbox, Untouched
from function_service.instance import State
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter
from tests.support.fleet import World, revision, until, world


async def test_an_instance_is_made_leased_and_used_again(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        gateway = w.gateway()
        first = await w.fleet.acquire("f", gateway.peer, 1.0)
        await w.fleet.release(first.id)
        second = await w.fleet.acquire("f", gateway.peer, 1.0)
        assert (first.cold, second.cold, first.id) == (True, False, second.id)


async def test_the_instance_used_last_is_leased_first(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        peer = w.gateway().peer
        leases = [await w.fleet.acquire("f", peer, 1.0) for _ in range(3)]
        for lease in leases:
            await w.fleet.release(lease.id)
            w.fleet.record("f", lease.id, 2e9 if lease is leases[1] else 1e9, 0.1)
        assert (await w.fleet.acquire("f", peer, 1.0)).id == leases[1].id


async def test_calls_at_once_never_make_more_instances_than_allowed(tmp_path: Path) -> None:
    async with world(fake.Slow(), tmp_path) as w:
        await w.deploy(max_instances=3)
        peer = w.gateway().peer
        answers = await asyncio.gather(
            *(w.fleet.acquire("f", peer, 0.2) for _ in range(10)), return_exceptions=True
        )
        refusals = [a for a in answers if isinstance(a, Problem)]
        assert (len(refusals), w.engine.made) == (7, 3)
        assert {(r.kind, r.retry_after) for r in refusals} == {("no-capacity", 1)}


async def test_nobody_takes_the_instance_that_another_call_had_made(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        peer = w.gateway().peer
        first = asyncio.create_task(w.fleet.acquire("f", peer, 1.0))
        while not first.done():
            with contextlib.suppress(Problem):  # a call at every turn of the loop
                await asyncio.wait_for(w.fleet.acquire("f", peer, 0.0), 1)
                pytest.fail("it was taken")
            await asyncio.sleep(0)
        assert (await first).cold


@pytest.mark.parametrize("turns", range(12))
async def test_a_start_whose_caller_goes_serves_the_next_call(tmp_path: Path, turns: int) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        gateway = w.gateway()
        call = asyncio.create_task(w.fleet.acquire("f", gateway.peer, 1.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        came = call.done()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        if came:
            await w.fleet.release(call.result().id)
        await until(lambda: not turns or any(i.state is State.IDLE for i in w.fleet.all()))
        again = await w.fleet.acquire("f", gateway.peer, 1.0)
        assert w.engine.made == 1
        assert again.cold is (turns == 0)


async def test_an_instance_whose_gateway_goes_is_ended(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        gateway, other = w.gateway(), w.gateway()
        await w.fleet.acquire("f", gateway.peer, 1.0)
        kept = await w.fleet.acquire("f", other.peer, 1.0)
        gateway.go()
        await until(lambda: len(w.fleet.all()) == 1)
        assert w.fleet.all()[0].id == kept.id


@pytest.mark.parametrize("turns", range(12))
async def test_no_instance_stays_leased_to_a_gateway_that_goes_during_the_start(
    tmp_path: Path, turns: int
) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        gateway = w.gateway()
        call = asyncio.create_task(w.fleet.acquire("f", gateway.peer, 1.0))
        gateway.peer.tasks[1] = call  # so that it is cancelled as the server does
        for _ in range(turns):
            await asyncio.sleep(0)
        gateway.go()
        await asyncio.gather(call, return_exceptions=True)
        for _ in range(30):
            await asyncio.sleep(0)
        assert [i for i in w.fleet.all() if i.held] == []


async def test_a_new_revision_recalls_what_is_leased_and_ends_what_is_idle(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        gateway = w.gateway()
        leased, idle = [await w.fleet.acquire("f", gateway.peer, 1.0) for _ in range(2)]
        await w.fleet.release(idle.id)
        await w.deploy(number=2)
        await until(lambda: len(w.fleet.all()) == 1)
        assert gateway.told == [Recall(leased.id)]
        assert (await w.fleet.acquire("f", gateway.peer, 1.0)).revision == "f-2"
        await w.fleet.release(leased.id)
        assert [i.revision.id for i in w.fleet.all()] == ["f-2"]


@pytest.mark.parametrize("turns", range(12))
async def test_a_call_that_started_before_a_new_revision_gets_the_new_one_or_is_recalled(
    tmp_path: Path, turns: int
) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        gateway = w.gateway()
        call = asyncio.create_task(w.fleet.acquire("f", gateway.peer, 1.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        await w.deploy(number=2)
        lease = await call
        assert lease.revision == "f-2" or Recall(lease.id) in gateway.told


async def test_a_full_function_can_be_replaced(tmp_path: Path) -> None:
    """What still answers calls of the old revision does not count for the new one."""
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        peer = w.gateway().peer
        await w.fleet.acquire("f", peer, 1.0)
        await w.deploy(number=2, max_instances=1)
        assert (await w.fleet.acquire("f", peer, 1.0)).revision == "f-2"


async def test_a_rehearsal_neither_counts_nor_can_be_leased(tmp_path: Path) -> None:
    async with world(fake.Slow(), tmp_path) as w:
        await w.deploy(max_instances=1)
        rehearsal = asyncio.create_task(w.fleet.rehearse(revision(), 1.0))
        lease = await w.fleet.acquire("f", w.gateway().peer, 1.0)
        await rehearsal
        assert [i.id for i in w.fleet.all()] == [lease.id]
        assert not list(tmp_path.glob("*.jsonl"))


async def test_a_rehearsal_waits_longer_for_a_sandbox_than_its_function_may_take(tmp_path: Path) -> None:
    class Busy(fake.FakeEngine):
        async def make(self, interpreter: Interpreter, *, awaited: bool) -> Sandbox:
            await asyncio.sleep(0.3)
            return await super().make(interpreter, awaited=awaited)

    async with world(Busy(), tmp_path) as w:
        await w.fleet.rehearse(revision(), 0.2)
        assert w.engine.made > 0


async def test_a_recalled_instance_that_is_not_given_back_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("function_service.fleet._DRAIN_MARGIN", 0.0)
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(timeout=0.05)
        gateway = w.gateway()
        lease = await w.fleet.acquire("f", gateway.peer, 1.0)
        await w.deploy(number=2)
        async with asyncio.timeout(5):
            while Ended(lease.id) not in gateway.told:
                await asyncio.sleep(0.01)
        ended = w.fleet.held(lease.id)
        assert ended is not None
        assert "did not end in time" in ended.reason


async def test_to_zero_ends_idle_ones_and_recalls_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("function_service.fleet._IDLE_WITHIN", 0.05)
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        gateway = w.gateway()
        leases = [await w.fleet.acquire("f", gateway.peer, 1.0) for _ in range(3)]
        await w.fleet.release(leases[0].id)
        assert await w.fleet.to_zero("f") == 3
        assert {e.lease for e in gateway.told if isinstance(e, Recall)} == {leases[1].id, leases[2].id}
        for lease in leases[1:]:
            await w.fleet.release(lease.id)
        assert w.fleet.all() == []


async def test_a_minimum_is_kept_and_kept_again(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.fleet.start_scaler()
        await w.deploy(min_instances=2)
        await until(lambda: len(w.fleet.all()) == 2)
        w.engine.die(w.fleet.all()[0].sandbox)
        await until(lambda: len(w.fleet.all()) == 1)
        w.fleet.routes_changed()
        w.fleet.routes_changed()
        await until(lambda: len(w.fleet.all()) == 2)
        assert w.engine.made == 3


async def test_a_minimum_that_cannot_be_kept_is_logged_and_not_tried_all_the_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(fake.Bad(), tmp_path) as w:
        await w.deploy(min_instances=1)
        await until(lambda: w.fleet.failed == 1)
        await until(lambda: "min_instances" in caplog.text)
        for _ in range(20):
            w.fleet._scale()
            await asyncio.sleep(0)
        assert w.engine.made == 1
        assert "it is broken" in caplog.text


@pytest.mark.parametrize(
    ("engine", "kind", "words"),
    [
        (fake.Bad, "init-failed", "it is broken"),
        (fake.Crashing, "init-failed", "code 7"),
        (fake.NeverReady, "timeout", "still loading"),
        (fake.NeverMakes, "no-capacity", "No sandbox could be made"),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, engine: Any, kind: str, words: str
) -> None:
    async with world(engine(), tmp_path) as w:
        await w.deploy()
        with pytest.raises(Problem, match=words) as caught:
            await w.fleet.acquire("f", w.gateway().peer, 0.3)
        assert caught.value.kind == kind
        assert (w.fleet.all(), w.engine.sandboxes) == ([], {})


@pytest.mark.parametrize("way", ["it dies", "it is given back"])
async def test_a_gateway_that_can_use_none_of_those_it_holds_waits_for_the_end_of_one(
    tmp_path: Path, way: str
) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        peer = w.gateway().peer
        lease = await w.fleet.acquire("f", peer, 1.0)
        waiting = asyncio.create_task(w.fleet.acquire("f", peer, 1.0))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        if way == "it dies":
            w.engine.die(w.engine.sandboxes[lease.instance])
        else:
            await w.fleet.release(lease.id)
        assert ((await waiting).instance == lease.instance) == (way == "it is given back")


class KilledAtStart(fake.FakeEngine):
    """Some of its first sandboxes are killed: while the function is loaded, or before it came to them."""

    def __init__(self, errors: list[type[EOFError]]) -> None:
        super().__init__()
        self._errors = iter(errors)

    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:
        await super().attach(sandbox, assignment)
        if (error := next(self._errors, None)) is not None:
            self.die(sandbox, End(None, 9, False, 0))
            raise error


@pytest.mark.parametrize("errors", [[EOFError], [Untouched] * 8, [Untouched] * 3 + [EOFError]])
async def test_a_start_that_is_killed_is_made_again_for_who_waits(
    tmp_path: Path, errors: list[type[EOFError]]
) -> None:
    async with world(KilledAtStart(errors), tmp_path) as w:
        await w.deploy()
        lease = await w.fleet.acquire("f", w.gateway().peer, 1.0)
        assert [i.id for i in w.fleet.all()] == [lease.instance]
        assert (w.engine.made, w.fleet.started, w.fleet.failed) == (len(errors) + 1, 1, 0)


@pytest.mark.parametrize(("error", "made"), [(EOFError, 2), (Untouched, 9)])
async def test_starts_that_are_killed_again_and_again_are_given_up(
    tmp_path: Path, error: type[EOFError], made: int
) -> None:
    async with world(KilledAtStart([error] * 99), tmp_path) as w:
        await w.deploy()
        with pytest.raises(Problem, match=r"killed by signal 9\. That was while it started"):
            await w.fleet.acquire("f", w.gateway().peer, 1.0)
        assert (w.engine.made, w.fleet.failed) == (made, 1)


class NeverListens(fake.FakeEngine):
    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:
        await super().attach(sandbox, assignment)
        await asyncio.Event().wait()


@pytest.mark.parametrize(("timeout", "limit"), [(0.1, 0.3), (0.6, 0.6)])
async def test_a_native_program_has_its_time_out_to_listen_but_at_least_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float, limit: float
) -> None:
    monkeypatch.setattr("function_service.coldstart._NATIVE_LIMIT", 0.3)
    async with world(NeverListens(), tmp_path) as w:
        w.pool.know(Interpreter("native", "", ""))
        await w.deploy(runtime="native", timeout=timeout)
        with pytest.raises(Problem, match=f"did not listen .* within {limit} s .* raise timeout"):
            await w.fleet.acquire("f", w.gateway().peer, 30.0)


async def test_an_instance_that_dies_after_it_is_ready_is_told_to_who_has_it(tmp_path: Path) -> None:
    async with world(fake.DiesAfterReady(), tmp_path) as w:
        await w.deploy()
        gateway = w.gateway()
        lease = await w.fleet.acquire("f", gateway.peer, 1.0)
        await until(lambda: w.fleet.all() == [])
        assert gateway.told == [Ended(lease.id)]
        held = w.fleet.held(lease.id)
        assert held is not None
        assert held.sandbox.ended.result() == End(None, 11, False, 0)
        assert w.engine.made == 1


async def test_what_died_while_it_waited_is_not_handed_out(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path, waiting=2) as w:
        await w.deploy()
        await until(lambda: w.engine.made == 2)
        for sandbox in list(w.engine.sandboxes.values()):
            w.engine.die(sandbox)
        lease = await w.fleet.acquire("f", w.gateway().peer, 1.0)
        assert w.engine.made >= 3
        assert not w.fleet.all()[0].sandbox.ended.done()
        assert lease.cold


@pytest.mark.parametrize("turns", range(8))
async def test_an_end_goes_on_when_its_caller_goes(tmp_path: Path, turns: int) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        await w.fleet.acquire("f", w.gateway().peer, 1.0)
        stop = asyncio.create_task(w.fleet.end(w.fleet.all()[0], "it is too late"))
        for _ in range(turns):
            await asyncio.sleep(0)
        stop.cancel()
        await asyncio.gather(stop, return_exceptions=True)
        if turns:
            await until(lambda: w.fleet.all() == [])
        assert len(w.fleet.all()) == (0 if turns else 1)


@pytest.mark.parametrize(
    "engine", [fake.FakeEngine, fake.Slow, fake.NeverReady, fake.NeverMakes, fake.Crashing]
)
@pytest.mark.parametrize("turns", [0, 1, 3, 6])
async def test_closing_while_everything_starts_leaves_nothing(
    tmp_path: Path, engine: Any, turns: int
) -> None:
    calls = []
    async with world(engine(), tmp_path, waiting=2) as w:
        await w.deploy(min_instances=2)
        await w.fleet.start_scaler()
        gateway = w.gateway()
        calls = [asyncio.create_task(w.fleet.acquire("f", gateway.peer, 5.0)) for _ in range(5)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for call in calls:  # as the server does before the fleet is closed
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_an_idle_instance_of_a_deleted_function_goes_at_once(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        lease = await w.fleet.acquire("f", w.gateway().peer, 1.0)
        await w.fleet.release(lease.id)
        await w.delete()
        await until(lambda: w.fleet.all() == [])
        with pytest.raises(Problem, match="no function"):
            await w.fleet.acquire("f", w.gateway().peer, 1.0)


async def test_releasing_what_is_not_leased_does_nothing(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        lease = await w.fleet.acquire("f", w.gateway().peer, 1.0)
        for name in (lease.id, lease.id, "nothing"):
            await w.fleet.release(name)
        assert [i.state for i in w.fleet.all()] == [State.IDLE]


_STEPS = st.sampled_from(
    ["call", "cancel", "give back", "die", "stop", "zero", "deploy", "gateway", "report", "delete"]
)


@given(
    steps=st.lists(st.tuples(_STEPS, st.integers(0, 4)), max_size=40),
    engine=st.sampled_from([fake.FakeEngine, fake.Slow, fake.Bad, fake.DiesAfterReady, fake.Crashing]),
    waiting=st.integers(0, 2),
)
@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_whatever_happens_no_limit_is_broken_and_nothing_is_left(
    tmp_path: Path, steps: list[tuple[str, int]], engine: Any, waiting: int
) -> None:
    asyncio.run(_live(tmp_path, steps, engine(0.0005) if engine is fake.Slow else engine(), waiting))


async def _live(folder: Path, steps: list[tuple[str, int]], engine: fake.FakeEngine, waiting: int) -> None:
    calls: list[asyncio.Task[Any]] = []
    async with world(engine, folder, waiting=waiting) as w:
        await w.deploy(max_instances=3)
        gateway, number = w.gateway(), 1
        for step, turns in steps:
            for _ in range(turns):
                await asyncio.sleep(0)
            match step:
                case "call":
                    calls.append(asyncio.create_task(w.fleet.acquire("f", gateway.peer, 1.0)))
                    gateway.peer.tasks[len(calls)] = calls[-1]
                case "cancel" if calls:
                    calls[turns % len(calls)].cancel()
                case "deploy":
                    number += 1
                    await w.deploy(number=number, max_instances=3)
                case "delete" if w.registry.owner("f"):
                    await w.delete()
                case "gateway":
                    gateway.go()
                    gateway = w.gateway()
                case _:
                    _act(w, step, turns)
            _check(w)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        _check(w)


def _act(w: World, step: str, turns: int) -> None:
    instances = w.fleet.all()
    if not instances:
        return
    instance = instances[turns % len(instances)]
    match step:
        case "give back":
            w.fleet.spawn(w.fleet.release(instance.id), "release")
        case "die":
            w.engine.die(instance.sandbox)
        case "stop":
            w.fleet.spawn(w.fleet.end(instance, "stopped"), "stop")
        case "zero":
            w.fleet.drain(w.fleet.of("f"), "to zero")
        case "report":
            w.fleet.record("f", instance.id, 1e9, 0.1)


def _check(w: World) -> None:
    by_revision: dict[str, int] = {}
    for instance in w.fleet.all():
        if instance.state is not State.ENDED:
            by_revision[instance.revision.id] = by_revision.get(instance.revision.id, 0) + 1
        assert instance.held <= (instance.holder is not None)
    assert all(count <= 3 for count in by_revision.values()), w.fleet
