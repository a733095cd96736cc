"""Short tasks that outlive the call that started them, such as giving a lease back: each is owned here."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Tasks:
    """Starts tasks, keeps them from being lost, and ends them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start work as a task. A fault in it is logged, and reaches whoever awaits the task."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("action=task-failed task=%r", task.get_name(), exc_info=error)

    async def close(self, grace: float) -> None:
        """Let what runs end within grace seconds, then cancel it."""
        if self._running:
            await asyncio.wait(self._running, timeout=grace)
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
