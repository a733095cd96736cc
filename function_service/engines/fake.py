"""An engine in memory, for tests of all that stands above engines: the same promises, and no sandbox.

A sandbox of it is a pipe and a future. `Slow`, `NeverMakes`, `NeverReady`, `Bad`, `Crashing` and
`DiesAfterReady` misbehave, each in one way, as real engines do on a bad day.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from function_service.contract import Exit, Guarantee, Job, Output, Stages, Terminal
from function_service.engines.base import (
    Assignment,
    End,
    ImageSource,
    Sandbox,
    StartError,
    Survivor,
    Untouched,
    Use,
)
from pilotlight.ids import short_id
from runtimes.declaration import Interpreter


class FakeEngine:
    """Implements engines.base.Engine. What it has made and not yet destroyed is in `sandboxes`."""

    name = "fake"
    forks = True
    images: ImageSource | None = None

    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.attached: dict[str, Assignment] = {}
        self.kept: dict[str, str] = {}  # by sandbox: its note
        self.made = 0
        self.destroying: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> list[Survivor]:
        """Return what was kept, if this is the engine of a run that was killed."""
        return [Survivor(self.sandboxes[name], note) for name, note in self.kept.items()]

    async def close(self) -> None:
        """Destroy all that is left."""
        for sandbox in list(self.sandboxes.values()):
            await self.destroy(sandbox)

    async def make(self, interpreter: Interpreter, *, awaited: bool) -> Sandbox:  # noqa: ARG002
        """Make a sandbox."""
        await asyncio.sleep(0)  # as every real engine gives way here
        name = short_id()
        output, writing = os.pipe2(os.O_CLOEXEC)
        ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        made = Sandbox(name, interpreter, Path(f"{name}.sock"), Stages(container=1.0), output, ended, writing)
        self.sandboxes[name] = made
        self.made += 1
        return made

    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:
        """Note what was attached."""
        await asyncio.sleep(0)
        if sandbox.ended.done():
            raise Untouched
        self.attached[sandbox.id] = assignment

    async def snapshot(self, interpreter: Interpreter, assignment: Assignment) -> Sandbox:
        """Make a sandbox with the code in it."""
        made = await self.make(interpreter, awaited=False)
        await self.attach(made, assignment)
        return made

    async def restore(self, snapshot: Sandbox, assignment: Assignment) -> Sandbox:  # noqa: ARG002
        """Make another sandbox."""
        return await self.make(snapshot.interpreter, awaited=False)

    def print(self, sandbox: Sandbox, text: str) -> None:
        """Have a sandbox print something."""
        os.write(sandbox.handle, text.encode())

    def die(self, sandbox: Sandbox, end: End = End(1, None, False, 0)) -> None:  # noqa: B008  it is immutable
        """Have a sandbox end by itself."""
        if not sandbox.ended.done():
            os.close(sandbox.handle)
            sandbox.ended.set_result(end)

    def keep(self, sandbox: Sandbox, note: str | None) -> None:
        """Note what is to be kept."""
        self.kept.pop(sandbox.id, None)
        if note is not None:
            self.kept[sandbox.id] = note

    async def destroy(self, sandbox: Sandbox) -> None:
        """End it, if it has not ended, and forget it."""
        if sandbox.id not in self.destroying:
            self.destroying[sandbox.id] = asyncio.create_task(self._destroy(sandbox))
        await asyncio.shield(self.destroying[sandbox.id])

    async def _destroy(self, sandbox: Sandbox) -> None:
        await asyncio.sleep(0)
        self.die(sandbox, End(None, 9, False, 0))
        self.sandboxes.pop(sandbox.id, None)
        self.attached.pop(sandbox.id, None)
        self.kept.pop(sandbox.id, None)

    async def empty(self, stage: str) -> None:
        """Do nothing: nothing is cached."""

    def use(self, sandbox: Sandbox) -> Use:  # noqa: ARG002
        """Tell what it uses."""
        return Use(1 << 20, 0.0, 1)

    async def run(self, job: Job) -> AsyncGenerator[Output | Exit, None]:
        """Print the command, and succeed."""
        yield Output(" ".join(job.command))
        yield Exit(0)

    async def shell(
        self,
        interpreter: Interpreter,
        assignment: Assignment,
        command: tuple[str, ...],  # noqa: ARG002
        terminal: Terminal | None,  # noqa: ARG002
    ) -> Sandbox:
        """Make a sandbox with the code in it; it ends when it is told to `die`."""
        made = await self.make(interpreter, awaited=True)
        try:
            await self.attach(made, assignment)
        except BaseException:
            await self.destroy(made)
            os.close(made.output)
            raise
        return made

    def guarantees(self) -> list[Guarantee]:
        """List what it can't keep: it runs nothing."""
        return [Guarantee(name="isolation", kept=False, reason="it is a fake", remedy="Use a real engine.")]


class Slow(FakeEngine):
    """Takes a while for everything."""

    def __init__(self, seconds: float = 0.01) -> None:
        super().__init__()
        self._seconds = seconds

    async def make(self, interpreter: Interpreter, *, awaited: bool) -> Sandbox:
        """Wait, then make a sandbox."""
        await asyncio.sleep(self._seconds)
        return await super().make(interpreter, awaited=awaited)

    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:
        """Wait, then attach."""
        await asyncio.sleep(self._seconds)
        await super().attach(sandbox, assignment)

    async def _destroy(self, sandbox: Sandbox) -> None:
        await asyncio.sleep(self._seconds)
        await super()._destroy(sandbox)


class NeverMakes(FakeEngine):
    """Never has a sandbox."""

    async def make(self, interpreter: Interpreter, *, awaited: bool) -> Sandbox:  # noqa: ARG002
        """Wait for ever."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError


class NeverReady(FakeEngine):
    """Makes sandboxes in which no function ever gets ready."""

    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:  # noqa: ARG002
        """Wait for ever."""
        await asyncio.get_running_loop().create_future()


class Bad(FakeEngine):
    """Makes sandboxes in which no function can be loaded."""

    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:
        """Refuse."""
        await super().attach(sandbox, assignment)
        self.print(sandbox, "Traceback: it is broken\n")
        raise StartError("it is broken")


class Crashing(FakeEngine):
    """Makes sandboxes that end while the function is loaded."""

    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:
        """End."""
        await super().attach(sandbox, assignment)
        self.print(sandbox, "so long\n")
        self.die(sandbox, End(7, None, False, 0))
        raise EOFError


class DiesAfterReady(FakeEngine):
    """Makes sandboxes that end as soon as they serve."""

    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:
        """Attach, and end."""
        await super().attach(sandbox, assignment)
        self.die(sandbox, End(None, 11, False, 0))
