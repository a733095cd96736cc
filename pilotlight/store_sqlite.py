"""The store in one SQLite file (see store.py for what it promises).

One thread writes: it takes whatever is queued and commits it as one group, so that many callers share one
wait for the disk. A few threads read, each on a connection of its own, and a write-ahead log keeps the two
apart. With `synchronous=FULL` the log is on the disk before a write is answered.
"""

import asyncio
import contextlib
import queue
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self, TypeVar

from pilotlight import history_sqlite, sqlite_file
from pilotlight.clock import steady
from pilotlight.history import BOUNDS, Batch, Bounds, LogOf, Position
from pilotlight.history_sqlite import Recorder
from pilotlight.problems import Problem
from pilotlight.sqlite_writer import Job, ThreadWatchers, Writer
from pilotlight.store import Entry, Write, after_prefix

T = TypeVar("T")

_READERS: Final = 2


class SqliteStore:
    """A Store in one SQLite file. Made by `open`."""

    def __init__(self, path: Path, writer: Writer, connections: list[sqlite3.Connection]) -> None:
        self._path = path
        self._writer = writer
        self._connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for connection in connections:
            self._connections.put(connection)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix=f"read {path.name}")
        self._clock = writer.clock
        self._log_of = writer.log_of
        self._watchers = writer.watchers
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        clock: Callable[[], float] = steady,
        sweep_every: float = 10.0,
        log_of: LogOf = lambda _space: None,
        bounds: Bounds = BOUNDS,
    ) -> Self:
        """Open the file at path, and make it where there is none.

        `clock` tells seconds since the epoch, and does not step; `sweep_every` is how often expired entries
        are deleted from the file, in seconds (nobody sees them any more once they have expired); `log_of` and
        `bounds` say of what there is a history, and how much of one (see history.py). Raises Problem
        `unavailable` when the file can't be used: not writable, damaged, not ours, of a newer
        version, the disk full.
        """
        watchers = ThreadWatchers(asyncio.get_running_loop())
        return await asyncio.to_thread(cls._open, path, clock, sweep_every, log_of, bounds, watchers)

    @classmethod
    def _open(
        cls,
        path: Path,
        clock: Callable[[], float],
        sweep_every: float,
        log_of: LogOf,
        bounds: Bounds,
        watchers: ThreadWatchers,
    ) -> Self:
        connections: list[sqlite3.Connection] = []
        try:
            sqlite_file.make(path)
            connections += (sqlite_file.connect(path) for _ in range(_READERS + 1))
            sqlite_file.migrate(connections[0], path)
            (last,) = connections[0].execute("SELECT last FROM counter").fetchone()
        except (sqlite3.Error, OSError) as error:
            for connection in connections:
                connection.close()
            raise sqlite_file.problem(error, path) from error
        except Problem:
            for connection in connections:
                connection.close()
            raise
        recorder = Recorder(connections[0], log_of, bounds)
        writer = Writer(path, connections[0], last, clock, sweep_every, recorder, watchers)
        return cls(path, writer, connections[1:])

    async def get(self, space: str, key: str) -> Entry | None:
        """Return the entry, or None where there is none or it has expired."""
        found = await self._read(
            "SELECT key, value, version, expires FROM entries WHERE space = ? AND key = ?"
            " AND (expires IS NULL OR expires > ?)",
            (space, key, self._clock()),
        )
        return found[0] if found else None

    async def scan(self, space: str, prefix: str = "", after: str = "", limit: int = 100) -> list[Entry]:
        """Return up to `limit` entries whose keys start with prefix and are greater than after, in order."""
        where = "space = ? AND key > ? AND key >= ? AND (expires IS NULL OR expires > ?)"
        values: list[str | int | float] = [space, after, prefix, self._clock()]
        if (end := after_prefix(prefix)) is not None:
            where += " AND key < ?"
            values.append(end)
        return await self._read(
            f"SELECT key, value, version, expires FROM entries WHERE {where} ORDER BY key LIMIT ?",  # noqa: S608
            (*values, max(limit, 0)),
        )

    async def write(self, writes: Sequence[Write]) -> list[int]:
        """Make all changes or none, durably; return the versions that stand then (ABSENT for deletions).

        A later write of the same call sees the earlier ones. When the caller is cancelled, the changes are
        made or they are not. Raises Conflict, and Problem `unavailable` when the disk refuses.
        """
        return await self._change(Job(list(writes)))

    async def drop(self, space: str) -> None:
        """Delete everything in a space."""
        await self._change(Job(drop=space))

    async def size(self, prefix: str) -> int:
        """Return what the entries take in all spaces whose names start with prefix, in bytes."""
        statement = "SELECT coalesce(sum(bytes), 0) FROM sizes WHERE space >= ?"
        values: tuple[str, ...] = (prefix,)
        if (end := after_prefix(prefix)) is not None:
            statement += " AND space < ?"
            values += (end,)
        [(number,)] = await self._ask(lambda connection: connection.execute(statement, values).fetchall())
        return int(number)

    async def position(self) -> Position:
        """Return where the history is now."""
        return await self._ask(history_sqlite.position)

    async def changes(self, space: str, after: Position, limit: int = 100) -> Batch:
        """Return changes of a space that come after a position. Raises Gone; see `History.changes`."""
        log = self._log_of(space)
        assert log is not None, f"there is no history of {space}"  # noqa: S101
        return await self._ask(lambda connection: history_sqlite.read(connection, log, space, after, limit))

    def watch(self, space: str) -> contextlib.AbstractContextManager[asyncio.Event]:
        """Return a context whose event is set soon after each change of a space."""
        return self._watchers.watch(space)

    async def weakness(self) -> str:
        """Tell of none: the log is on the disk before a write is answered."""
        return ""

    async def rewrite(self) -> None:
        """Write the file anew, so that it holds nothing more of what was deleted or replaced.

        Nothing else may be going on. Raises Problem `unavailable`.
        """
        self._check_open()
        await asyncio.to_thread(self._rewrite)

    def _rewrite(self) -> None:
        try:
            with contextlib.closing(sqlite_file.connect(self._path)) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise sqlite_file.problem(error, self._path) from error

    async def close(self) -> None:
        """Finish what was begun, and let go of the files. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._readers.shutdown()
        while not self._connections.empty():
            self._connections.get().close()
        self._writer.close()

    async def _change(self, change: Job) -> list[int]:
        self._check_open()
        self._writer.queue.put(change)
        return await asyncio.wrap_future(change.answer)

    async def _read(self, statement: str, values: tuple[str | int | float, ...]) -> list[Entry]:
        rows = await self._ask(lambda connection: connection.execute(statement, values).fetchall())
        return [Entry(*row) for row in rows]

    async def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Have one of the readers look into the file."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._look, question)

    def _look(self, question: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connections.get()  # never waits: there are as many as there are threads
        try:
            return question(connection)
        except sqlite3.Error as error:
            raise sqlite_file.problem(error, self._path) from error
        finally:
            self._connections.put(connection)

    def _check_open(self) -> None:
        if self._closed:
            raise Problem("unavailable", f"The store {self._path.name} is closed; the platform is stopping.")
