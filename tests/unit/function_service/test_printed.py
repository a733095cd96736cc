"""What a job printed, for those who read it as a whole."""

from collections.abc import AsyncGenerator
from typing import cast

import pytest

from function_service.contract import Exit, Job, Output
from function_service.engines.base import Engine
from function_service.printed import MOST, printed
from pilotlight.problems import Problem

JOB = Job(runtime="python", command=("x",), mounts=())


class Printing:
    """As much of an engine as a job needs: it prints some lines, or without end."""

    def __init__(self, *items: Output | Exit, endless: bool = False) -> None:
        self._items = items
        self._endless = endless
        self.left = False

    async def run(self, _: Job) -> AsyncGenerator[Output | Exit, None]:
        try:
            for item in self._items:
                yield item
            while self._endless:
                yield Output("x" * 1000)
        finally:
            self.left = True

    def as_engine(self) -> Engine:
        return cast("Engine", self)


async def test_lines_and_the_end() -> None:
    engine = Printing(Output("a"), Output("b"), Exit(3, "it was killed"))
    assert await printed(engine.as_engine(), JOB) == (["a", "b"], Exit(3, "it was killed"))


async def test_one_that_prints_without_end_is_left_and_takes_no_more_memory_than_is_said() -> None:
    engine = Printing(endless=True)
    lines, end = await printed(engine.as_engine(), JOB)
    assert engine.left
    assert sum(map(len, lines)) <= MOST
    assert end.code
    assert "4 MB" in end.reason


async def test_one_that_ends_without_saying_how_is_a_fault() -> None:
    with pytest.raises(Problem) as fault:
        await printed(Printing(Output("a")).as_engine(), JOB)
    assert fault.value.kind == "internal"
