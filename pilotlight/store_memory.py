"""The store in memory, for unit tests: the same promises as in store.py but durability."""

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from pilotlight.clock import steady
from pilotlight.history import BATCH, BOUNDS, Batch, Bounds, Change, LogOf, Position, Watchers, judge
from pilotlight.ids import short_id
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Conflict, Entry, Write, end_of, size_of


class _Log:
    """The history of some spaces."""

    def __init__(self) -> None:
        self.changes: deque[tuple[str, Change]] = deque()
        self.size = 0
        self.trimmed: dict[str, int] = {}
        self.floor = 0  # up to where those are trimmed that are not named there

    def add(self, space: str, change: Change, bounds: Bounds) -> None:
        self.changes.append((space, change))
        self.size += change.size
        if len(self.changes) <= bounds.changes and self.size <= bounds.bytes:
            return
        leave = bounds.after_trimming()
        while len(self.changes) > leave.changes or self.size > leave.bytes:
            space, old = self.changes.popleft()
            self.size -= old.size
            self.trimmed[space] = old.number
        if len(self.trimmed) > bounds.spaces:
            self.floor = max(self.trimmed.values())
            self.trimmed.clear()


class MemoryStore:
    """A Store that forgets everything when the process ends."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = steady,
        log_of: LogOf = lambda _space: None,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self._clock = clock
        self._log_of = log_of
        self._bounds = bounds
        self._era = short_id()
        self._logs: dict[str, _Log] = {}
        self._watchers = Watchers()
        self._spaces: dict[str, dict[str, Entry]] = {}
        self._last = 0
        self._closed = False

    async def get(self, space: str, key: str) -> Entry | None:
        """Return the entry, or None where there is none or it has expired."""
        self._check(space, key)
        return self._find(self._spaces.get(space, {}), key)

    async def scan(self, space: str, prefix: str = "", after: str = "", limit: int = 100) -> list[Entry]:
        """Return up to `limit` entries whose keys start with prefix and are greater than after, in order."""
        self._check(space, prefix, after)
        entries = self._spaces.get(space, {})
        keys = sorted(entries)
        found: list[Entry] = []
        for key in keys[max(bisect_left(keys, prefix), bisect_right(keys, after)) :]:
            if len(found) >= limit or not key.startswith(prefix):
                break
            if entry := self._find(entries, key):
                found.append(entry)
        return found

    async def write(self, writes: Sequence[Write]) -> list[int]:
        """Make all changes or none; return the versions that stand then (ABSENT for deletions).

        A later write of the same call sees the earlier ones. Raises Conflict.
        """
        changed = {space: dict(self._spaces.get(space, {})) for space in {write.space for write in writes}}
        made: list[tuple[str, Change]] = []
        versions = [self._put(index, write, changed[write.space], made) for index, write in enumerate(writes)]
        self._spaces.update(changed)
        self._record(made)
        return versions

    def _put(
        self, index: int, write: Write, entries: dict[str, Entry], made: list[tuple[str, Change]]
    ) -> int:
        self._check(write.space, write.key)
        entry = self._find(entries, write.key)
        found = entry.version if entry else ABSENT
        if write.expect is not None and write.expect != found:
            raise Conflict(index, found)
        if write.check:
            return found
        if write.key in entries and entry is None:
            made.append((write.space, Change(self._next(), write.key, None, expired=True)))
        if write.value is None:
            entries.pop(write.key, None)
            if entry is not None:
                made.append((write.space, Change(self._next(), write.key, None)))
            return ABSENT
        version, expires = self._next(), end_of(write, self._clock())
        entries[write.key] = Entry(write.key, write.value, version, expires)
        made.append((write.space, Change(version, write.key, write.value, expires)))
        return version

    async def drop(self, space: str) -> None:
        """Delete everything in a space."""
        self._check(space)
        self._spaces.pop(space, None)
        if (log := self._log_of(space)) is not None:
            self._logs.setdefault(log, _Log()).trimmed[space] = self._next()
            self._watchers.tell([space])

    async def size(self, prefix: str) -> int:
        """Return what the entries take in all spaces whose names start with prefix, in bytes."""
        self._check(prefix)
        spaces = [entries for space, entries in self._spaces.items() if space.startswith(prefix)]
        return sum(size_of(entry.key, entry.value) for entries in spaces for entry in entries.values())

    async def weakness(self) -> str:
        """Tell that everything goes with the process."""
        return "What is in memory alone ends with the process."

    async def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True

    async def position(self) -> Position:
        """Return where the history is now."""
        self._check()
        return Position(self._era, self._last)

    async def changes(self, space: str, after: Position, limit: int = 100) -> Batch:
        """Return changes of a space that come after a position. Raises Gone; see `History.changes`."""
        self._check(space)
        self._sweep()
        log = self._logs.get(self._log_of(space) or "", _Log())
        judge(after, self._era, self._last, max(log.trimmed.get(space, 0), log.floor))
        changes: list[Change] = []
        size = 0
        for its, change in log.changes:
            if its == space and change.number > after.number:
                changes.append(change)
                size += change.size
                if len(changes) == limit or size >= BATCH:
                    return Batch(changes, Position(self._era, change.number))
        return Batch(changes, Position(self._era, self._last))

    def watch(self, space: str) -> AbstractContextManager[asyncio.Event]:
        """Return a context whose event is set soon after each change of a space."""
        return self._watchers.watch(space)

    def _sweep(self) -> None:
        expired = [
            (entry.expires or 0, space, entry.key)
            for space, entries in self._spaces.items()
            for entry in entries.values()
            if self._find(entries, entry.key) is None
        ]
        for _, space, key in sorted(expired):
            del self._spaces[space][key]
            self._record([(space, Change(self._next(), key, None, expired=True))])

    def _record(self, made: list[tuple[str, Change]]) -> None:
        for space, change in made:
            if (log := self._log_of(space)) is not None:
                self._logs.setdefault(log, _Log()).add(space, change, self._bounds)
        self._watchers.tell({space for space, _ in made})

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _find(self, entries: dict[str, Entry], key: str) -> Entry | None:
        entry = entries.get(key)
        if entry is not None and entry.expires is not None and entry.expires <= self._clock():
            return None
        return entry

    def _check(self, *texts: str) -> None:
        if self._closed:
            raise Problem("unavailable", "The store is closed; the platform is stopping.")
        for text in texts:
            text.encode()  # raises UnicodeEncodeError for half a surrogate pair, as a file would
