"""Jobs whose output the function service reads itself: it may be a stranger's, and without end."""

import contextlib
from typing import Final

from function_service.contract import Exit, Job, Output
from function_service.engines.base import Engine
from pilotlight.problems import Problem

MOST: Final = 4 << 20
"""Bytes that such a job may print."""

_LINE: Final = 100  # bytes that a line counts for besides its own


async def printed(engine: Engine, job: Job) -> tuple[list[str], Exit]:
    """Run a job; return its lines and its end, which is our doing where it prints more than MOST.

    Raises Problem.
    """
    lines: list[str] = []
    size = 0
    async with contextlib.aclosing(engine.run(job)) as items:
        async for item in items:
            match item:
                case Output(line):
                    size += len(line) + _LINE
                    if size > MOST:
                        return lines, Exit(1, f"it prints more than {MOST >> 20} MB")
                    lines.append(line)
                case Exit():
                    return lines, item
    raise Problem("internal", "A job ended without saying how.")
