"""Shells as the function service keeps them, on an engine in memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from function_service.audit import AuditLog
from function_service.contract import Actor, Exit, Opened, Terminal
from function_service.engines.base import End
from function_service.engines.fake import Bad, Crashing, FakeEngine
from function_service.shells import Shells
from pilotlight.problems import Problem
from tests.support.fleet import NODE, World, world

ME = Actor(key="k", name="me")


@contextlib.asynccontextmanager
async def shells(
    folder: Path, engine: FakeEngine | None = None, **options: float
) -> AsyncIterator[tuple[World, Shells]]:
    async with world(engine or FakeEngine(), folder) as w:
        audit = AuditLog(folder / "audit.jsonl")
        yield w, Shells(w.engine, w.registry, w.fleet, w.layers, (NODE,), audit, **options)
        await audit.close()


def audited(folder: Path) -> str:
    return (folder / "audit.jsonl").read_text()


async def test_it_is_written_down_before_anybody_can_connect(tmp_path: Path) -> None:
    async with shells(tmp_path) as (w, kept):
        await w.deploy()
        async with contextlib.aclosing(kept.run("f", ("sh", "-c", "echo 'a b'"), None, ME)) as stream:
            opened = await anext(stream)
            assert isinstance(opened, Opened)
            assert (opened.revision, opened.instance in w.engine.sandboxes) == ("f-1", True)
            assert "function.shell" in audited(tmp_path)
            assert '"name":"me"' in audited(tmp_path)
            assert "sh -c" in audited(tmp_path)
            w.engine.die(w.engine.sandboxes[opened.instance], End(3, None, False, 0))
            assert await anext(stream) == Exit(3)
        assert kept.statuses(None) == []


async def test_it_ends_when_its_stream_is_left(tmp_path: Path) -> None:
    async with shells(tmp_path) as (w, kept):
        await w.deploy()
        stream = kept.run("f", (), None, ME)
        await anext(stream)
        (status,) = kept.statuses("f")
        assert (status.state, status.function, kept.statuses("g")) == ("shell", "f", [])
        await stream.aclose()
        assert w.engine.sandboxes == {}


async def test_it_ends_after_the_longest_time(tmp_path: Path) -> None:
    async with shells(tmp_path, longest=0.05) as (w, kept):
        await w.deploy()
        items = [item async for item in kept.run("f", (), None, ME)]
        assert isinstance(items[1], Exit)
        assert (items[1].code, "which is the longest" in items[1].reason) == (137, True)


async def test_it_ends_with_its_function(tmp_path: Path) -> None:
    async with shells(tmp_path) as (w, kept):
        await w.deploy()
        await w.deploy("g")
        async with (
            contextlib.aclosing(kept.run("f", (), None, ME)) as stream,
            contextlib.aclosing(kept.run("g", (), None, ME)) as other,
        ):
            await anext(stream)
            await anext(other)
            kept.stop("f", "its function was deleted")
            assert await anext(stream) == Exit(137, "its function was deleted")
            assert len(kept.statuses("g")) == 1


async def test_one_that_needed_too_much_memory_is_told_so(tmp_path: Path) -> None:
    async with shells(tmp_path) as (w, kept):
        await w.deploy()
        async with contextlib.aclosing(kept.run("f", (), None, ME)) as stream:
            opened = await anext(stream)
            w.engine.die(w.engine.sandboxes[opened.instance], End(None, 9, True, 1 << 27))
            ended = await anext(stream)
            assert (ended.code, "128 MB" in ended.reason) == (137, True)


async def test_they_are_bounded_in_number(tmp_path: Path) -> None:
    async with shells(tmp_path) as (w, kept), contextlib.AsyncExitStack() as stack:
        await w.deploy()
        for _ in range(10):
            stream = await stack.enter_async_context(contextlib.aclosing(kept.run("f", (), None, ME)))
            await anext(stream)
        with pytest.raises(Problem, match="10 shells are open") as caught:
            await anext(kept.run("f", (), None, ME))
        assert caught.value.kind == "no-capacity"
        assert "refused: no-capacity" in audited(tmp_path)


async def test_its_layers_stay_while_it_is_open(tmp_path: Path) -> None:
    async with shells(tmp_path) as (w, kept):
        await w.deploy()
        async with contextlib.aclosing(kept.run("f", (), None, ME)) as stream:
            await anext(stream)
            await w.delete()
            assert w.fleet.layers_in_use() == {"code"}
        assert w.fleet.layers_in_use() == set()


@pytest.mark.parametrize("engine", [Bad, Crashing])
async def test_one_that_can_not_be_opened_leaves_nothing(tmp_path: Path, engine: type[FakeEngine]) -> None:
    async with shells(tmp_path, engine()) as (w, kept):
        await w.deploy()
        with pytest.raises(Problem) as caught:
            await anext(kept.run("f", (), None, ME))
        assert caught.value.kind == "init-failed"
        assert kept.statuses(None) == []


async def test_who_goes_while_it_is_opened_leaves_nothing(tmp_path: Path) -> None:
    class Waits(FakeEngine):
        async def shell(self, *arguments):
            made = await super().shell(*arguments)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await self.destroy(made)
                import os

                os.close(made.output)
            return made

    async with shells(tmp_path, Waits()) as (w, kept):
        await w.deploy()
        opening = asyncio.ensure_future(anext(kept.run("f", (), None, ME)))
        while not w.engine.sandboxes:
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert kept.statuses(None) == []


@pytest.mark.parametrize(
    ("command", "terminal"),
    [
        (("a\0b",), None),
        (("",), None),
        (("x" * 40_000,), None),
        (("sh",), Terminal("x term", 24, 80)),
        (("sh",), Terminal("xterm", 0, 80)),
        (("sh",), Terminal("xterm", 24, 1 << 16)),
    ],
)
async def test_what_can_not_be_is_refused(
    tmp_path: Path, command: tuple[str, ...], terminal: Terminal | None
) -> None:
    async with shells(tmp_path) as (w, kept):
        await w.deploy()
        with pytest.raises(Problem) as caught:
            await anext(kept.run("f", command, terminal, ME))
        assert caught.value.kind == "invalid-request"
