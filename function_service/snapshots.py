"""Which functions have a snapshot: decided by what their cold starts cost, bounded in number and memory.

A function gets one when its starts, of which the push makes the first, have shown that its import is slow,
and when it is called. It is dropped when its revision is live no more, when the keep-alive policy holds
nothing of the function any more (`keeper.py`), and when others need the room more. `engines/base.py` says
what a snapshot is; copies of it wait in the pool, under the id of the revision.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from function_service.contract import Revision
from function_service.engines.base import Assignment, Engine, Sandbox, StartError
from function_service.lines import LineReader
from function_service.pool import Pool
from pilotlight import clock
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter, load_all

_log = logging.getLogger(__name__)
_WORTH = 5.0  # milliseconds that loading the code takes, from which on a snapshot pays
_MOST = 16  # snapshots
_DEADLINE = 60.0  # seconds for an import
_COPIES = 1  # that wait for each


@dataclass(eq=False)
class _Snapshot:
    revision: Revision
    sandbox: Sandbox
    used: float  # on the steady clock
    printing: asyncio.Task[None] = field(repr=False)


class Snapshots:
    """The snapshots that there are."""

    def __init__(
        self, engine: Engine, pool: Pool, interpreters: Iterable[Interpreter], memory: int = 1 << 30
    ) -> None:
        """`memory` is what all of them may take together, in bytes."""
        self._engine = engine
        self._memory = memory
        self._pool = pool
        self._interpreters = {i.name: i for i in interpreters}
        self._forkable = {name for name, runtime in load_all().items() if runtime.forkable}
        self._tasks: set[asyncio.Task[None]] = set()
        self._quickest: dict[
            str, tuple[int, float]
        ] = {}  # revision → starts seen, milliseconds of the quickest
        self._snapshots: dict[str, _Snapshot] = {}  # by revision
        self._unfit: dict[str, str] = {}  # revision → why it can't have one
        self._making = asyncio.Lock()
        self._live: set[str] = set()  # revisions
        self._changed_secrets: set[str] = set()  # since the making of the present one began

    def __contains__(self, revision: str) -> bool:
        return revision in self._snapshots

    def unfit(self, revision: str) -> str:
        """Return why a revision has no snapshot although its start is slow, or the empty string."""
        return self._unfit.get(revision, "")

    def started(self, revision: Revision, assignment: Assignment, code: float, *, called: bool) -> None:
        """Take a cold start into account, whose code took so many milliseconds to load.

        One slow start alone may be the machine's fault, so there must have been two.
        """
        if not self._memory:
            return
        known = self._snapshots.get(revision.id)
        if known is not None:
            known.used = clock.steady()
            return
        count, quickest = self._quickest.get(revision.id, (0, code))
        count, quickest = count + 1, min(code, quickest)
        self._quickest[revision.id] = count, quickest
        fit = self._interpreters[revision.config.runtime].runtime in self._forkable
        if called and fit and count > 1 and quickest >= _WORTH and revision.id not in self._unfit:
            self._run(self._make(revision, assignment), f"snapshot of {revision.config.name}")

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("%s failed", task.get_name(), exc_info=error)

    async def _make(self, revision: Revision, assignment: Assignment) -> None:
        async with self._making:
            if revision.id in self._snapshots:
                return
            interpreter = self._interpreters[revision.config.runtime]
            self._changed_secrets.clear()
            # Others wait for their snapshots meanwhile, so it gets no longer than a start of its own does
            deadline = min(_DEADLINE, revision.config.timeout)
            try:
                async with asyncio.timeout(deadline):
                    sandbox = await self._engine.snapshot(interpreter, assignment)
            except (StartError, EOFError, TimeoutError) as error:
                late = isinstance(error, TimeoutError)
                reason = f"its import had not ended after {deadline:.1f} s" if late else str(error)
                self._unfit[revision.id] = reason or type(error).__name__
                _log.info("action=no-snapshot function=%s reason=%r", revision.config.name, reason)
                return
            except Problem as problem:
                _log.warning("action=no-snapshot function=%s detail=%r", revision.config.name, problem.detail)
                return
            printing = asyncio.create_task(_throw_away(sandbox), name=f"output of {sandbox.id}")
            made = _Snapshot(revision, sandbox, clock.steady(), printing)
            self._snapshots[revision.id] = made
            sandbox.ended.add_done_callback(lambda _: self._ended(made))
            self._pool.add(revision.id, partial(self._engine.restore, sandbox, assignment), _COPIES)
            if revision.id not in self._live or self._changed_secrets & set(revision.config.secrets):
                await self._drop(made, "it was outdated before it was made")
                return
            if (taken := self._engine.use(sandbox).memory) > self._memory:
                self._unfit[revision.id] = (
                    f"it takes {taken >> 20} MB, and all snapshots together may take {self._memory >> 20} MB "
                    "(--snapshot-memory)"
                )
                await self._drop(made, self._unfit[revision.id])
                return
            _log.info("action=snapshot function=%s revision=%s", revision.config.name, revision.id)

    def _ended(self, snapshot: _Snapshot) -> None:
        if snapshot.revision.id in self._snapshots:
            self._run(self._drop(snapshot, "it ended by itself"), "drop")

    def keep(self, live: set[str]) -> None:
        """Drop those of revisions that are live no more."""
        self._live = live
        for snapshot in list(self._snapshots.values()):
            if snapshot.revision.id not in live:
                self._run(self._drop(snapshot, "its revision is live no more"), "drop")
        self._unfit = {revision: why for revision, why in self._unfit.items() if revision in live}
        self._quickest = {revision: seen for revision, seen in self._quickest.items() if revision in live}

    def forget_secret(self, name: str) -> None:
        """Drop those that hold the value of a secret that has changed."""
        self._changed_secrets.add(name)
        for snapshot in list(self._snapshots.values()):
            if name in snapshot.revision.config.secrets:
                self._run(self._drop(snapshot, "a secret of it has changed"), "drop")

    def tidy(self, is_worth_it: Callable[[str, float], bool]) -> None:
        """Drop those of functions that are not worth one, and the least recently used where room is short.

        `is_worth_it` is asked with a function and when an instance was last made of its snapshot.
        """
        memory, count = 0, 0
        for snapshot in sorted(self._snapshots.values(), key=lambda s: s.used, reverse=True):
            if not is_worth_it(snapshot.revision.config.name, snapshot.used):
                self._run(self._drop(snapshot, "its function is called too little"), "drop")
                continue
            memory += self._engine.use(snapshot.sandbox).memory
            count += 1
            if count > _MOST or memory > self._memory:
                self._run(self._drop(snapshot, "others need its room more"), "drop")

    async def drop_all(self) -> None:
        """Drop all, also one that is being made; a function that is called on gets another one."""
        async with self._making:
            for snapshot in list(self._snapshots.values()):
                await self._drop(snapshot, "the cache was emptied")

    async def _drop(self, snapshot: _Snapshot, reason: str) -> None:
        if self._snapshots.pop(snapshot.revision.id, None) is None:
            return
        _log.info("action=drop-snapshot function=%s reason=%r", snapshot.revision.config.name, reason)
        await self._pool.remove(snapshot.revision.id)
        await self._engine.destroy(snapshot.sandbox)
        await snapshot.printing

    async def close(self) -> None:
        """Drop all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for snapshot in list(self._snapshots.values()):
            await self._drop(snapshot, "the platform stops")


async def _throw_away(sandbox: Sandbox) -> None:
    """Read what the import prints; the start that came before it has put the same into the log."""
    reader = LineReader(sandbox.output)
    try:
        async for _ in reader.batches():
            pass
    finally:
        reader.close()
