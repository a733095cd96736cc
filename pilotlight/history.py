"""The history of a store: the latest changes of its entries, in the order in which they were made.

A store that is opened with `log_of` keeps it, in the same transaction as each change itself. Spaces share a
log, which is bounded: what is older is trimmed, and of each space it is known up to where. Whoever reads the
changes of a space goes on from a Position, and is told by `Gone` where some that follow are no longer kept.
`history_sqlite.py` and `history_redis.py` keep it; `tests/conformance/test_history.py` holds them to this.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Final, Protocol, Self

from msgspec import Struct

from pilotlight.store import size_of

LogOf = Callable[[str], str | None]
"""Tells in which log the changes of a space are kept; None for those of which there is no history."""

BATCH: Final = 256 << 10
"""Bytes, as `Change.size` counts them, after which `History.changes` returns what it has."""

_POSITION: Final = re.compile(r"([0-9a-z]{10})-(0|[1-9][0-9]{0,17})")


class Bounds(Struct, frozen=True):
    """What of a log is kept: so many changes, and so many bytes of them.

    `spaces` are those of a log of which it is known one by one how far they were trimmed.
    """

    changes: int = 10_000
    bytes: int = 16 << 20
    spaces: int = 1000

    def after_trimming(self) -> Self:
        """Return what is left when there was more: less than is allowed, so that it is seldom done."""
        return type(self)(self.changes * 7 // 8, self.bytes * 7 // 8, self.spaces)


BOUNDS: Final = Bounds()


class Position(Struct, frozen=True):
    """A place in the history: behind the change of that number.

    Numbers grow with each change of the store. An `era` is the life of a store that was not copied from
    another one, or brought back from a backup: a number means nothing in the next one.
    """

    era: str
    number: int

    def __str__(self) -> str:
        return f"{self.era}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position that was written so. Raises ValueError."""
        if (found := _POSITION.fullmatch(text)) is None:
            raise ValueError(f"{text[:80]!r} is not a position")
        return cls(found[1], int(found[2]))


class Change(Struct, frozen=True):
    """One change of an entry. A value of None is a deletion, by a write or because it has `expired`.

    The number of a change that wrote a value is the entry's version. `expires` is as in `Entry`.
    """

    number: int
    key: str
    value: bytes | None
    expires: float | None = None
    expired: bool = False

    @property
    def size(self) -> int:
        """What it counts for in its log, in bytes."""
        return size_of(self.key, self.value or b"")


class Batch(Struct, frozen=True):
    """Changes in their order. There are no others of their space up to `position`, from where to read on."""

    changes: list[Change]
    position: Position


class Gone(Exception):  # noqa: N818  an answer, not a fault
    """Changes that follow a position are not kept any more, or it is of another era."""


class History(Protocol):
    """What a store with a history can do besides."""

    async def position(self) -> Position:
        """Return where the history is now. What is read from the store later has all changes up to there."""
        ...

    async def changes(self, space: str, after: Position, limit: int = 100) -> Batch:
        """Return up to `limit` changes of a space that come after a position, and about BATCH bytes at most.

        Raises Gone.
        """
        ...

    def watch(self, space: str) -> AbstractContextManager[asyncio.Event]:
        """Return a context whose event is set soon after each change of a space, also one of another process.

        To miss none: clear the event, read the changes, and only then wait for it.
        """
        ...


def judge(after: Position, era: str, last: int, trimmed: int) -> None:
    """Raise Gone unless all changes after a position are there, of a history that has come to `last`."""
    if after.era != era or not trimmed <= after.number <= last:
        raise Gone


class Watchers:
    """Those in this process who wait for changes of a space."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    def __bool__(self) -> bool:
        """Tell whether there are any; any thread may ask."""
        return bool(self._events)

    @contextlib.contextmanager
    def watch(self, space: str) -> Iterator[asyncio.Event]:
        """Have an event set whenever a space has changed."""
        event = asyncio.Event()
        events = self._events.setdefault(space, set())
        events.add(event)
        try:
            yield event
        finally:
            events.discard(event)
            if not events:
                del self._events[space]

    def tell(self, spaces: Iterable[str]) -> None:
        """Wake those who watch one of the spaces."""
        for space in spaces:
            for event in self._events.get(space, ()):
                event.set()

    def spaces(self) -> list[str]:
        """Return what is watched."""
        return list(self._events)
