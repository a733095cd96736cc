"""The file of a SQLite store: how it is made, opened and brought to the newest schema; what it fails with.

It is made whole under another name, and opened only where it is one of ours: what is damaged is named, and
left alone for its operator to mend.
"""

import contextlib
import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

from pilotlight.problems import Problem
from pilotlight.store import PLACE

_APPLICATION: Final = 0x50494C54  # "PILT", in the file's header: it tells our files from others
_BUSY: Final = 5.0  # seconds to wait for another process that looks into the file
_RESTORE: Final = (
    "Restore a copy of it, or move it away, with what else begins with its name, to start empty."
)
_ROOM: Final = 64 << 10  # bytes; less than SQLite needs beside the file to open it

_SIZE: Final = f"(length(CAST({{0}}.key AS BLOB)) + length({{0}}.value) + {PLACE})"

_NEW_ERA: Final = "UPDATE counter SET era = lower(hex(randomblob(5)))"

_SCHEMA: Final = (
    # Each element leads from the version that is its index to the next one.
    (
        """CREATE TABLE entries (
            space TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, version INTEGER NOT NULL,
            expires REAL, PRIMARY KEY (space, key))""",
        "CREATE INDEX expiring ON entries (expires) WHERE expires IS NOT NULL",
        # The last version that was given out. It only grows, so no version is used twice.
        "CREATE TABLE counter (last INTEGER NOT NULL)",
        "INSERT INTO counter VALUES (0)",
    ),
    (
        # What `Store.size` tells, kept with each change: to add it up when asked would read the whole file
        "CREATE TABLE sizes (space TEXT NOT NULL PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID",
        f"INSERT INTO sizes SELECT space, sum({_SIZE.format('entries')}) FROM entries GROUP BY space",  # noqa: S608
        f"""CREATE TRIGGER entry_made AFTER INSERT ON entries BEGIN
            INSERT OR IGNORE INTO sizes VALUES (new.space, 0);
            UPDATE sizes SET bytes = bytes + {_SIZE.format("new")} WHERE space = new.space; END""",  # noqa: S608
        """CREATE TRIGGER entry_changed AFTER UPDATE ON entries BEGIN
            UPDATE sizes SET bytes = bytes + length(new.value) - length(old.value)
            WHERE space = new.space; END""",
        f"""CREATE TRIGGER entry_deleted AFTER DELETE ON entries BEGIN
            UPDATE sizes SET bytes = bytes - {_SIZE.format("old")} WHERE space = old.space;
            DELETE FROM sizes WHERE space = old.space AND bytes = 0; END""",  # noqa: S608
    ),
    (
        # The history, see history_sqlite.py. The value comes last, as most who look at a row don't need it
        """CREATE TABLE changes (
            log TEXT NOT NULL, number INTEGER NOT NULL, space TEXT NOT NULL, key TEXT NOT NULL,
            expired INTEGER NOT NULL, expires REAL, value BLOB, PRIMARY KEY (log, number)) WITHOUT ROWID""",
        """CREATE TABLE trimmed (
            log TEXT NOT NULL, space TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (log, space))
            WITHOUT ROWID""",
        "ALTER TABLE counter ADD COLUMN era TEXT NOT NULL DEFAULT ''",
        _NEW_ERA,
    ),
)


def make(path: Path) -> None:
    """Make the file where there is none, readable by its owner alone; the log beside it takes over its mode.

    It gets its name once it is whole, so that an empty file is always a damaged one. Raises Problem where the
    file or its log is lost, or half of it is there, OSError, sqlite3.Error.
    """
    log = path.with_name(f"{path.name}-wal")
    if path.exists():
        if path.stat().st_size == 0:
            raise Problem("unavailable", f"{path} is empty, which it never is by itself. {_RESTORE}")
        return
    if log.exists():
        raise Problem(
            "unavailable", f"{path} is missing, while {log.name}, a part of it, is there. {_RESTORE}"
        )
    if (half := unfinished(path)).exists():
        raise Problem(
            "unavailable",
            f"{half} is what an interrupted `pilotlight store migrate` or `restore` has left. Run that "
            f"again, or move away what lies in {path.parent}, to start empty.",
        )
    fresh = path.with_name(f"{path.name}.new")
    for left in (fresh, *(fresh.with_name(f"{fresh.name}{part}") for part in ("-wal", "-shm"))):
        left.unlink(missing_ok=True)  # of an opening that was interrupted
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.closing(connect(fresh)) as connection:
        migrate(connection, fresh)
    fresh.rename(path)
    synchronise(path.parent)


def unfinished(path: Path) -> Path:
    """Return what the file of a store is called while it is filled with what another one holds."""
    return path.with_name(f"{path.name}.unfinished")


def synchronise(folder: Path) -> None:
    """Have the names in a folder on the disk: a file is only there after a power cut when they are, too.

    Raises OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file once more. Raises sqlite3.Error."""
    # Each connection is used by one thread at a time, though not always by the one that made it
    connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def check(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of the schema. Raises Problem for a newer or a foreign file; sqlite3.Error."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION and tables:
        raise Problem(
            "unavailable",
            f"{path} is a database of another program. Move it away, or name another data folder.",
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(_SCHEMA):
        raise Problem(
            "unavailable",
            f"{path} was written by a newer Pilotlight (schema {version}; this one knows {len(_SCHEMA)}). "
            "Use that version again, or a copy of the data folder from before.",
        )
    return int(version)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema to the newest version, as a whole or not at all. Raises Problem, sqlite3.Error."""
    if check(connection, path) == len(_SCHEMA):
        return
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been quicker
    for step in _SCHEMA[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {len(_SCHEMA)}")
    connection.execute("COMMIT")


def begin_era(path: Path) -> None:
    """Begin a new era (see history.py): what was brought back goes on otherwise than it once did.

    Raises Problem, sqlite3.Error.
    """
    with contextlib.closing(connect(path)) as connection:
        migrate(connection, path)
        connection.execute("BEGIN IMMEDIATE")
        for statement in ("DELETE FROM changes", "DELETE FROM trimmed", _NEW_ERA):
            connection.execute(statement)
        connection.execute("COMMIT")


def problem(error: sqlite3.Error | OSError, path: Path) -> Problem:
    """Turn what SQLite or the system says into words that name the remedy."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Problem("unavailable", f"{path} can't be made: the disk is full. Make room on it.")
        return Problem("unavailable", f"{path} can't be made: {error.strerror}. Make its folder writable.")
    # The low byte is the kind, https://www.sqlite.org/rescode.html
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_full(path.parent):
        kind = sqlite3.SQLITE_FULL  # it could not make the files that it works with
    details = {
        sqlite3.SQLITE_FULL: "The disk is full. Make room on it; nothing of this change was kept.",
        sqlite3.SQLITE_CORRUPT: f"The file is damaged. {_RESTORE}",
        sqlite3.SQLITE_NOTADB: f"The file is no database. {_RESTORE}",
        sqlite3.SQLITE_READONLY: "The file is not writable. Give it to the user that the platform runs as.",
        sqlite3.SQLITE_CANTOPEN: "The file can't be opened. Give it and its folder to the platform's user.",
        sqlite3.SQLITE_PERM: "Access was denied. Give the file to the user that the platform runs as.",
        sqlite3.SQLITE_IOERR: "The disk failed; see the system's log. Nothing of this change was kept.",
        sqlite3.SQLITE_BUSY: "Another program holds it. End that one (a shell on the database, a backup).",
    }
    if kind not in details:
        return Problem("internal", f"{path}: {error}")
    return Problem("unavailable", f"{path}: {details[kind]} ({error})")


def _is_full(folder: Path) -> bool:
    """Tell whether there is no room, or next to none, on the disk of a folder."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _ROOM
