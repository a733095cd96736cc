"""The stores of a platform that does not run, as a command line names them."""

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

from cli.serve import prepare
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem
from pilotlight.settings import current
from pilotlight.store_whole import NAMES, Source, Target


@contextlib.contextmanager
def sources(text: str, purpose: str) -> Iterator[Mapping[str, Source]]:
    """Open what is to be read, and hold it against platforms, which are told for what. Raises Problem."""
    folder = _folder(text)
    with contextlib.ExitStack() as stack:
        if folder is None:
            from pilotlight.store_whole_redis import RedisSource

            url = _url(text)
            yield {name: stack.enter_context(RedisSource(url, name, _owner(name, purpose))) for name in NAMES}
            return
        from pilotlight.store_whole_sqlite import SqliteSource

        data = DataFolder(folder)
        if not data.registry.exists():
            raise Problem("not-found", f"There is no store in {folder}.")
        stack.callback(os.close, data.lock())
        yield {name: stack.enter_context(SqliteSource(data.store(name))) for name in NAMES}


@contextlib.contextmanager
def targets(text: str, purpose: str) -> Iterator[Mapping[str, Target]]:
    """Have what is to be filled, and hold it against platforms, which are told for what. Raises Problem."""
    folder = _folder(text)
    with contextlib.ExitStack() as stack:
        if folder is None:
            from pilotlight.store_whole_redis import RedisTarget

            url = _url(text)
            yield {name: stack.enter_context(RedisTarget(url, name, _owner(name, purpose))) for name in NAMES}
            return
        from pilotlight.store_whole_sqlite import SqliteTarget

        data = DataFolder(folder)
        prepare(data)
        stack.callback(os.close, data.lock())
        yield {name: stack.enter_context(SqliteTarget(data.store(name), data.registry)) for name in NAMES}


def _folder(text: str) -> Path | None:
    """Return the data folder that is meant; None for a Redis."""
    kind, colon, rest = text.partition(":")
    if kind != "sqlite":
        return None
    if not colon:
        return current().data
    if not rest:
        raise Problem("invalid-request", "Name the folder: sqlite:FOLDER.")
    return Path(rest).expanduser().absolute()


def _url(text: str) -> str:
    """Return the address of a Redis. Raises Problem, without what was given: that may hold a password."""
    try:
        return current({"store": text}).store
    except Problem:
        raise Problem(
            "invalid-request",
            "A store is sqlite, sqlite:FOLDER, redis://HOST:PORT/0, rediss://…, unix:///PATH, "
            "redis+sentinel://HOST:PORT,…/SERVICE/0 or redis+cluster://HOST:PORT,….",
        ) from None


def _owner(name: str, purpose: str) -> str:
    """Return as whom a store is claimed; that of the registry stands for both."""
    if name != "registry":
        return ""
    return f"{platform.node()}, {purpose}, process {os.getpid()}"
