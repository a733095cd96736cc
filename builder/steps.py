"""One part of a code layer in the making: commands in sandboxes, each line of theirs shown to the pusher."""

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from builder.detect import Found
from builder.limits import Limits
from builder.package_index import PackageIndex
from function_service.contract import Builds, Exit, Image, Job, Mount, Output
from pilotlight.problems import Problem
from runtimes.declaration import Step

Say = Callable[[str], Awaitable[None]]
"""Shows a line, or several, to the pusher."""


class Shown:
    """What a build prints, as far as it is shown to the pusher."""

    def __init__(self, limits: Limits, say: Say, indent: str = "    ") -> None:
        self._limits = limits
        self._say = say
        self._indent = indent
        self._lines = 0

    async def line(self, line: str) -> None:
        """Show one line more."""
        self._lines += 1
        if self._lines <= self._limits.lines:
            cut = "…" if len(line) > self._limits.line else ""
            await self._say(f"{self._indent}{line[: self._limits.line]}{cut}")
        elif self._lines == self._limits.lines + 1:
            await self._say(f"{self._indent}… and more, which is not shown")


@dataclass(frozen=True)
class Workshop:
    """Where steps are carried out, and what they may use."""

    builds: Builds
    layers: Path  # the folder of the layer store
    index: PackageIndex
    limits: Limits

    async def run(self, found: Found, steps: tuple[Step, ...], build: Path, say: Say) -> None:
        """Carry out the steps of one part; `build` is the new folder that they fill.

        Raises Problem `build-failed` that names the step which failed.
        """
        _make(build)
        for step in steps:
            why = await self._step(found, step, build, (Mount(str(found.folder), "/source"),), say)
            if why is not None:
                raise Problem(
                    "build-failed",
                    f"Function {found.name!r} can't be built: {step.title!r} failed ({why}). "
                    "What it printed stands above. Mend it, commit, and push again.",
                )

    async def attempt(self, found: Found, step: Step, build: Path, seen: tuple[Mount, ...], say: Say) -> bool:
        """Carry out a step that a build can do without, and tell whether it has succeeded.

        It sees the folders `seen` and fills `build`, a new one.
        """
        _make(build)
        why = await self._step(found, step, build, seen, say)
        if why is not None:
            await say(f"  goes on without ({why})")
        return why is None

    async def _step(
        self, found: Found, step: Step, build: Path, seen: tuple[Mount, ...], say: Say
    ) -> str | None:
        """Carry out a step, and show it. Return why it has failed, or None."""
        started = time.monotonic()
        await say(f"  {step.title}")
        end = await self._end_of(found, step, build, seen, say)
        if end.code or end.reason:
            return end.reason or f"exit code {end.code}"
        await say(f"  done in {time.monotonic() - started:.1f} s")
        return None

    async def _end_of(self, found: Found, step: Step, build: Path, seen: tuple[Mount, ...], say: Say) -> Exit:
        index = self.index
        image = found.image if isinstance(found.image, Image) and found.runtime.probe is not None else None
        if image is not None and step.network:
            index = index.brought_along()
        job = Job(
            runtime=found.interpreter.name,
            image=image.id if image is not None else None,
            command=step.command,
            mounts=(
                *seen,
                Mount(str(build), "/build", writable=True),
                *(Mount(str(tool.folder), f"/tools/{tool.name}") for tool in step.tools),
                *(index.mounts if step.network else ()),
            ),
            env={
                **(image.env if image is not None else {}),
                "HOME": "/tmp",  # noqa: S108  inside
                **(index.env if step.network else {}),
                **step.env,
            },
            egress=index.egress if step.network else (),
            memory=self.limits.memory,
            cpu=self.limits.cpu,
            timeout=self.limits.step,
            output_limit=self.limits.output,
        )
        shown = Shown(self.limits, say)
        # what a client returns is a generator, and leaving it early must kill the job at once
        stream = cast("AsyncGenerator[Output | Exit, None]", self.builds.run(job))
        async with contextlib.aclosing(stream):
            async for event in stream:
                match event:
                    case Exit():
                        return event
                    case Output(line):
                        await shown.line(line)
        raise Problem("internal", f"The run of {step.title!r} ended without saying how.")


def _make(build: Path) -> None:
    # the sandbox has a user of its own; only our user can reach what lies in the builds folder
    build.mkdir()
    build.chmod(0o777)
