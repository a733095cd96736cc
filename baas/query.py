"""The only module that reads and writes documents: it carries out what plan.py decides."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from baas.draft import Draft, Name, name_of
from baas.plan import Answer, plan, space_of
from baas.quota import Quota
from baas.request import Action, Listing, Operation
from baas.transaction import at
from pilotlight.history import Position
from pilotlight.problems import Problem
from pilotlight.store import Conflict, Entry
from pilotlight.stores import FollowedStore

MAX_PAGE: Final = 4 << 20
"""A page of a listing ends early once its documents have this many bytes."""

_STEP: Final = 32  # documents that are read at a time, so that a page never holds much more than MAX_PAGE
_ATTEMPTS: Final = 10
_WAIT: Final = 10.0  # seconds that a writer waits for the others of its document


@dataclass(frozen=True)
class Page:
    """Some documents in the order of their keys; `more` where others follow.

    The first page has the `position` after which changes may be missing in it, and in those that follow.
    """

    entries: list[Entry]
    more: bool
    position: Position | None = None


class Documents:
    """The documents of all apps."""

    def __init__(self, store: FollowedStore, quota: Quota) -> None:
        self._store = store
        self._quota = quota
        self._locks: dict[Name, _Turn] = {}

    async def list(self, listing: Listing) -> Page:
        """Return one page of a collection."""
        space = space_of(listing.app, listing.collection)
        entries: list[Entry] = []
        size, after = 0, listing.after
        position = await self._store.position() if not after else None
        while size < MAX_PAGE:
            wanted = min(_STEP, listing.limit - len(entries) + 1)  # one more tells whether more follow
            found = await self._store.scan(space, listing.prefix, after, wanted)
            for entry in found:
                if len(entries) == listing.limit or (entries and size + len(entry.value) > MAX_PAGE):
                    return Page(entries, more=True, position=position)
                entries.append(entry)
                size += len(entry.value)
            if len(found) < wanted:
                return Page(entries, more=False, position=position)
            after = found[-1].key
        return Page(entries, more=True, position=position)

    async def run(self, operation: Operation) -> Answer:
        """Carry out one operation, durably. Raises Problem."""
        if operation.action is Action.GET:
            answer = plan(operation, await self._get(operation))
            assert isinstance(answer, Answer)  # noqa: S101  reading changes nothing
            return answer
        [answer] = await self._change([operation], numbered=False)
        return answer

    async def transact(self, operations: Sequence[Operation]) -> Sequence[Answer]:
        """Carry out operations of one app, all or none, durably. Raises Problem, which names the one."""
        return await self._change(operations, numbered=True)

    async def _change(self, operations: Sequence[Operation], *, numbered: bool) -> Sequence[Answer]:
        async with self._turns({name_of(operation) for operation in operations}):
            for _ in range(_ATTEMPTS):
                draft = await self._draft(operations, numbered=numbered)
                if draft.growth > 0:  # it counts against the limit of the app
                    await self._quota.claim(operations[0].app, draft.growth)
                writes = draft.writes
                try:
                    return draft.answers(await self._store.write(writes))
                except Conflict as conflict:  # it expired meanwhile, or another process wrote: decide anew
                    busy = writes[conflict.index].key
        raise _busy(busy)

    async def _draft(self, operations: Sequence[Operation], *, numbered: bool) -> Draft:
        draft = Draft(shows=not numbered)
        for index, operation in enumerate(operations):
            known = operation.action is Action.CREATE or draft.changes(operation)
            if known:
                await asyncio.sleep(0)  # changes of a large document take long: others have their turn
            try:
                draft.add(operation, None if known else await self._get(operation))
            except Problem as problem:
                raise at(index, problem) if numbered else problem from problem
        return draft

    async def _get(self, operation: Operation) -> Entry | None:
        return await self._store.get(*name_of(operation))

    @contextlib.asynccontextmanager
    async def _turns(self, names: set[Name]) -> AsyncIterator[None]:
        """Let the writers of documents take turns.

        The store's compare-and-set alone would be right too, but of n writers n-1 would have to try again.
        """
        async with contextlib.AsyncExitStack() as held:
            name = ("", "")
            try:
                async with asyncio.timeout(_WAIT):
                    for name in sorted(names):  # in one order, so that no two wait for each other
                        await held.enter_async_context(self._turn(name))
            except TimeoutError as error:
                raise _busy(name[1]) from error
            yield

    @contextlib.asynccontextmanager
    async def _turn(self, name: Name) -> AsyncIterator[None]:
        turn = self._locks.setdefault(name, _Turn())
        turn.holders += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.holders -= 1
            if not turn.holders:
                del self._locks[name]


class _Turn:
    """The lock of one document, and how many hold it or wait for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.holders = 0


def _busy(key: str) -> Problem:
    return Problem(
        "overloaded",
        f"Too many write the document {key!r} at once. Try again, or spread it over several keys.",
        retry_after=1,
    )
