"""Connections by which nothing has come yet, when a server stops.

Their callers have a request on the way, as like as not, and would not know that it can be made again: so
such a connection is not closed with those that wait for their next request.
"""

import asyncio
import contextlib
import weakref
from typing import Any, Final

_WITHIN: Final = 0.5  # seconds at the end that a connection may take to send something at all
_BEGUN: Final = 0.02  # seconds until the request that comes last is surely under way


class Fresh:
    """Those of one server. Each is to be noted in the factory of its protocol: it may not be made yet."""

    def __init__(self) -> None:
        # Weak, as nobody tells of one that fails at TLS
        self._there: weakref.WeakSet[Any] = weakref.WeakSet()
        self._none = asyncio.Event()

    def add(self, connection: Any) -> None:
        """Take note of a connection that is accepted."""
        self._there.add(connection)

    def discard(self, connection: Any) -> None:
        """Take note that something has come by a connection, or that it is gone."""
        self._there.discard(connection)
        if not self._there:
            self._none.set()

    async def heard(self, grace: float) -> None:
        """Wait until the first request of each is under way; at most `grace` seconds, and never long."""
        if not self._there:
            return
        self._none.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(grace, _WITHIN)):
                await self._none.wait()
            await asyncio.sleep(_BEGUN)
