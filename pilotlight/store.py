"""The store: small values under ordered keys in named spaces, with compare-and-set.

The registry and the documents stand on it. `store_sqlite.py` is the default, `store_redis.py` keeps them
elsewhere, `store_memory.py` is for unit tests; all pass `tests/conformance/test_store.py`. What changes there
can be followed where a history is kept: see `history.py`.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct

ABSENT: Final = 0
"""As `Write.expect`: the key must not be there."""

PLACE: Final = 200
"""Bytes that an entry counts for besides its key and its value: about what its place in an index takes."""


class Entry(Struct, frozen=True):
    """One value as it stands. `version` is never used twice within a store, also after a deletion."""

    key: str
    value: bytes
    version: int
    expires: float | None = None  # seconds since the epoch


class Write(Struct, frozen=True, kw_only=True):
    """One change. A value of None deletes; with `check` nothing is changed, and only `expect` has to hold.

    `expect` is the version that must stand there, ABSENT, or None for whatever. It lasts for `ttl` seconds
    where these are given; else until `expires`, a moment by the store's own clock that an Entry has told;
    else for ever.
    """

    space: str
    key: str
    value: bytes | None
    expect: int | None = None
    ttl: float | None = None
    expires: float | None = None
    check: bool = False


def end_of(write: Write, now: float) -> float | None:
    """Return when a write that is made now expires, or None for never."""
    return write.expires if write.ttl is None else now + write.ttl


class Conflict(Exception):  # noqa: N818  an answer, not a fault
    """A write expected another version. `index` is its place among the writes, `found` what stood there."""

    def __init__(self, index: int, found: int) -> None:
        super().__init__(f"write {index} found version {found}")
        self.index = index
        self.found = found


def size_of(key: str, value: bytes) -> int:
    """Return what an entry counts for in `Store.size`, in bytes."""
    return len(key.encode()) + len(value) + PLACE


class Store(Protocol):
    """What a store can do. Each call may be made at any time between opening and closing."""

    async def get(self, space: str, key: str) -> Entry | None:
        """Return the entry, or None where there is none or it has expired."""
        ...

    async def scan(self, space: str, prefix: str = "", after: str = "", limit: int = 100) -> list[Entry]:
        """Return up to `limit` entries whose keys start with prefix and are greater than after, in order."""
        ...

    async def write(self, writes: Sequence[Write]) -> list[int]:
        """Make all changes or none, durably; return the versions that stand then (ABSENT for deletions).

        Raises Conflict.
        """
        ...

    async def drop(self, space: str) -> None:
        """Delete everything in a space."""
        ...

    async def size(self, prefix: str) -> int:
        """Return what the entries of all spaces whose names start with prefix take, in bytes.

        Each counts for its key, its value, and PLACE; an expired one until it is deleted.
        """
        ...

    async def weakness(self) -> str:
        """Tell why an acknowledged write may be lost all the same; empty where it can't."""
        ...

    async def close(self) -> None:
        """Finish what was begun, and let go of the files."""
        ...


def after_prefix(prefix: str) -> str | None:
    """Return the smallest text that is greater than all that start with prefix; None where there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    last = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if last == 0xD800 else last)  # surrogates are no characters
