"""A store as a whole, while nobody else uses it: all that is in it goes over into another one, unchanged.

`store_whole_sqlite.py` and `store_whole_redis.py` read and fill the two kinds. Here is how a copy is made and
verified. Versions go over too, and so does the last one that was given out: they are what documents are told
apart by (ETags), and none may ever be used twice.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from msgspec import Struct

from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

NAMES: Final = ("registry", "documents")
"""The stores of a platform. A half-filled registry is what tells that a platform is half copied."""


class Record(NamedTuple):
    """One entry as it is kept; also one that has expired, and waits to be deleted."""

    space: str
    key: str
    value: bytes
    version: int
    expires: float | None  # seconds since the epoch


class Summary(Struct, frozen=True):
    """What a store holds: equal for two stores if, and only if, they hold the same."""

    entries: int
    last: int  # version that was given out
    sha256: str


class Source(AbstractContextManager[Any], Protocol):
    """A store that is read. Each method raises Problem `unavailable` where it can't be."""

    def last(self) -> int:
        """Return the last version that was given out."""
        ...

    def records(self) -> Iterator[list[Record]]:
        """Yield all records in the order of space and key (as bytes), some megabytes at a time at most."""
        ...


class Target(Source, Protocol):
    """A store that is filled: `check_empty`, `clear`, `begin`, `put` …, `finish`; `clear` again undoes it.

    From `begin` to `finish` no platform opens it. A registry that was left so, by somebody who is dead by
    now, tells that both stores hold nothing of worth.
    """

    def check_empty(self) -> None:
        """Raise Problem `conflict` where there is something that is not the rest of a filling."""
        ...

    def clear(self) -> None:
        """Remove all that a filling has made, finished or not."""
        ...

    def begin(self, last: int) -> None:
        """Begin; `last` is as in `Source`."""
        ...

    def put(self, records: list[Record]) -> None:
        """Write records that are not there yet."""
        ...

    def finish(self) -> None:
        """Make it a store like others, which lasts as they do."""
        ...


def copy(sources: Mapping[str, Source], targets: Mapping[str, Target]) -> dict[str, Summary]:
    """Copy the stores of a platform, by NAMES, and return what each holds.

    What has arrived is read again and compared, and so is the source: nobody may have written there
    meanwhile. Raises Problem; the targets are empty again then, or can be told to be half filled.
    """
    for target in targets.values():
        target.check_empty()
    clear(targets)
    try:
        for name in NAMES:
            targets[name].begin(sources[name].last())
        summaries = {name: _copy(name, sources[name], targets[name]) for name in NAMES}
        for name in reversed(NAMES):
            targets[name].finish()
    except BaseException:
        try:
            clear(targets)
        except Problem as problem:
            _log.error("What was copied is still there; copying again removes it. %s", problem.detail)
        raise
    return summaries


def clear(targets: Mapping[str, Target]) -> None:
    """Remove what a filling has made, the registry last: as long as it is there it tells what it is."""
    for name in reversed(NAMES):
        targets[name].clear()


def _copy(name: str, source: Source, target: Target) -> Summary:
    passed = summary(_passing(source.records(), target), source.last())
    for which, found in (("arrived", summarise(target)), ("been there afterwards", summarise(source))):
        if found != passed:
            raise Problem(
                "internal",
                f"The {name}: {passed} was read, and {found} has {which}. Nothing was kept. Is a disk "
                "failing, or is somebody writing there?",
            )
    return passed


def _passing(read: Iterator[list[Record]], target: Target) -> Iterator[list[Record]]:
    for records in read:
        target.put(records)
        yield records


def summarise(source: Source) -> Summary:
    """Read all of a store. Raises Problem."""
    return summary(source.records(), source.last())


def summary(read: Iterable[list[Record]], last: int) -> Summary:
    """Return the summary of records that are read."""
    encoder, digest, entries = msgspec.msgpack.Encoder(), hashlib.sha256(), 0
    for records in read:
        entries += len(records)
        for record in records:
            digest.update(encoder.encode(record))
    return Summary(entries, last, digest.hexdigest())
