"""An answer that crosses the cancelling of its call is not lost: what it grants can be given back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from pilotlight.rpc import Client, Server


class Grants(Protocol):
    async def grant(self, name: str) -> str: ...

    def stream(self) -> AsyncIterator[int]: ...

    def slow_to_end(self) -> AsyncIterator[int]: ...


class Granting:
    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.cancelled = 0
        self.begun = asyncio.Event()

    async def grant(self, name: str) -> str:
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return name

    async def stream(self) -> AsyncIterator[int]:
        for number in range(3):
            yield number
        await self.go.wait()

    async def slow_to_end(self) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            self.begun.set()
            await self.go.wait()
            self.cancelled += 1


@pytest.fixture
async def wire(tmp_path: Path):
    target = Granting()
    server = Server(tmp_path / "s.sock", {Grants: target})
    await server.start()
    client = Client(tmp_path / "s.sock")
    orphans: list[str] = []
    client.on_orphan["Grants.grant"] = orphans.append
    yield target, client, orphans
    await client.close()
    await server.close()


async def settled(client: Client) -> None:
    """Wait until both sides have nothing under way: the next answer comes after all former ones."""
    async with asyncio.timeout(5):
        while client._cancelled or client._waiting:
            await asyncio.sleep(0.001)


async def test_a_call_that_is_cancelled_in_time_leaves_no_orphan(wire) -> None:
    target, client, orphans = wire
    call = asyncio.create_task(client.of(Grants).grant("a"))
    await target.begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await settled(client)
    assert target.cancelled == 1
    assert not orphans


async def test_an_answer_that_was_under_way_is_handed_over(wire) -> None:
    target, client, orphans = wire
    call = asyncio.create_task(client.of(Grants).grant("a"))
    await target.begun.wait()
    target.go.set()  # the answer is sent in the next turns of the loop, the cancelling in this one
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await settled(client)
    assert orphans == ["a"]
    assert target.cancelled == 0


@pytest.mark.parametrize("turns", range(12))
async def test_whenever_it_is_cancelled_the_grant_is_either_refused_received_or_orphaned(
    wire, turns: int
) -> None:
    target, client, orphans = wire
    call = asyncio.create_task(client.of(Grants).grant("a"))
    await target.begun.wait()
    target.go.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    (result,) = await asyncio.gather(call, return_exceptions=True)
    await settled(client)
    assert [result == "a", orphans == ["a"], target.cancelled == 1].count(True) == 1


async def test_who_leaves_a_stream_goes_on_when_the_other_side_has_cleaned_up(wire) -> None:
    target, client, _ = wire
    stream = client.of(Grants).slow_to_end()
    assert await anext(stream) == 1
    leaving = asyncio.create_task(stream.aclose())
    await target.begun.wait()
    assert not leaving.done()
    target.go.set()
    await leaving
    assert target.cancelled == 1


async def test_a_stream_whose_service_goes_away_can_be_left(wire) -> None:
    target, client, _ = wire
    stream = client.of(Grants).slow_to_end()
    assert await anext(stream) == 1
    leaving = asyncio.create_task(stream.aclose())
    await target.begun.wait()
    await client.close()
    async with asyncio.timeout(5):
        await leaving
    target.go.set()


async def test_leaving_a_stream_early_leaves_nothing_behind(wire) -> None:
    _, client, _ = wire
    stream = client.of(Grants).stream()
    async for number in stream:
        if number == 1:
            break
    await stream.aclose()
    await settled(client)
    assert not client._cancelled
