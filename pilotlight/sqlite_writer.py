"""The thread that makes all changes of a SQLite store, with their history, as store_sqlite.py asks it to.

It takes whatever is queued and commits it as one group, so that many callers share one wait for the disk.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from pilotlight import sqlite_file
from pilotlight.history import Change, Watchers
from pilotlight.history_sqlite import Recorder
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Conflict, Write, end_of

_log = logging.getLogger(__name__)

_LARGEST_GROUP: Final = 256  # so that the first of a group need not wait long for the last
_SWEEP_BATCH: Final = 500


class Job:
    """One call that waits for the writer: its writes, or a space to drop."""

    def __init__(self, writes: Sequence[Write] = (), drop: str | None = None) -> None:
        self.writes = writes
        self.drop = drop
        self.answer: Future[list[int]] = Future()


class ThreadWatchers(Watchers):
    """Told of changes by the thread that makes them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def tell_from_thread(self, spaces: set[str]) -> None:
        """Wake those who watch one of the spaces."""
        if self and spaces:
            self._loop.call_soon_threadsafe(self.tell, spaces)


class Writer:
    """The thread that makes all changes."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        last: int,
        clock: Callable[[], float],
        sweep_every: float,
        recorder: Recorder,
        watchers: ThreadWatchers,
    ) -> None:
        self.clock = clock
        self.log_of = recorder.log_of
        self.watchers = watchers
        self._recorder = recorder
        self.queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
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

    def _take(self, wait: float) -> tuple[list[Job], bool]:
        """Return what is queued, after waiting for the first; False where the store is to be closed."""
        group: list[Job] = []
        try:
            job = self.queue.get(timeout=max(wait, 0))
            while job is not None:
                if job.answer.set_running_or_notify_cancel():
                    group.append(job)
                if len(group) == _LARGEST_GROUP:
                    return group, True
                job = self.queue.get_nowait()
        except queue.Empty:
            return group, True
        return group, False

    def _commit(self, group: list[Job]) -> None:
        outcomes: list[list[int] | Exception] = []
        try:
            with self._transaction():
                outcomes = [self._apply(job) for job in group]
        except sqlite3.Error as error:
            problem = self._undo(error)
            outcomes = [Problem(problem.kind, problem.detail) for _ in group]
        for job, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what is done within, with its history, and tell of it. After sqlite3.Error, call `_undo`."""
        last = self._last
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._recorder.trim()
            if self._last != last:
                self._connection.execute("UPDATE counter SET last = ?", (self._last,))
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            self._last = last
            self._recorder.forget()
            raise
        changed, self._recorder.changed = self._recorder.changed, set()
        self.watchers.tell_from_thread(changed)

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

    def _apply(self, job: Job) -> list[int] | Exception:
        """Make one call's changes within the group's transaction, or none of them.

        Raises sqlite3.Error, which ends the whole group.
        """
        execute = self._connection.execute
        execute("SAVEPOINT change")
        try:
            if job.drop is not None:
                self._drop(job.drop)
            answer: list[int] | Exception = [self._put(i, write) for i, write in enumerate(job.writes)]
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001  it goes to the caller; the others of the group go on
            execute("ROLLBACK TO change")
            answer = error
        execute("RELEASE change")
        return answer

    def _drop(self, space: str) -> None:
        self._connection.execute("DELETE FROM entries WHERE space = ?", (space,))
        if (log := self.log_of(space)) is not None:
            self._recorder.drop(log, space, self._next())

    def _put(self, index: int, write: Write) -> int:
        now = self.clock()
        log = self.log_of(write.space)
        found, expired = ABSENT, False
        if write.expect is not None or log is not None:
            row = self._connection.execute(
                "SELECT version, expires FROM entries WHERE space = ? AND key = ?", (write.space, write.key)
            ).fetchone()
            expired = row is not None and row[1] is not None and row[1] <= now
            found = row[0] if row is not None and not expired else ABSENT
            if write.expect is not None and found != write.expect:
                raise Conflict(index, found)
        if write.check:
            return found
        if log is not None and expired:
            self._recorder.record(log, write.space, Change(self._next(), write.key, None, expired=True))
        if write.value is None:
            self._connection.execute(
                "DELETE FROM entries WHERE space = ? AND key = ?", (write.space, write.key)
            )
            if log is not None and found != ABSENT:
                self._recorder.record(log, write.space, Change(self._next(), write.key, None))
            return ABSENT
        version, expires = self._next(), end_of(write, now)
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?) ON CONFLICT (space, key) DO UPDATE SET"
            " value = excluded.value, version = excluded.version, expires = excluded.expires",
            (write.space, write.key, write.value, version, expires),
        )
        if log is not None:
            self._recorder.record(log, write.space, Change(version, write.key, write.value, expires))
        return version

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _sweep(self) -> bool:
        """Delete some expired entries; tell whether there may be more."""
        try:
            expired = self._connection.execute(
                "SELECT rowid, space, key FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?",
                (self.clock(), _SWEEP_BATCH),
            ).fetchall()
            if expired:
                with self._transaction():
                    for row, space, key in expired:
                        self._connection.execute("DELETE FROM entries WHERE rowid = ?", (row,))
                        if (log := self.log_of(space)) is not None:
                            self._recorder.record(log, space, Change(self._next(), key, None, expired=True))
        except sqlite3.Error as error:
            self._undo(error)
            return False
        return len(expired) == _SWEEP_BATCH
