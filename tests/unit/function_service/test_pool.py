"""What waits in the pool, and who makes what does not wait there, on a fake engine."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator

import pytest

from function_service.engines.base import Sandbox
from function_service.engines.fake import FakeEngine
from function_service.pool import Pool
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter
from tests.support.fleet import until

PYTHON = Interpreter("python", "3.11", "/usr/bin/python3")
NODE = Interpreter("node", "20", "/usr/bin/node")


class Held(FakeEngine):
    """Makes nothing until it is let go; notes which makings somebody waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.making = 0
        self.awaited: list[bool] = []

    async def make(self, interpreter: Interpreter, *, awaited: bool) -> Sandbox:
        self.awaited.append(awaited)
        self.making += 1
        try:
            await self.let_go.wait()
            return await super().make(interpreter, awaited=awaited)
        finally:
            self.making -= 1


@contextlib.asynccontextmanager
async def pool_of(engine: FakeEngine, size: int = 0) -> AsyncIterator[Pool]:
    """Run a pool; all that it has made must be gone at the end."""
    pool = Pool(engine, (PYTHON, NODE), {PYTHON.name: size})
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()
        for sandbox in list(engine.sandboxes.values()):
            os.close(sandbox.output)
            await engine.destroy(sandbox)


async def test_who_waits_is_not_made_to_wait_for_a_rehearsal() -> None:
    engine = Held()
    engine.let_go.set()
    async with pool_of(engine, 1) as pool:
        pool.want({PYTHON.name})
        await until(lambda: engine.made == 1)
        with pool.starting():  # so that it is not refilled meanwhile
            await pool.take("none", PYTHON.name)
            await pool.take("none", PYTHON.name)
        assert engine.awaited == [False, True]


async def test_of_many_who_wait_few_are_served_at_once_and_other_kinds_wait_for_none_of_them() -> None:
    engine = Held()
    async with pool_of(engine) as pool:
        flood = [asyncio.create_task(pool.take("none", PYTHON.name)) for _ in range(100)]
        await until(lambda: engine.making >= 2)
        at_once = engine.making
        assert at_once <= 2 * len(os.sched_getaffinity(0))
        other = asyncio.create_task(pool.take("none", NODE.name))
        await until(lambda: engine.making == at_once + 1)
        engine.let_go.set()
        await asyncio.gather(*flood, other)
        assert engine.made == 101


async def test_one_who_gives_up_waiting_leaves_the_turn_to_the_next() -> None:
    engine = Held()
    async with pool_of(engine) as pool:
        flood = [asyncio.create_task(pool.take("none", PYTHON.name)) for _ in range(50)]
        await until(lambda: engine.making)
        for gone in flood[:49]:
            gone.cancel()
        await asyncio.gather(*flood[:49], return_exceptions=True)
        engine.let_go.set()
        async with asyncio.timeout(5):
            await flood[49]


async def test_a_start_whose_snapshot_is_dropped_meanwhile_gets_a_blank_sandbox() -> None:
    engine = FakeEngine()
    failed = asyncio.Event()

    async def copy() -> Sandbox:
        await failed.wait()
        raise Problem("no-capacity", "The snapshot ended.")

    async with pool_of(engine) as pool:
        pool.add("hello-1", copy, 0)
        waiting = [asyncio.create_task(pool.take("hello-1", PYTHON.name)) for _ in range(20)]
        await asyncio.sleep(0)
        await pool.remove("hello-1")
        failed.set()
        async with asyncio.timeout(5):
            taken = await asyncio.gather(*waiting)
        assert {sandbox.interpreter for sandbox, _ in taken} == {PYTHON}


async def test_a_snapshot_that_is_dropped_is_used_no_more_though_the_pool_is_busy() -> None:
    engine = Held()

    async def copy() -> Sandbox:
        raise Problem("no-capacity", "The snapshot ended.")

    async with pool_of(engine, 1) as pool:
        pool.want({PYTHON.name})
        await until(lambda: engine.making == 1)  # with all that follows behind it
        pool.add("hello-1", copy, 0)
        removing = asyncio.create_task(pool.remove("hello-1"))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(pool.take("hello-1", PYTHON.name))
        await until(lambda: engine.making == 2)
        engine.let_go.set()
        async with asyncio.timeout(5):
            taken, _ = await waiting
            await removing
        assert taken.interpreter == PYTHON


async def test_a_copy_that_cannot_be_made_is_the_problem_of_who_waits() -> None:
    async def copy() -> Sandbox:
        raise Problem("no-capacity", "Memory is short.")

    async with pool_of(FakeEngine()) as pool:
        pool.add("hello-1", copy, 0)
        with pytest.raises(Problem, match="Memory is short"):
            await pool.take("hello-1", PYTHON.name)


async def test_an_interpreter_that_is_not_there_is_named_with_those_that_are() -> None:
    async with pool_of(FakeEngine()) as pool:
        with pytest.raises(Problem, match=re.escape("no python3.8; it has node20, python3.11")):
            await pool.take("none", "python3.8")
