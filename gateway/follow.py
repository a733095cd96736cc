"""Follows what the function service tells: the table, and what happens to our leases. For ever."""

import asyncio
import logging

from function_service.contract import Ended, Invocations, Machines, Recall, RouteTable, Wanted
from gateway import machines
from gateway.broker import Broker
from gateway.routing import Routes
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)
_PAUSES = (0.02, 0.1, 0.5, 1.0)  # seconds between attempts to reach the function service; then the last


class Follower:
    """Keeps routes and leases current. `known` is set while there is a table."""

    def __init__(
        self, invocations: Invocations, routes: Routes, broker: Broker, others: machines.Machines
    ) -> None:
        self._invocations = invocations
        self._routes = routes
        self._broker = broker
        self._others = others
        self.known = asyncio.Event()
        self.connected = False
        self._newer = asyncio.Event()  # set, and replaced, with each table

    async def run(self) -> None:
        """Follow until cancelled. Table and leases are kept while the function service is away."""
        failures = 0
        while True:
            try:
                async for event in self._invocations.events():
                    if isinstance(event, RouteTable):
                        failures = 0
                        self._became_current(event)
                    elif isinstance(event, Recall):
                        self._broker.recall(event.lease)
                    elif isinstance(event, Ended):
                        self._broker.ended(event.lease)
                    elif isinstance(event, Wanted):
                        self._broker.spare(event.function)
                    elif isinstance(event, Machines):
                        self._others.others, self._others.builder = event.addresses, event.builder
            except Problem as problem:
                _log.warning("action=function-service-away detail=%r", problem.detail)
            if self.connected:
                self.connected = False
                self._broker.disconnected()
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1

    async def heard_of(self, edition: int) -> None:
        """Return once the table is of that edition of the registry, or a later one."""
        while self._routes.table is None or self._routes.table.edition < edition:
            await self._newer.wait()

    def _became_current(self, table: RouteTable) -> None:
        self._routes.table = table
        self._newer.set()
        self._newer = asyncio.Event()
        self._broker.swap(table)
        self._others.prune(table.routes)
        if not self.connected:
            self.connected = True
            self._broker.reconnected()
        self.known.set()
