"""What functions print, and what calls they had: kept in journals, and the lines told live to who follows."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from pathlib import Path

from function_service.contract import LogLine, Usage
from function_service.journal import Journal

_FOLLOWER = 1000  # lines that wait for a slow follower


class LogBook:
    """The logs of all functions, in one folder; `calls` are the calls that have ended."""

    def __init__(self, folder: Path, most: int = 8 << 20) -> None:
        """`most` is what the lines of one function may take, and what its calls may, in bytes."""
        (folder / "calls").mkdir(parents=True, exist_ok=True)
        self._journal = Journal(folder, LogLine, "Logs of functions", most)
        self.calls = Journal(folder / "calls", Usage, "Reports of calls", most)
        self._followers: dict[str, set[asyncio.Queue[LogLine]]] = {}

    def append(self, function: str, lines: Sequence[LogLine]) -> None:
        """Keep lines. Those that the disk has no room for are lost, which is logged once."""
        self._journal.append(function, lines)
        for queue in self._followers.get(function, ()):
            for line in lines[-_FOLLOWER:]:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(line)

    def tail(self, function: str, count: int) -> list[LogLine]:
        """Return the last lines, oldest first."""
        return self._journal.tail(function, count)

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

    def delete_others(self, functions: Iterable[str]) -> None:
        """Forget functions that are not among these: an instance may outlive its function."""
        kept = set(functions)
        self._journal.delete_others(kept)
        self.calls.delete_others(kept)
