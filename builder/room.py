"""The limit of each app's repository, and how room is made below it before a push is refused."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from builder import folders
from builder.repository import Repositories
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

_UNREACHABLE: Final = "1.hour.ago"  # when what no ref leads to may go; a push takes half of that at most
_AGAIN: Final = (
    600.0  # seconds until a repository is cleaned again: that takes long, and pushers may ask often
)


class Room:
    """Cleans one repository at a time."""

    def __init__(self, repositories: Repositories, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._repositories = repositories
        self._limits = repositories.limits
        self._clock = clock
        self._turn = asyncio.Lock()
        self._cleaned: dict[str, float] = {}  # app → when

    async def make(self, app: str) -> None:
        """See that an app's repository is within its limit, by removing what no branch leads to any more.

        Raises Problem `too-large`.
        """
        if not self._repositories.exists(app) or await self._size(app) <= self._limits.repository:
            return
        async with self._turn:
            await self._clean(app)
            size = await self._size(app)
        if size > self._limits.repository:
            raise Problem(
                "too-large",
                f"The repository of {app!r} takes {size} bytes, and may take {self._limits.repository}. What "
                "a forced push has replaced is removed an hour later. Delete the functions and push again to "
                "begin without the history; --max-repository of the platform raises the limit.",
            )

    async def _clean(self, app: str) -> None:
        now = self._clock()
        self._cleaned = {name: when for name, when in self._cleaned.items() if now - when < _AGAIN}
        if app in self._cleaned:
            return
        self._cleaned[app] = now
        try:
            # What is younger may belong to a push that is under way
            await self._repositories.git(
                "gc", "--quiet", f"--prune={_UNREACHABLE}", app=app, within=self._limits.step
            )
        except (Problem, TimeoutError) as error:  # such as where the disk is full
            _log.warning("The repository of %s was not cleaned: %r", app, error)

    async def _size(self, app: str) -> int:
        return await asyncio.to_thread(folders.size, self._repositories.path(app))
