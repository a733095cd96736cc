"""The audit log: who did what, one JSON object a line, only ever appended to, on the disk before the answer.

JSON escapes line ends, so that no name can pass for a line of its own. At a size the file becomes the first
of a few older ones, and the oldest goes.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from function_service.contract import Actor, AuditEntry
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)
T = TypeVar("T")

_OLDER: Final = 9  # files that are kept besides the present one
_LONGEST: Final = 200  # characters of a text that a caller chose


class AuditLog:
    """The log in a folder. One thing at a time is written."""

    def __init__(self, path: Path, most: int = 80 << 20) -> None:
        """`most` is what all files may take together, in bytes."""
        self._path = path
        self._largest = most // (_OLDER + 1)
        self._turn = asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def during(self, action: str, by: Actor, work: Awaitable[T], details: dict[str, Any]) -> T:
        """Do some work and write down how it went; both go on to their end when the caller is cancelled.

        The work may add to `details`.
        Raises what the work raises, and Problem `unavailable` where the log can't be written.
        """
        task = asyncio.create_task(self._during(action, by, work, details), name=f"audited {action}")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _during(self, action: str, by: Actor, work: Awaitable[T], details: dict[str, Any]) -> T:
        try:
            done = await work
        except BaseException as error:
            outcome = f"refused: {error.kind}" if isinstance(error, Problem) else "failed"
            await self.write(action, by, details, outcome)
            raise
        await self.write(action, by, details, "done")
        return done

    async def write(self, action: str, by: Actor, details: dict[str, Any], outcome: str = "done") -> None:
        """Write one entry, and return when the disk has it. Raises Problem `unavailable`."""
        entry = AuditEntry(
            time=time.time(),
            action=action,
            outcome=outcome,
            by=Actor(**{name: getattr(by, name)[:_LONGEST] for name in Actor.__struct_fields__}),
            details={name: _short(value) for name, value in details.items()},
        )
        async with self._turn:
            try:
                await asyncio.to_thread(self._append, msgspec.json.encode(entry) + b"\n")
            except OSError as error:
                _log.error("action=audit-failed error=%r entry=%r", error.strerror, entry)
                raise Problem(
                    "unavailable",
                    f"What came of {action} is {outcome}, but it could not be written to the audit log "
                    f"({error.strerror}). Make room on the platform's disk.",
                ) from error

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # after what a killed process or a full disk has left of one
            file.write(line)
            os.fsync(descriptor)
        if size == 0 or size + len(line) > self._largest:
            if size:
                self._rotate()
            _synchronise(self._path.parent)

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.{number}{self._path.suffix}")

    def _rotate(self) -> None:
        for number in range(_OLDER, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                self._older(number - 1).replace(self._older(number))
        self._path.replace(self._older(1))

    async def tail(self, count: int) -> list[AuditEntry]:
        """Return the last entries, oldest first."""
        async with self._turn:
            return await asyncio.to_thread(lambda: list(deque(self._entries(), maxlen=count)))

    def _entries(self) -> Iterator[AuditEntry]:
        decoder = msgspec.json.Decoder(AuditEntry)
        for path in (*(self._older(number) for number in range(_OLDER, 0, -1)), self._path):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                for line in file:
                    with contextlib.suppress(msgspec.DecodeError):  # what a killed process has left
                        yield decoder.decode(line)


def _short(value: Any) -> Any:
    return value[:_LONGEST] if isinstance(value, str) else value


def _synchronise(folder: Path) -> None:
    """Have the folder's names on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
