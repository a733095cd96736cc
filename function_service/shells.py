"""Shells: a command at a terminal, in a fresh sandbox of a function's live revision.

They are no instances: no call reaches them, and they count for no limit but their own number. They end with
their command, with whoever opened them, with their function, or after the longest time.
"""

import asyncio
import contextlib
import logging
import re
import shlex
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Final

from function_service import coldstart, images, interpreters
from function_service.audit import AuditLog
from function_service.contract import (
    PLATFORM,
    Actor,
    Exit,
    InstanceStatus,
    Opened,
    Revision,
    Terminal,
)
from function_service.engines.base import Engine, Sandbox, StartError
from function_service.fleet import Fleet
from function_service.instance import explain
from function_service.layers.store import LayerStore
from function_service.lines import LineReader
from function_service.registry import Registry
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter

_log = logging.getLogger(__name__)

STATE: Final = "shell"  # what lists of instances say of one
_SHELL: Final = ("/bin/sh",)
_MOST: Final = 10  # at a time, since nothing else bounds what they take of the machine together
_LONGEST: Final = 3600.0  # seconds that one may be open
_START_WITHIN: Final = 20.0  # seconds
_KILLED: Final = 137  # what a shell says of a program that was killed
_KIND: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")  # of terminals
_SIZES: Final = range(1, 1 << 16)
_FIRST_LINES: Final = 20
_LONGEST_COMMAND: Final = 32 << 10  # characters


@dataclass(eq=False)
class _Shell:
    sandbox: Sandbox
    revision: Revision
    created: float  # seconds since the epoch
    printing: asyncio.Task[None]  # logs what its first process says, which is nothing where all is well
    stopped: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Shells:
    """All shells that are open."""

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        fleet: Fleet,
        layers: LayerStore,
        interpreters: tuple[Interpreter, ...],
        audit: AuditLog,
        *,
        longest: float = _LONGEST,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._fleet = fleet
        self._layers = layers
        self._interpreters = interpreters
        self._audit = audit
        self._longest = longest
        self._shells: set[_Shell] = set()
        self._starting = 0

    async def run(
        self, function: str, command: tuple[str, ...], terminal: Terminal | None, by: Actor = PLATFORM
    ) -> AsyncGenerator[Opened | Exit, None]:
        """Open a shell, and end it at the latest when the stream is left (see contract.Control.shell)."""
        command = command or _SHELL
        details: dict[str, Any] = {"function": function, "command": shlex.join(command)}
        async with contextlib.AsyncExitStack() as stack:
            try:
                _check(command, terminal)
                revision = self._registry.live(function)
                details["revision"] = revision.id
                await stack.enter_async_context(self._fleet.keeping_layers(revision))
                shell = await self._open(revision, command, terminal)
            except Problem as problem:
                await self._audit.write("function.shell", by, details, f"refused: {problem.kind}")
                raise
            stack.push_async_callback(self._close, shell)
            await self._audit.write("function.shell", by, details)
            # The command is started when somebody connects, so not before that was written
            yield Opened(shell.sandbox.id, revision.id, str(shell.sandbox.socket))
            yield await self._end(shell)

    async def _open(self, revision: Revision, command: tuple[str, ...], terminal: Terminal | None) -> _Shell:
        if len(self._shells) + self._starting >= _MOST:
            detail = f"{_MOST} shells are open, which is the most. Close one: `pilotlight ps` shows them."
            raise Problem("no-capacity", detail, retry_after=10)
        images.check(self._engine, revision)
        config = revision.config
        interpreter = interpreters.of(revision, self._interpreters)
        if interpreter is None:
            raise Problem("init-failed", f"This machine has no {config.runtime}.")
        assignment = coldstart.assignment_of(revision, self._layers, self._registry.secrets)
        self._starting += 1
        try:
            async with asyncio.timeout(_START_WITHIN):
                sandbox = await self._engine.shell(interpreter, assignment, command, terminal)
        except TimeoutError:
            detail = f"No sandbox could be made within {_START_WITHIN:g} s; this machine is too busy."
            raise Problem("no-capacity", detail, retry_after=1) from None
        except StartError as error:
            raise Problem("init-failed", str(error)) from error
        except EOFError as error:
            detail = "The sandbox ended before the command was started. The log of the platform may say why."
            raise Problem("init-failed", detail) from error
        finally:
            self._starting -= 1
        printing = asyncio.create_task(_log_what_it_prints(sandbox), name=f"output of shell {sandbox.id}")
        shell = _Shell(sandbox, revision, time.time(), printing)
        self._shells.add(shell)
        return shell

    async def _end(self, shell: _Shell) -> Exit:
        """Wait for the end, or bring it about."""
        ended = shell.sandbox.ended
        ends: list[asyncio.Future[Any]] = [ended, shell.stopped]
        await asyncio.wait(ends, timeout=self._longest, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            reason = f"it was open for {self._longest / 60:g} minutes, which is the longest"
            if shell.stopped.done():
                reason = shell.stopped.result()
            await self._engine.destroy(shell.sandbox)
            return Exit(_KILLED, reason)
        end = ended.result()
        if end.out_of_memory:
            return Exit(_KILLED, explain(end, shell.revision.config.memory)[1].rstrip("."))
        return Exit(end.code if end.code is not None else 128 + (end.signal or 0))

    async def _close(self, shell: _Shell) -> None:
        try:
            await self._engine.destroy(shell.sandbox)
        finally:
            self._shells.discard(shell)
        await shell.printing

    def stop(self, function: str, reason: str) -> None:
        """End the shells of a function."""
        for shell in self._shells:
            if shell.revision.config.name == function and not shell.stopped.done():
                shell.stopped.set_result(reason)

    def statuses(self, function: str | None) -> list[InstanceStatus]:
        """List the shells of one function, or all, as instances are listed."""
        return [
            InstanceStatus(
                id=shell.sandbox.id,
                function=shell.revision.config.name,
                revision=shell.revision.id,
                state=STATE,
                created=shell.created,
                last_used=shell.created,
                memory=use.memory,
                cpu_seconds=use.cpu_seconds,
                processes=use.processes,
                stages=shell.sandbox.stages,
            )
            for shell in self._shells
            if function in (None, shell.revision.config.name)
            for use in [self._engine.use(shell.sandbox)]
        ]


def _check(command: tuple[str, ...], terminal: Terminal | None) -> None:
    """Raise Problem `invalid-request` for what can't be run, and for a terminal that can't be."""
    if sum(len(word) + 1 for word in command) > _LONGEST_COMMAND:
        raise Problem("invalid-request", f"The command has more than {_LONGEST_COMMAND} characters.")
    if not command[0] or any("\0" in word for word in command):
        raise Problem("invalid-request", "The command is empty, or holds a NUL character.")
    if terminal is None:
        return
    if not _KIND.fullmatch(terminal.kind):
        raise Problem("invalid-request", f"{terminal.kind[:64]!r} is no kind of terminal, such as xterm.")
    if terminal.rows not in _SIZES or terminal.columns not in _SIZES:
        raise Problem("invalid-request", "A terminal has 1 to 65535 rows and columns.")


async def _log_what_it_prints(sandbox: Sandbox) -> None:
    """Log the first lines; a command that gets at its first process must not fill the log."""
    reader, lines = LineReader(sandbox.output), 0
    try:
        async for line, _ in reader.lines():
            if (lines := lines + 1) <= _FIRST_LINES:
                _log.warning("action=shell-says id=%s line=%r", sandbox.id, line)
    finally:
        reader.close()
