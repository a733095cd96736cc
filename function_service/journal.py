"""Entries of one kind by function, on disk: each function's in two files of bounded size."""

import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=msgspec.Struct)


class Journal(Generic[E]):
    """The entries of all functions, in one folder, one JSON object a line."""

    def __init__(self, folder: Path, kind: type[E], what: str, most: int) -> None:
        """`what` names the entries where some are lost, such as `Logs of functions`.

        `most` is what those of one function may take, in bytes; the files may be larger by one `append`.
        """
        self._folder = folder
        self._largest = most // 2  # at that size a file becomes the older one of the two
        self._decoder = msgspec.json.Decoder(kind)
        self._what = what
        self._failing = False

    def _files(self, function: str) -> tuple[Path, Path]:
        return self._folder / f"{function}.old.jsonl", self._folder / f"{function}.jsonl"

    def append(self, function: str, entries: Sequence[E]) -> None:
        """Keep entries. Those that the disk has no room for are lost, which is logged once."""
        older, newer = self._files(function)
        try:
            with newer.open("ab") as file:
                file.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
                full = file.tell() > self._largest
            if full:
                newer.replace(older)
            self._failing = False
        except OSError as error:
            if not self._failing:
                _log.error("%s are being lost: %s", self._what, error)
            self._failing = True

    def tail(self, function: str, count: int) -> list[E]:
        """Return the last entries, oldest first."""
        return self._decoded(deque(self._lines(function), maxlen=count))

    def holding(self, function: str, text: bytes) -> list[E]:
        """Return the entries of a function whose JSON holds some bytes, oldest first."""
        return self._decoded(line for line in self._lines(function) if text in line)

    def _lines(self, function: str) -> Iterator[bytes]:
        for path in self._files(function):
            if path.exists():
                with path.open("rb") as file:
                    yield from file

    def _decoded(self, lines: Iterable[bytes]) -> list[E]:
        entries = []
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):  # of a process that was killed while it wrote
                entries.append(self._decoder.decode(line))
        return entries

    def functions(self) -> list[str]:
        """List the functions that have entries."""
        names = {
            path.name.removesuffix(".jsonl").removesuffix(".old") for path in self._folder.glob("*.jsonl")
        }
        return sorted(names)

    def delete_others(self, functions: Iterable[str]) -> None:
        """Forget the entries of all functions that are not among these."""
        kept = {path for function in functions for path in self._files(function)}
        for path in set(self._folder.glob("*.jsonl")) - kept:
            path.unlink(missing_ok=True)
