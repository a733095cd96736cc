"""Sandboxes that wait: blank ones by interpreter, and copies of snapshots by revision.

Taking one is immediate while there is one. Refilling goes on behind, and only while no start is under way,
so that it never competes with somebody who waits.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator

from function_service.contract import Stages
from function_service.engines.base import Engine, Sandbox
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter

_log = logging.getLogger(__name__)
_BREATH = 0.001  # seconds after a start, in which the call that has waited for it goes on
_RETRY = 1.0  # seconds after a sandbox could not be made
_OF_AN_IMAGE = 1  # blank sandboxes that wait, of each runtime in it
_AT_ONCE = 2 * len(os.sched_getaffinity(0))  # of one kind, for those who wait; more only hold each other up


Copier = Callable[[], Awaitable[Sandbox]]


def _unobserved(_kind: str, _hit: bool) -> None:
    """Do nothing with what a start has found."""


class Pool:
    """The sandboxes that wait. `sizes` says how many of each interpreter, by its name."""

    def __init__(self, engine: Engine, interpreters: tuple[Interpreter, ...], sizes: dict[str, int]) -> None:
        self._engine = engine
        self._interpreters = {i.name: i for i in interpreters}
        self._copiers: dict[str, Copier] = {}
        self._sizes = dict(sizes)
        self.observe: Callable[[str, bool], None] = _unobserved  # told the kind, and whether one waited
        self._blank: dict[str, list[Sandbox]] = {name: [] for name in self._interpreters}
        self._turns = {name: asyncio.Semaphore(_AT_ONCE) for name in self._interpreters}
        self._wanted: set[str] = set()
        self._busy = 0
        self._changed = asyncio.Event()
        self._emptied = False  # nothing is made ahead until somebody needs a start
        self._making = asyncio.Lock()
        self._filler: asyncio.Task[None] | None = None
        self._discarding: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Pool({', '.join(f'{name}: {len(blank)}' for name, blank in self._blank.items())})"

    async def start(self) -> None:
        """Begin to fill."""
        self._filler = asyncio.create_task(self._fill(), name="pool")

    async def close(self) -> None:
        """Stop filling, and destroy what waits."""
        if self._filler is not None:
            self._filler.cancel()
            await asyncio.gather(self._filler, return_exceptions=True)
        for blank in self._blank.values():
            while blank:
                await self._discard(blank.pop())
        await asyncio.gather(*self._discarding)

    def know(self, interpreter: Interpreter) -> None:
        """Have an interpreter of an image among those that sandboxes are made for."""
        if interpreter.key not in self._interpreters:
            name = interpreter.key
            self._interpreters[name], self._blank[name] = interpreter, []
            self._sizes[name], self._turns[name] = _OF_AN_IMAGE, asyncio.Semaphore(_AT_ONCE)

    def want(self, names: set[str]) -> None:
        """Keep sandboxes ready for the interpreters with these keys, and for no others."""
        wanted = (names & self._interpreters.keys()) | (self._wanted & self._copiers.keys())
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    def add(self, name: str, copy: Copier, size: int) -> None:
        """Keep sandboxes ready that `copy` makes."""
        self._copiers[name], self._sizes[name], self._blank[name] = copy, size, []
        self._turns[name] = asyncio.Semaphore(_AT_ONCE)
        self._wanted.add(name)
        self._changed.set()

    async def remove(self, name: str) -> None:
        """Keep none of these any more, from this moment on: starts take blank sandboxes."""
        self._wanted.discard(name)
        del self._copiers[name], self._sizes[name], self._turns[name]
        waiting = self._blank.pop(name)
        async with self._making:  # what is being made just now waits too
            while waiting:
                await self._discard(waiting.pop())

    async def empty(self) -> None:
        """Destroy what waits; nothing is made ahead of time again until the next `take`."""
        self._emptied = True
        async with self._making:  # what is being made just now waits too
            for blank in self._blank.values():
                while blank:
                    await self._discard(blank.pop())

    @property
    def starts(self) -> int:
        """How many starts are under way."""
        return self._busy

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """While within, somebody waits for a start, and the pool is not refilled."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            asyncio.get_running_loop().call_later(_BREATH, self._changed.set)

    async def take(self, revision: str, interpreter: str) -> tuple[Sandbox, Stages]:
        """Return a copy of the revision's snapshot, or else a blank sandbox, and how long its making took.

        Raises Problem `no-capacity`, or `init-failed` for an interpreter that this machine lacks.
        """
        name = revision if revision in self._copiers else interpreter
        if name not in self._blank:
            has = ", ".join(sorted(self._interpreters))
            raise Problem("init-failed", f"This machine has no {name}; it has {has}.")
        self._emptied = False
        kind = "snapshot" if name in self._copiers else "blank"
        blank, turns = self._blank[name], self._turns[name]
        while blank:
            sandbox = blank.pop()
            self._changed.set()
            if not sandbox.ended.done():
                self.observe(kind, True)
                return sandbox, Stages()
            await self._discard(sandbox)
        self.observe(kind, False)
        async with turns:
            try:
                if name in self._blank:
                    made = await self._make(name, awaited=True)
                    return made, made.stages
            except Problem:
                if name in self._blank:
                    raise
        return await self.take(revision, interpreter)  # the snapshot was dropped meanwhile

    async def _make(self, name: str, *, awaited: bool) -> Sandbox:
        if (copy := self._copiers.get(name)) is not None:
            return await copy()
        return await self._engine.make(self._interpreters[name], awaited=awaited)

    async def _discard(self, sandbox: Sandbox) -> None:
        """Destroy a sandbox; also when whoever asked for it is cancelled meanwhile (see `close`)."""
        os.close(sandbox.output)
        task = asyncio.create_task(self._engine.destroy(sandbox), name=f"discard {sandbox.id}")
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)
        await asyncio.shield(task)

    def _lacking(self) -> str | None:
        """Return the name of which most are lacking."""
        lacks = {name: self._sizes.get(name, 0) - len(self._blank[name]) for name in self._wanted}
        name = max(lacks, key=lambda n: lacks[n], default=None)
        return name if name is not None and lacks[name] > 0 else None

    async def _fill(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            for name, blank in list(self._blank.items()):
                while blank and name not in self._wanted:
                    await self._discard(blank.pop())
            while not self._busy and not self._emptied and (lacking := self._lacking()) is not None:
                try:
                    async with self._making:
                        if lacking in self._wanted:
                            self._blank[lacking].append(await self._make(lacking, awaited=False))
                except Problem as problem:
                    _log.warning("The pool can't be filled: %s", problem.detail)
                    await asyncio.sleep(_RETRY)
                    self._changed.set()
                    break
