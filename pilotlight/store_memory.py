"""The store in memory, for unit tests: the same promises as in store.py but durability."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from pilotlight.clock import steady
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Conflict, Entry, Write, end_of, size_of


class MemoryStore:
    """A Store that forgets everything when the process ends."""

    def __init__(self, *, clock: Callable[[], float] = steady) -> None:
        self._clock = clock
        self._spaces: dict[str, dict[str, Entry]] = {}
        self._last = 0
        self._closed = False

    async def get(self, space: str, key: str) -> Entry | None:
        """Return the entry, or None where there is none or it has expired."""
        self._check(space, key)
        return self._find(self._spaces, space, key)

    async def scan(self, space: str, prefix: str = "", after: str = "", limit: int = 100) -> list[Entry]:
        """Return up to `limit` entries whose keys start with prefix and are greater than after, in order."""
        self._check(space, prefix, after)
        keys = sorted(self._spaces.get(space, {}))
        found: list[Entry] = []
        for key in keys[max(bisect_left(keys, prefix), bisect_right(keys, after)) :]:
            if len(found) >= limit or not key.startswith(prefix):
                break
            if entry := self._find(self._spaces, space, key):
                found.append(entry)
        return found

    async def write(self, writes: Sequence[Write]) -> list[int]:
        """Make all changes or none; return the new versions (ABSENT for deletions).

        A later write of the same call sees the earlier ones. Raises Conflict.
        """
        changed = {space: dict(self._spaces.get(space, {})) for space in {write.space for write in writes}}
        versions: list[int] = []
        for index, write in enumerate(writes):
            self._check(write.space, write.key)
            entry = self._find(changed, write.space, write.key)
            found = entry.version if entry else ABSENT
            if write.expect is not None and write.expect != found:
                raise Conflict(index, found)
            if write.value is None:
                changed[write.space].pop(write.key, None)
                versions.append(ABSENT)
                continue
            self._last += 1
            expires = end_of(write, self._clock())
            changed[write.space][write.key] = Entry(write.key, write.value, self._last, expires)
            versions.append(self._last)
        self._spaces.update(changed)
        return versions

    async def drop(self, space: str) -> None:
        """Delete everything in a space."""
        self._check(space)
        self._spaces.pop(space, None)

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

    def _find(self, spaces: dict[str, dict[str, Entry]], space: str, key: str) -> Entry | None:
        entry = spaces.get(space, {}).get(key)
        if entry is not None and entry.expires is not None and entry.expires <= self._clock():
            del spaces[space][key]
            return None
        return entry

    def _check(self, *texts: str) -> None:
        if self._closed:
            raise Problem("unavailable", "The store is closed; the platform is stopping.")
        for text in texts:
            text.encode()  # raises UnicodeEncodeError for half a surrogate pair, as a file would
