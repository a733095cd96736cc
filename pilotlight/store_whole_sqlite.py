"""A SQLite store as a whole (see store_whole.py)."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from pilotlight import sqlite_file
from pilotlight.problems import Problem
from pilotlight.store import size_of
from pilotlight.store_whole import Record

_PORTION: Final = 1 << 20  # bytes that are in memory at a time, as `size_of` counts them
_PARTS: Final = ("", "-wal", "-shm")


class SqliteSource:
    """The store in a file, which no platform may be using."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises Problem."""
        if not path.exists():
            raise Problem("not-found", f"There is no store at {path}.")
        self._path = path
        with _asking(path):
            self._connection = sqlite_file.connect(path)
            with contextlib.ExitStack() as stack:
                stack.callback(self._connection.close)
                sqlite_file.migrate(self._connection, path)
                stack.pop_all()

    def __enter__(self) -> Self:
        """Have it open until the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._connection.close()

    def last(self) -> int:
        """Return the last version that was given out."""
        with _asking(self._path):
            return _last(self._connection)

    def records(self) -> Iterator[list[Record]]:
        """Yield all records in the order of space and key."""
        with _asking(self._path):
            yield from _records(self._connection)


class SqliteTarget:
    """The store in a file that is not there yet. It gets its name when it is whole."""

    def __init__(self, path: Path, registry: Path) -> None:
        """`registry` is the path of the platform's registry, which is filled together with it."""
        self._path = path
        self._unfinished = sqlite_file.unfinished(path)
        self._mark = sqlite_file.unfinished(registry)
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        """Do nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, if it is open."""
        self._close()

    def check_empty(self) -> None:
        """Raise Problem `conflict` where the file is there, and whole."""
        if self._mark.exists():
            return
        for part in _PARTS[:2]:
            path = self._path.with_name(f"{self._path.name}{part}")
            if path.exists():
                raise Problem(
                    "conflict",
                    f"{path} is there already. Move it away, or name another folder: nothing is overwritten.",
                )

    def clear(self) -> None:
        """Remove the file, whatever it is called by now."""
        self._close()
        with _asking(self._path):
            for path in (self._path, self._unfinished):
                for part in _PARTS:
                    path.with_name(f"{path.name}{part}").unlink(missing_ok=True)

    def begin(self, last: int) -> None:
        """Make the file, under a name by which it can be told to be unfinished."""
        with _asking(self._unfinished):
            sqlite_file.make(self._unfinished)
            self._connection = sqlite_file.connect(self._unfinished)
            # Should the machine fail meanwhile, the file is unfinished whatever is in it
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute("UPDATE counter SET last = ?", (last,))

    def put(self, records: list[Record]) -> None:
        """Write records in one transaction."""
        with _asking(self._unfinished):
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", records)
            connection.execute("COMMIT")

    def last(self) -> int:
        """Return the last version that was given out."""
        with _asking(self._unfinished):
            return _last(self._opened())

    def records(self) -> Iterator[list[Record]]:
        """Yield what has been written, in the order of space and key."""
        with _asking(self._unfinished):
            yield from _records(self._opened())

    def finish(self) -> None:
        """Have it on the disk, and give it its name, to whom its folder belongs."""
        with _asking(self._unfinished):
            self._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._close()
            owner = self._path.parent.stat()
            with self._unfinished.open("rb") as file:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                os.fsync(file.fileno())
            self._unfinished.rename(self._path)
            sqlite_file.synchronise(self._path.parent)

    def _opened(self) -> sqlite3.Connection:
        assert self._connection is not None, "nothing was begun"  # noqa: S101
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _last(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute("SELECT last FROM counter").fetchone()
    return int(last)


def _records(connection: sqlite3.Connection) -> Iterator[list[Record]]:
    records: list[Record] = []
    size = 0
    # By the index of the primary key, row by row: nothing is sorted
    for row in connection.execute(
        "SELECT space, key, value, version, expires FROM entries ORDER BY space, key"
    ):
        record = Record(*row)
        records.append(record)
        size += size_of(record.key, record.value)
        if size >= _PORTION:
            yield records
            records, size = [], 0
    if records:
        yield records


@contextlib.contextmanager
def _asking(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise sqlite_file.problem(error, path) from error
