"""The history of a SQLite store (see history.py), in the tables `changes` and `trimmed` of its file."""

import sqlite3
from typing import Final

from pilotlight.history import BATCH, Batch, Bounds, Change, LogOf, Position, judge
from pilotlight.store import PLACE

_SIZE: Final = f"(length(CAST(key AS BLOB)) + coalesce(length(value), 0) + {PLACE})"
_KEPT: Final = f"SELECT count(*), coalesce(sum({_SIZE}), 0) FROM changes WHERE log = ?"  # noqa: S608
_OLDEST: Final = f"SELECT number, {_SIZE} FROM changes WHERE log = ? ORDER BY number"  # noqa: S608
_LOGS: Final = 1000  # of which it is remembered what they hold
_ALL: Final = ""  # stands in `trimmed` for all spaces of a log that are not named there


class Recorder:
    """Keeps the history. For the thread that makes all changes, and within its transactions."""

    def __init__(self, connection: sqlite3.Connection, log_of: LogOf, bounds: Bounds) -> None:
        self.log_of = log_of
        self.changed: set[str] = set()
        """The spaces of which there are changes since this was emptied."""
        self._connection = connection
        self._bounds = bounds
        self._kept: dict[str, tuple[int, int]] = {}  # changes and bytes of a log: at least what it holds
        self._grown: set[str] = set()  # logs, since they were trimmed

    def record(self, log: str, space: str, change: Change) -> None:
        """Keep a change of a space of a log. Raises sqlite3.Error."""
        count, size = self._kept.get(log) or self._count(log)
        self._connection.execute(
            "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?)",
            (log, change.number, space, change.key, change.expired, change.expires, change.value),
        )
        self._kept[log] = (count + 1, size + change.size)
        self._grown.add(log)
        self.changed.add(space)

    def drop(self, log: str, space: str, number: int) -> None:
        """Forget the changes of a space, whose readers are to read all of it anew. Raises sqlite3.Error."""
        self._connection.execute("DELETE FROM changes WHERE log = ? AND space = ?", (log, space))
        self._connection.execute("INSERT OR REPLACE INTO trimmed VALUES (?, ?, ?)", (log, space, number))
        self.changed.add(space)

    def trim(self) -> None:
        """Delete the oldest changes of those logs that hold too much. Raises sqlite3.Error."""
        while self._grown:
            log = self._grown.pop()
            if self._is_too_much(*self._kept[log]):
                self._kept[log] = self._count(log)  # changes that were undone have been counted, too
                if self._is_too_much(*self._kept[log]):
                    self._trim(log, *self._kept[log])
        if len(self._kept) > _LOGS:
            self._kept.clear()

    def _is_too_much(self, count: int, size: int) -> bool:
        return count > self._bounds.changes or size > self._bounds.bytes

    def forget(self) -> None:
        """Count anew what logs hold: a transaction was undone."""
        self._kept.clear()
        self._grown.clear()
        self.changed.clear()

    def _count(self, log: str) -> tuple[int, int]:
        count, size = self._connection.execute(_KEPT, (log,)).fetchone()
        return int(count), int(size)

    def _trim(self, log: str, count: int, size: int) -> None:
        execute = self._connection.execute
        leave = self._bounds.after_trimming()
        cut = 0
        for number, taken in execute(_OLDEST, (log,)):
            if count <= leave.changes and size <= leave.bytes:
                break
            cut, count, size = number, count - 1, size - taken
        self._kept[log] = (count, size)
        execute(
            "INSERT INTO trimmed SELECT log, space, max(number) FROM changes WHERE log = ? AND number <= ?"
            " GROUP BY space ON CONFLICT (log, space) DO UPDATE SET number = excluded.number",
            (log, cut),
        )
        execute("DELETE FROM changes WHERE log = ? AND number <= ?", (log, cut))
        spaces, highest = execute(
            "SELECT count(*), max(number) FROM trimmed WHERE log = ?", (log,)
        ).fetchone()
        if spaces > self._bounds.spaces:
            execute("DELETE FROM trimmed WHERE log = ?", (log,))
            execute("INSERT INTO trimmed VALUES (?, ?, ?)", (log, _ALL, highest))


def position(connection: sqlite3.Connection) -> Position:
    """Return where the history is. Raises sqlite3.Error."""
    return Position(*connection.execute("SELECT era, last FROM counter").fetchone())


def read(connection: sqlite3.Connection, log: str, space: str, after: Position, limit: int) -> Batch:
    """Return changes, as `History.changes` does, at one moment. Raises Gone, sqlite3.Error."""
    connection.execute("BEGIN")
    try:
        now = position(connection)
        (trimmed,) = connection.execute(
            "SELECT coalesce(max(number), 0) FROM trimmed WHERE log = ? AND space IN (?, ?)",
            (log, space, _ALL),
        ).fetchone()
        judge(after, now.era, now.number, trimmed)
        changes: list[Change] = []
        size = 0
        for number, key, value, expires, expired in connection.execute(
            "SELECT number, key, value, expires, expired FROM changes"
            " WHERE log = ? AND number > ? AND space = ? ORDER BY number LIMIT ?",
            (log, after.number, space, limit),
        ):
            changes.append(Change(number, key, value, expires, bool(expired)))
            size += changes[-1].size
            if size >= BATCH:
                break
        if changes and (len(changes) == limit or size >= BATCH):
            now = Position(now.era, changes[-1].number)
        return Batch(changes, now)
    finally:
        connection.execute("COMMIT")
