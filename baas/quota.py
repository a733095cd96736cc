"""What the documents of one app may take together.

The store knows what they take, and keeps it with each change, whoever makes it and also where they expire. It
is asked once for a portion of what is left, so that most writes need not wait for that. So an app may get
past its limit by what is written at the same moment, and no further.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from baas.plan import space_of
from pilotlight.problems import Problem
from pilotlight.store import Store

_PORTION: Final = 4 << 20  # bytes that may be written until the store is asked again
_VALID: Final = 10.0  # seconds until it is asked again in any case: other processes may write, too
_APPS: Final = 1000  # whose portions are remembered


@dataclass
class _Portion:
    """What an app may still write, as the store was asked last."""

    left: int = 0  # until it is asked again
    room: int = 0  # all that was left
    until: float = 0.0
    asked: int = 0  # when that began, among all times that it was
    problem: Problem | None = None  # why it could not tell
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # of those who ask


class Quota:
    """Watches over the limit of each app."""

    def __init__(self, store: Store, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`most` is in bytes, as `Store.size` counts them."""
        self._store = store
        self._most = most
        self._clock = clock
        self._portions: dict[str, _Portion] = {}
        self._asked = 0

    async def claim(self, app: str, more: int) -> None:
        """Raise Problem `too-large` where an app may not have so many bytes more."""
        came = self._asked
        if app not in self._portions and len(self._portions) >= _APPS:
            self._portions.clear()
        portion = self._portions.setdefault(app, _Portion())
        while portion.left < more or portion.until <= self._clock():
            # One at a time: it takes long where an app has many collections, and readers wait meanwhile
            async with portion.turn:
                if portion.asked <= came:
                    await self._ask(app, more, portion)
                # Else it was asked while we waited, and what it said is said to all who did
                if (known := portion.problem) is not None:
                    raise Problem(known.kind, known.detail, retry_after=known.retry_after)
                if portion.room < more:
                    raise self._full(app, self._most - portion.room)
                came = portion.asked
        portion.left -= more
        portion.room -= more

    async def _ask(self, app: str, more: int, portion: _Portion) -> None:
        self._asked = number = self._asked + 1
        portion.left = 0
        try:
            portion.room = self._most - await self._store.size(space_of(app, ""))
        except Problem as problem:
            portion.problem = problem
        else:
            portion.problem = None
            portion.left = min(portion.room, max(_PORTION, more))
            portion.until = self._clock() + _VALID
        portion.asked = number  # unless whoever asked was told to go meanwhile: then the next one does

    def _full(self, app: str, size: int) -> Problem:
        return Problem(
            "too-large",
            f"The documents of the app {app!r} take {size} bytes, and may take {self._most}. Delete "
            "some, or let them expire with ?ttl=; --max-documents of the platform raises the limit.",
        )
