"""Takes a backup, of a platform that runs or of one that does not.

What is taken first may lack what is taken later, and never the other way round: a repository lags behind the
registry (its app's next push catches up), and layers, which never change, come last. A layer that a push has
made superfluous meanwhile may be gone by then: all is taken anew.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli import store_places
from cli.backups import repositories
from cli.backups.archive import Writer
from function_service.layers.store import LayerStore
from function_service.registry import Registry
from function_service.safe import Safe
from pilotlight import sqlite_file, store_whole, stores, trees
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem
from pilotlight.settings import Settings
from pilotlight.store_sqlite import SqliteStore
from pilotlight.store_whole_sqlite import SqliteTarget

_ATTEMPTS: Final = 5


@dataclass(frozen=True)
class Taken:
    """What a backup holds, and what it had to leave out."""

    file: str
    bytes: int
    functions: int
    revisions: int
    keys: int
    documents: int
    repositories: int
    layers: int
    secrets_key: bool
    missing_layers: tuple[str, ...]


class _Gone(Exception):  # noqa: N818  it is done again
    """A layer went while it was read."""


def take(settings: Settings, file: Path) -> Taken:
    """Write a backup of the platform on a data folder to a file that is not there yet, readable by its owner.

    Raises Problem; there is no file then.
    """
    data = DataFolder(settings.data)
    if not data.admin_key.exists():
        raise Problem(
            "not-found", f"There is no platform in the data folder {data.root}. Name it with --data."
        )
    if os.path.lexists(file):
        raise Problem("conflict", f"{file} is there already. Name another one: nothing is overwritten.")
    try:
        with _work(file.with_name(f"{file.name}.part")) as work:
            taken = _settled(settings, data, work, file)
            (work / "archive").rename(file)
            sqlite_file.synchronise(file.parent)
    except (OSError, sqlite3.Error) as error:
        raise Problem("unavailable", f"The backup could not be made: {error}.") from error
    return taken


def _settled(settings: Settings, data: DataFolder, work: Path, file: Path) -> Taken:
    """Take all, until no push has come in between."""
    missing: tuple[str, ...] | None = None
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(_Gone):
            taken = _take(settings, data, work, file)
            if taken.missing_layers in ((), missing):  # what is missing twice is no push's doing
                return taken
            missing = taken.missing_layers
    raise Problem("conflict", "Pushes are under way without a pause. Try again in a while.")


@contextlib.contextmanager
def _work(folder: Path) -> Iterator[Path]:
    """Have a folder beside the file, without what a backup that was killed has left in it."""
    descriptor = -1
    try:  # from the very beginning: Ctrl-C may come between any two steps
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not _locked(descriptor):
            raise Problem("conflict", f"Another backup is writing to {folder}.")
        yield folder
    finally:
        if descriptor == -1 and folder.is_dir():
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if descriptor != -1:
            try:
                if _locked(descriptor):
                    trees.remove(folder)
            finally:
                os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Lock a file for this process, if it is not another one's; return whether it is locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take(settings: Settings, data: DataFolder, work: Path, file: Path) -> Taken:
    for left in work.iterdir():
        trees.remove(left)
    heads = repositories.pack(data.repositories, work)
    _copy_stores(settings, data, work)
    registry, layers = asyncio.run(_registry(data, work)), LayerStore(data.layers)
    # Where another file's key is used, one that lies here is from before, and opens nothing any more
    key_is_here = settings.secrets_key in ("", str(data.secrets_key)) and data.secrets_key.exists()
    keys = (data.admin_key, data.secrets_key) if key_is_here else (data.admin_key,)
    archive = work / "archive"
    with os.fdopen(os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        writer = Writer(opened)
        for name in store_whole.NAMES:
            writer.file(f"{name}.db", work / f"{name}.db")
        writer.text("repositories.json", json.dumps(heads))
        writer.folder("bundles")
        for app in heads:
            writer.file(f"bundles/{app}", work / f"{app}.bundle")
        for path in (*keys, *sorted(data.root.glob(f"{data.audit.stem}*.jsonl"))):
            with contextlib.suppress(FileNotFoundError):
                writer.file(path.name, path)
        writer.folder("layers")
        needed = sorted(registry.layers_in_use())
        missing = tuple(digest for digest in needed if not _layer(writer, layers, digest))
        writer.end()
        opened.flush()
        os.fsync(opened.fileno())
    return Taken(
        file=str(file),
        bytes=archive.stat().st_size,
        functions=len(registry.all_live()),
        revisions=sum(map(len, registry.revisions.values())),
        keys=len(registry.keys),
        documents=_documents(work),
        repositories=len(heads),
        layers=len(needed) - len(missing),
        secrets_key=key_is_here,
        missing_layers=missing,
    )


def _copy_stores(settings: Settings, data: DataFolder, work: Path) -> None:
    """Copy each store as it is at one moment. Raises Problem, sqlite3.Error."""
    _check_store(settings, data)
    if settings.store != "sqlite":
        targets = {
            name: SqliteTarget(work / f"{name}.db", work / "registry.db") for name in store_whole.NAMES
        }
        with (
            store_places.sources(settings.store, "pilotlight backup") as sources,
            contextlib.ExitStack() as stack,
        ):
            store_whole.copy(sources, {name: stack.enter_context(each) for name, each in targets.items()})
        return
    for name in store_whole.NAMES:
        path = data.store(name)
        if not path.exists():
            raise Problem("not-found", f"{path} is missing.")
        with (
            contextlib.closing(sqlite_file.connect(path)) as source,
            contextlib.closing(_fresh(work / path.name)) as target,
        ):
            sqlite_file.check(source, path)
            source.backup(target)
            [(found,)] = target.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise Problem("unavailable", f"{path} is damaged: {found}.")


def _fresh(path: Path) -> sqlite3.Connection:
    """Make an empty file, readable by its owner alone, also where it is restored."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path)


def _check_store(settings: Settings, data: DataFolder) -> None:
    """Raise Problem where the platform that runs keeps its state elsewhere than the settings say."""
    try:
        used = json.loads(data.platform.read_text()).get("store", "sqlite")
    except FileNotFoundError:
        return
    if used != stores.shown(settings.store):
        raise Problem(
            "invalid-request",
            f"The platform on {data.root} keeps its state in {used}, not in {stores.shown(settings.store)}. "
            "Name its store with --store or PILOTLIGHT_STORE.",
        )


async def _registry(data: DataFolder, work: Path) -> Registry:
    """Read the copy of the registry."""
    store = await SqliteStore.open(work / "registry.db")
    try:
        registry = Registry(store, Safe(data.secrets_key, ours=True))
        await registry.load()
        return registry
    finally:
        await store.close()


def _layer(writer: Writer, layers: LayerStore, digest: str) -> bool:
    """Add a layer; False where it is not there. Raises _Gone."""
    path = layers.path(digest)
    if not path.is_dir():
        return False
    try:
        writer.tree(f"layers/{digest}", path)
        writer.file(f"layers/{digest}.note", path.with_name(f"{digest}.note"))
    except FileNotFoundError as error:
        raise _Gone from error
    if not path.is_dir():  # what is removed is renamed first: so nothing was missing while it was read
        raise _Gone
    return True


def _documents(work: Path) -> int:
    with contextlib.closing(sqlite3.connect(work / "documents.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])
