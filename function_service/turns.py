"""Gateways that wait for an instance because others hold all that there may be: whose turn it is.

With several gateways each has leases of its own. Where a function may have no more instances, and another
gateway holds them, that one is asked to give one back (contract.Wanted), and whoever waits longest gets it.
"""

import asyncio
from collections import deque
from collections.abc import Callable

_ASK_EVERY = 0.05  # seconds; what could not be given back before may be now

Ticket = asyncio.Future[None]


class Turns:
    """Who waits, by function, the longest first."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Ticket]] = {}

    def is_due(self, function: str, ticket: Ticket | None) -> bool:
        """Whether nobody waits longer. `ticket` is what `wait` returned, None for who has just come."""
        queue = self._waiting.get(function)
        return queue is None or queue[0] is ticket

    async def wait(
        self, function: str, ticket: Ticket | None, deadline: float, ask: Callable[[], None]
    ) -> Ticket:
        """Wait until it is worth to look again; return the ticket with which to `wait` on, or to `leave`.

        Calls `ask` at once and from time to time, unless somebody waits longer. Raises TimeoutError at the
        deadline, on the loop's clock; the ticket is left then, as where the wait is cancelled.
        """
        loop = asyncio.get_running_loop()
        fresh: Ticket = loop.create_future()
        queue = self._waiting.setdefault(function, deque())
        if ticket is None:
            queue.append(fresh)
        else:
            queue[queue.index(ticket)] = fresh
        try:
            while not fresh.done():
                now = loop.time()
                if now >= deadline:
                    raise TimeoutError
                if queue[0] is fresh:
                    ask()
                await asyncio.wait([fresh], timeout=min(_ASK_EVERY, deadline - now))
        except BaseException:
            self.leave(function, fresh)
            raise
        return fresh

    def leave(self, function: str, ticket: Ticket) -> None:
        """Wait no more. The next one looks whether there is something for it too."""
        queue = self._waiting[function]
        queue.remove(ticket)
        if not queue:
            del self._waiting[function]
        self.free(function)

    def free(self, function: str) -> None:
        """Wake who waits longest: an instance has become free, or there may be one more."""
        if (queue := self._waiting.get(function)) is not None and not queue[0].done():
            queue[0].set_result(None)
