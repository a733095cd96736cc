"""What a fleet does with the instances of a service that was killed: it gives them no call, and ends them."""

import asyncio
from pathlib import Path

import pytest

from function_service.contract import Ended, Recall
from function_service.engines import fake
from function_service.engines.base import End, Sandbox, Survivor
from function_service.instance import State, explain
from tests.support.fleet import NODE, World, until, world


async def note_of(tmp_path: Path) -> str:
    """Return what a fleet notes of an instance of `f` that a gateway holds."""
    folder = tmp_path / "former"
    folder.mkdir()
    async with world(fake.FakeEngine(), folder) as former:
        await former.deploy()
        lease = await former.fleet.acquire("f", former.gateway().peer, 1.0)
        return former.engine.kept[lease.id]


async def survivor(w: World, tmp_path: Path) -> Sandbox:
    note = await note_of(tmp_path)
    sandbox = await w.engine.make(NODE, awaited=True)
    w.fleet.take_over([Survivor(sandbox, note)])
    return sandbox


async def test_what_a_gateway_holds_is_kept_and_what_is_idle_is_not(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        lease = await w.fleet.acquire("f", w.gateway().peer, 1.0)
        assert list(w.engine.kept) == [lease.id]
        await w.fleet.release(lease.id)
        assert w.engine.kept == {}
        await w.fleet.acquire("f", w.gateway().peer, 1.0)
        assert list(w.engine.kept) == [lease.id]


async def test_it_drains_until_it_is_given_back(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        sandbox = await survivor(w, tmp_path)
        gateway = w.gateway()
        w.fleet.claim([sandbox.id, "unknown"], gateway.peer)
        (instance,) = w.fleet.all()
        assert (instance.id, instance.state, instance.function) == (sandbox.id, State.DRAINING, "f")
        new = await w.fleet.acquire("f", gateway.peer, 1.0)
        assert new.id != sandbox.id
        await w.fleet.release(sandbox.id)
        assert sandbox.ended.done()
        assert [each.id for each in w.fleet.all()] == [new.id]
        assert [told for told in gateway.told if not isinstance(told, Recall)] == [Ended(sandbox.id)]


async def test_it_counts_and_who_needs_its_place_waits_for_it(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(max_instances=1)
        sandbox = await survivor(w, tmp_path)
        gateway = w.gateway()
        w.fleet.claim([sandbox.id], gateway.peer)
        call = asyncio.create_task(w.fleet.acquire("f", gateway.peer, 5.0))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not call.done()
        await w.fleet.release(sandbox.id)
        assert (await call).cold


async def test_what_nobody_claims_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("function_service.fleet._CLAIM_WITHIN", 0.01)
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        sandbox = await survivor(w, tmp_path)
        async with asyncio.timeout(5):
            await asyncio.shield(sandbox.ended)
        await until(lambda: not w.fleet.all())


async def test_what_is_claimed_is_ended_when_its_calls_must_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("function_service.fleet._CLAIM_WITHIN", 0.01)
    monkeypatch.setattr("function_service.fleet._DRAIN_MARGIN", 0.05)
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy(timeout=0.1)
        sandbox = await survivor(w, tmp_path)
        w.fleet.claim([sandbox.id], w.gateway().peer)
        await asyncio.sleep(0.05)  # longer than what is not claimed may live
        assert not sandbox.ended.done()
        async with asyncio.timeout(5):
            await asyncio.shield(sandbox.ended)
        await until(lambda: not w.fleet.all())


async def test_it_ends_with_the_gateway_that_claimed_it(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        sandbox = await survivor(w, tmp_path)
        gateway, other = w.gateway(), w.gateway()
        w.fleet.claim([sandbox.id], gateway.peer)
        w.fleet.claim([sandbox.id], other.peer)  # the first one has it
        other.go()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not sandbox.ended.done()
        gateway.go()
        await until(sandbox.ended.done)


async def test_one_whose_revision_is_gone_is_ended_at_once(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy("another")
        sandbox = await survivor(w, tmp_path)
        await until(lambda: sandbox.id not in w.engine.sandboxes)
        assert w.fleet.all() == []


async def test_one_that_ends_by_itself_is_told_apart_from_one_that_is_ended(tmp_path: Path) -> None:
    async with world(fake.FakeEngine(), tmp_path) as w:
        await w.deploy()
        sandbox = await survivor(w, tmp_path)
        w.engine.die(sandbox, End(3, None, False, 0))
        await until(lambda: not w.fleet.all())
        instance = w.fleet.held(sandbox.id)
        assert instance is not None
        assert instance.reason == "it ended by itself"


def test_an_end_that_nobody_could_see_is_said_to_be_unknown() -> None:
    kind, detail = explain(End(None, None, False, 0), 128 << 20)
    assert kind == "crashed"
    assert "how is not known" in detail
