"""The store in one SQLite file (see store.py for what it promises).

One thread writes: it takes whatever is queued and commits it as one group, so that many callers share one
wait for the disk. A few threads read, each on a connection of its own, and a write-ahead log keeps the two
apart. With `synchronous=FULL` the log is on the disk before a write is answered.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pilotlight import sqlite_file
from pilotlight.clock import steady
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Conflict, Entry, Write, after_prefix, end_of

_log = logging.getLogger(__name__)
T = TypeVar("T")

_READERS: Final = 2
_LARGEST_GROUP: Final = 256  # so that the first of a group need not wait long for the last
_SWEEP_BATCH: Final = 500


class _Change:
    """One call that waits for the writer: its writes, or a space to drop."""

    def __init__(self, writes: Sequence[Write] = (), drop: str | None = None) -> None:
        self.writes = writes
        self.drop = drop
        self.answer: Future[list[int]] = Future()


class SqliteStore:
    """A Store in one SQLite file. Made by `open`."""

    def __init__(self, path: Path, writer: "_Writer", connections: list[sqlite3.Connection]) -> None:
        self._path = path
        self._writer = writer
        self._connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for connection in connections:
            self._connections.put(connection)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix=f"read {path.name}")
        self._clock = writer.clock
        self._closed = False

    @classmethod
    async def open(
        cls, path: Path, *, clock: Callable[[], float] = steady, sweep_every: float = 10.0
    ) -> Self:
        """Open the file at path, and make it where there is none.

        `clock` tells seconds since the epoch, and does not step; `sweep_every` is how often expired entries
        are deleted from the file, in seconds (nobody sees them any more once they have expired). Raises
        Problem `unavailable` when the file can't be used: not writable, damaged, not ours, of a newer
        version, the disk full.
        """
        return await asyncio.to_thread(cls._open, path, clock, sweep_every)

    @classmethod
    def _open(cls, path: Path, clock: Callable[[], float], sweep_every: float) -> Self:
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
        return cls(path, _Writer(path, connections[0], last, clock, sweep_every), connections[1:])

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
        """Make all changes or none, durably; return the new versions (ABSENT for deletions).

        A later write of the same call sees the earlier ones. When the caller is cancelled, the changes are
        made or they are not. Raises Conflict, and Problem `unavailable` when the disk refuses.
        """
        return await self._change(_Change(list(writes)))

    async def drop(self, space: str) -> None:
        """Delete everything in a space."""
        await self._change(_Change(drop=space))

    async def size(self, prefix: str) -> int:
        """Return what the entries take in all spaces whose names start with prefix, in bytes."""
        statement = "SELECT coalesce(sum(bytes), 0) FROM sizes WHERE space >= ?"
        values: tuple[str, ...] = (prefix,)
        if (end := after_prefix(prefix)) is not None:
            statement += " AND space < ?"
            values += (end,)
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, self._number, statement, values
        )

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

    async def _change(self, change: _Change) -> list[int]:
        self._check_open()
        self._writer.queue.put(change)
        return await asyncio.wrap_future(change.answer)

    async def _read(self, statement: str, values: tuple[str | int | float, ...]) -> list[Entry]:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, self._select, statement, values
        )

    def _select(self, statement: str, values: tuple[str | int | float, ...]) -> list[Entry]:
        return [Entry(*row) for row in self._rows(statement, values)]

    def _number(self, statement: str, values: tuple[str, ...]) -> int:
        ((number,),) = self._rows(statement, values)
        return int(number)

    def _rows(self, statement: str, values: Sequence[str | int | float]) -> list[tuple[Any, ...]]:
        connection = self._connections.get()  # never waits: there are as many as there are threads
        try:
            return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise sqlite_file.problem(error, self._path) from error
        finally:
            self._connections.put(connection)

    def _check_open(self) -> None:
        if self._closed:
            raise Problem("unavailable", f"The store {self._path.name} is closed; the platform is stopping.")


class _Writer:
    """The thread that makes all changes."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        last: int,
        clock: Callable[[], float],
        sweep_every: float,
    ) -> None:
        self.clock = clock
        self.queue: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._path = path
        self._connection = connection
        self._last = last
        self._sweep_every = sweep_every
        self._thread = threading.Thread(target=self._run, name=f"write {path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Make the changes that are queued, end the thread, and close the file."""
        self.queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        next_sweep = time.monotonic()
        open_ = True
        while open_:
            group, open_ = self._take(next_sweep - time.monotonic())
            if group:
                self._commit(group)
            if time.monotonic() >= next_sweep:
                more = self._sweep()
                next_sweep = time.monotonic() + (0 if more else self._sweep_every)
        self._connection.close()

    def _take(self, wait: float) -> tuple[list[_Change], bool]:
        """Return what is queued, after waiting for the first; False where the store is to be closed."""
        group: list[_Change] = []
        try:
            change = self.queue.get(timeout=max(wait, 0))
            while change is not None:
                if change.answer.set_running_or_notify_cancel():
                    group.append(change)
                if len(group) == _LARGEST_GROUP:
                    return group, True
                change = self.queue.get_nowait()
        except queue.Empty:
            return group, True
        return group, False

    def _commit(self, group: list[_Change]) -> None:
        last = self._last
        outcomes: list[list[int] | Exception] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._apply(change) for change in group]
            if self._last != last:
                self._connection.execute("UPDATE counter SET last = ?", (self._last,))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            problem = self._undo(error)
            outcomes = [Problem(problem.kind, problem.detail) for _ in group]
            self._last = last
        for change, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                change.answer.set_exception(outcome)
            else:
                change.answer.set_result(outcome)

    def _undo(self, error: sqlite3.Error) -> Problem:
        """Roll back what is left of a transaction, and return what to tell the callers."""
        problem = sqlite_file.problem(error, self._path)
        _log.error("%s", problem.detail)
        if self._connection.in_transaction:  # some errors have rolled it back already
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                # The next BEGIN fails, and tries again to roll back: callers are told, none waits forever
                _log.exception("%s: what a failed change left could not be rolled back", self._path)
        return problem

    def _apply(self, change: _Change) -> list[int] | Exception:
        """Make one call's changes within the group's transaction, or none of them.

        Raises sqlite3.Error, which ends the whole group.
        """
        execute = self._connection.execute
        execute("SAVEPOINT change")
        try:
            if change.drop is not None:
                execute("DELETE FROM entries WHERE space = ?", (change.drop,))
            answer: list[int] | Exception = [self._put(i, write) for i, write in enumerate(change.writes)]
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001  it goes to the caller; the others of the group go on
            execute("ROLLBACK TO change")
            answer = error
        execute("RELEASE change")
        return answer

    def _put(self, index: int, write: Write) -> int:
        now = self.clock()
        if write.expect is not None:
            row = self._connection.execute(
                "SELECT version FROM entries WHERE space = ? AND key = ?"
                " AND (expires IS NULL OR expires > ?)",
                (write.space, write.key, now),
            ).fetchone()
            found = row[0] if row else ABSENT
            if found != write.expect:
                raise Conflict(index, found)
        if write.value is None:
            self._connection.execute(
                "DELETE FROM entries WHERE space = ? AND key = ?", (write.space, write.key)
            )
            return ABSENT
        self._last += 1
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?) ON CONFLICT (space, key) DO UPDATE SET"
            " value = excluded.value, version = excluded.version, expires = excluded.expires",
            (write.space, write.key, write.value, self._last, end_of(write, now)),
        )
        return self._last

    def _sweep(self) -> bool:
        """Delete some expired entries; tell whether there may be more."""
        try:
            swept = self._connection.execute(
                "DELETE FROM entries WHERE rowid IN"
                " (SELECT rowid FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)",
                (self.clock(), _SWEEP_BATCH),
            )
        except sqlite3.Error as error:
            self._undo(error)
            return False
        return swept.rowcount == _SWEEP_BATCH
