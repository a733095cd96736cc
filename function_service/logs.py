"""What functions print: kept by function in two files of bounded size, and told live to who follows."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from pathlib import Path

import msgspec

from function_service.contract import LogLine

_log = logging.getLogger(__name__)
_FILE = 4 << 20  # bytes; at that size a file becomes the older one of the two
_FOLLOWER = 1000  # lines that wait for a slow follower


class LogBook:
    """The logs of all functions, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._followers: dict[str, set[asyncio.Queue[LogLine]]] = {}
        self._failing = False

    def _files(self, function: str) -> tuple[Path, Path]:
        return self._folder / f"{function}.old.jsonl", self._folder / f"{function}.jsonl"

    def append(self, function: str, lines: Sequence[LogLine]) -> None:
        """Keep lines. Those that the disk has no room for are lost, which is logged once."""
        older, newer = self._files(function)
        try:
            with newer.open("ab") as file:
                file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
                full = file.tell() > _FILE
            if full:
                newer.replace(older)
            self._failing = False
        except OSError as error:
            if not self._failing:
                _log.error("Logs of functions are being lost: %s", error)
            self._failing = True
        for queue in self._followers.get(function, ()):
            for line in lines[-_FOLLOWER:]:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(line)

    def tail(self, function: str, count: int) -> list[LogLine]:
        """Return the last lines, oldest first."""
        lines: deque[LogLine] = deque(maxlen=count)
        decoder = msgspec.json.Decoder(LogLine)
        for path in self._files(function):
            if path.exists():
                with path.open("rb") as file:
                    for raw in file:
                        try:
                            lines.append(decoder.decode(raw))
                        except msgspec.DecodeError:
                            continue  # the last line of a process that was killed while it wrote
        return list(lines)

    async def read(self, function: str, count: int, *, follow: bool) -> AsyncGenerator[LogLine, None]:
        """Yield the last lines, then, if `follow`, every new one."""
        queue: asyncio.Queue[LogLine] = asyncio.Queue(_FOLLOWER)
        followers = self._followers.setdefault(function, set())
        followers.add(queue)
        try:
            for line in self.tail(function, count):
                yield line
            while follow:
                yield await queue.get()
        finally:
            followers.discard(queue)
            if not followers:
                self._followers.pop(function, None)

    def delete(self, function: str) -> None:
        """Forget what a function printed."""
        for path in self._files(function):
            path.unlink(missing_ok=True)

    def delete_others(self, functions: Iterable[str]) -> None:
        """Forget what functions printed that are not among these: an instance may outlive its function."""
        kept = {path for function in functions for path in self._files(function)}
        for path in set(self._folder.glob("*.jsonl")) - kept:
            path.unlink(missing_ok=True)
