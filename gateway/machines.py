"""The other machines of the platform, as this gateway knows them: which function is at home where.

Nobody tells that ahead: the function service says so when it is asked for an instance of a function that
another machine has. Its calls then go to the gateway there, until that one says otherwise or does not answer.
"""

import time
from collections.abc import Collection
from typing import Final

from gateway.forward import BrokenOff, Connection, connect_to_machine
from pilotlight.machines import Link

ELSEWHERE: Final = "Pilotlight-Elsewhere"
"""The header by which a gateway tells another one that a function is at home somewhere else."""

_IDLE: Final = 5.0  # seconds that a connection is kept; far shorter than the other side does
_KEPT: Final = 64  # connections to one machine that nobody uses


class Machines:
    """How other machines are reached; on a platform of one machine there are none."""

    def __init__(self, link: Link | None) -> None:
        self._link = link
        self._homes: dict[str, str] = {}  # function → address
        self._connections: dict[str, list[Connection]] = {}  # by address, the last used one last
        self.others: tuple[str, ...] = ()  # the addresses of those that are there
        self.builder = ""  # the address of the one with the repositories, where it is another one

    def home(self, function: str) -> str | None:
        """Return the address of the machine that a function is at home on, where it is not this one."""
        return self._homes.get(function)

    def learn(self, function: str, address: str) -> None:
        """Note where a function is at home."""
        self._homes[function] = address

    def forget(self, function: str) -> None:
        """Note that it is not known any more; the function service has to be asked."""
        self._homes.pop(function, None)

    def prune(self, functions: Collection[str]) -> None:
        """Forget all but these functions."""
        self._homes = {name: address for name, address in self._homes.items() if name in functions}

    async def connect(self, address: str) -> Connection:
        """Return a connection to the gateway of a machine.

        Raises BrokenOff, not `taken`, where it does not answer, and Problem where the fault is on our side.
        """
        kept = self._connections.get(address, [])
        while kept:
            connection = kept.pop()
            if connection.alive and time.monotonic() - connection.idle_since < _IDLE:
                return connection
            connection.close()
        if self._link is None:
            raise BrokenOff(taken=False)
        return await connect_to_machine(address, self._link.client)

    async def any_that_answers(self) -> str | None:
        """Return the address of a machine that takes connections, None where none does."""
        for address in self.others:
            try:
                self.keep(address, await self.connect(address))
            except BrokenOff:
                continue
            return address
        return None

    def keep(self, address: str, connection: Connection) -> None:
        """Keep a connection for the next call, if it can be used again; else close it."""
        kept = self._connections.setdefault(address, [])
        if connection.reusable and len(kept) < _KEPT:
            connection.idle_since = time.monotonic()
            kept.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        for kept in self._connections.values():
            for connection in kept:
                connection.close()
        self._connections.clear()
