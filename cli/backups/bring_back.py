"""Makes a data folder of a backup.

All is unpacked and verified in a folder of its own, and gets to its place only then, the registry last. No
platform starts meanwhile, or on what is left where this was killed (see sqlite_file.make).
"""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from cli.backups import repositories
from cli.backups.archive import Reader
from pilotlight import sqlite_file, trees
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem


def bring_back(file: Path, data: DataFolder) -> dict[str, Any]:
    """Restore a backup into a data folder in which nothing is; return what its head says. Raises Problem.

    Where it fails, the folder is as empty as before.
    """
    if not file.is_file():
        raise Problem("not-found", f"There is no backup {file}.")
    data.prepare()
    claim = data.lock()
    try:
        with data.telling_when_full():
            return _bring_back(file, data)
    except OSError as error:
        raise Problem("unavailable", f"{file} could not be restored: {error}.") from error
    finally:
        os.close(claim)


def _bring_back(file: Path, data: DataFolder) -> dict[str, Any]:
    work = data.root / "restore.unfinished"
    if not work.exists():
        _check_empty(data)
    mark = sqlite_file.unfinished(data.registry)
    try:
        _clear(data, work)  # what one that was killed has left
        work.mkdir(mode=0o711)
        mark.touch(mode=0o600)
        head = Reader(file).unpack(work)
        _begin_era(data, work)
        heads = json.loads((work / "repositories.json").read_text())
        repositories.unpack(work / "bundles", heads, work / "repositories")
        _settle(data, work)
    except BaseException:
        _clear(data, work)
        raise
    (work / data.registry.name).rename(mark)
    trees.remove(work)
    mark.rename(data.registry)
    sqlite_file.synchronise(data.root)
    return head


def _begin_era(data: DataFolder, work: Path) -> None:
    """Have those who follow documents read them anew: the platform may have gone on since the backup."""
    path = work / data.store("documents").name
    try:
        sqlite_file.begin_era(path)
    except sqlite3.Error as error:
        raise sqlite_file.problem(error, path) from error


def _check_empty(data: DataFolder) -> None:
    there = [path for path in data.root.rglob("*") if not path.is_dir() and path != data.root / "lock"]
    if there:
        raise Problem(
            "conflict",
            f"{data.root} is not empty: {there[0]} is there. Name another folder with --data, or move away "
            "what is there: nothing is overwritten.",
        )


def _parts(data: DataFolder) -> tuple[Path, ...]:
    """Return what a backup holds, in the order in which it gets to its place."""
    audit = (data.audit, *(data.audit.with_name(f"{data.audit.stem}.{n}.jsonl") for n in range(1, 10)))
    return (data.layers, data.repositories, data.secrets_key, data.admin_key, *audit, data.store("documents"))


def _settle(data: DataFolder, work: Path) -> None:
    """Move all but the registry to its place, once it is on the disk."""
    os.sync()
    for part in _parts(data):
        unpacked = work / part.name
        if unpacked.exists():
            owner = part.parent.stat()
            os.chown(unpacked, owner.st_uid, owner.st_gid)
            unpacked.replace(part)
            sqlite_file.synchronise(part.parent)


def _clear(data: DataFolder, work: Path) -> None:
    """Remove what was restored, and last what tells that it is no whole."""
    for part in reversed(_parts(data)):
        if os.path.lexists(part):
            trees.remove(part)
    data.prepare()
    for left in (work, sqlite_file.unfinished(data.registry)):
        if os.path.lexists(left):
            trees.remove(left)
