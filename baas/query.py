"""The only module that reads and writes documents: it carries out what plan.py decides."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from baas.plan import Answer, plan, space_of
from baas.quota import Quota
from baas.request import Action, Listing, Operation
from pilotlight.problems import Problem
from pilotlight.store import Conflict, Entry, Store, Write, size_of

MAX_PAGE: Final = 4 << 20
"""A page of a listing ends early once its documents have this many bytes."""

_STEP: Final = 32  # documents that are read at a time, so that a page never holds much more than MAX_PAGE
_ATTEMPTS: Final = 10
_WAIT: Final = 10.0  # seconds that a writer waits for the others of its document


@dataclass(frozen=True)
class Page:
    """Some documents in the order of their keys; `more` where others follow."""

    entries: list[Entry]
    more: bool


class Documents:
    """The documents of all apps."""

    def __init__(self, store: Store, quota: Quota) -> None:
        self._store = store
        self._quota = quota
        self._locks: dict[tuple[str, str], _Turn] = {}

    async def list(self, listing: Listing) -> Page:
        """Return one page of a collection."""
        space = space_of(listing.app, listing.collection)
        entries: list[Entry] = []
        size, after = 0, listing.after
        while size < MAX_PAGE:
            wanted = min(_STEP, listing.limit - len(entries) + 1)  # one more tells whether more follow
            found = await self._store.scan(space, listing.prefix, after, wanted)
            for entry in found:
                if len(entries) == listing.limit or (entries and size + len(entry.value) > MAX_PAGE):
                    return Page(entries, more=True)
                entries.append(entry)
                size += len(entry.value)
            if len(found) < wanted:
                return Page(entries, more=False)
            after = found[-1].key
        return Page(entries, more=True)

    async def run(self, operation: Operation) -> Answer:
        """Carry out one operation, durably. Raises Problem."""
        if operation.action is Action.GET:
            answer = plan(operation, await self._get(operation))
            assert isinstance(answer, Answer)  # noqa: S101  reading changes nothing
            return answer
        async with self._turn(operation):
            for _ in range(_ATTEMPTS):
                entry = None if operation.action is Action.CREATE else await self._get(operation)
                step = plan(operation, entry)
                if isinstance(step, Answer):
                    return step
                await self._claim(operation, entry, step.write)
                try:
                    [version] = await self._store.write([step.write])
                except Conflict:  # it expired meanwhile, or another process wrote: decide anew
                    continue
                return replace(step.answer, version=version or None)
        raise _busy(operation)

    async def _claim(self, operation: Operation, entry: Entry | None, write: Write) -> None:
        """Have a document that grows count against the limit of its app. Raises Problem `too-large`."""
        if write.value is None:
            return
        before = 0 if entry is None else size_of(entry.key, entry.value)
        more = size_of(write.key, write.value) - before
        if more > 0:
            await self._quota.claim(operation.app, more)

    async def _get(self, operation: Operation) -> Entry | None:
        return await self._store.get(space_of(operation.app, operation.collection), operation.key)

    @contextlib.asynccontextmanager
    async def _turn(self, operation: Operation) -> AsyncIterator[None]:
        """Let the writers of one document take turns.

        The store's compare-and-set alone would be right too, but of n writers n-1 would have to try again.
        """
        name = (space_of(operation.app, operation.collection), operation.key)
        turn = self._locks.setdefault(name, _Turn())
        turn.holders += 1
        try:
            try:
                async with asyncio.timeout(_WAIT):
                    await turn.lock.acquire()
            except TimeoutError as error:
                raise _busy(operation) from error
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.holders -= 1
            if not turn.holders:
                del self._locks[name]


class _Turn:
    """The lock of one document, and how many hold it or wait for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.holders = 0


def _busy(operation: Operation) -> Problem:
    return Problem(
        "overloaded",
        f"Too many write the document {operation.key!r} at once. Try again, or spread it over several keys.",
        retry_after=1,
    )
