"""Hands the listeners inside of sandboxes to the baas process, which serves whoever connects to them.

The listener is the identity: only the sandbox it was made in can connect to it. When the baas process is
restarted, it is given all of them again. When this process is killed, it goes on serving them until the next
one has said which of them stand.
"""

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from function_service.engines.embedded import messages
from pilotlight import sockets
from pilotlight.descriptors import readable

_RETRY = 0.1  # seconds


@dataclass(frozen=True)
class Grant:
    """One listener that is granted, and what the baas process is told of it."""

    message: dict[str, Any]
    descriptor: int


class Grants:
    """All listeners that are granted now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._grants: dict[str, list[Grant]] = {}
        self._connection: socket.socket | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, now or as soon as the other side is there."""
        self._keeper = asyncio.create_task(self._keep(), name="grants")

    def grant(self, instance: str, descriptor: int, **message: Any) -> None:
        """Grant a listener; the descriptor is ours from now on."""
        grant = Grant({"grant": instance, **message}, descriptor)
        self._grants.setdefault(instance, []).append(grant)
        self._send(grant.message, [descriptor])

    def of(self, instance: str) -> list[Grant]:
        """List what is granted to an instance."""
        return list(self._grants.get(instance, ()))

    def revoke(self, instance: str) -> None:
        """Take back all listeners of an instance."""
        for grant in self._grants.pop(instance, ()):
            os.close(grant.descriptor)
            self._send({"revoke": instance}, [])

    def _send(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if self._connection is None:
            return  # everything that stands is sent when the connection is made
        try:
            messages.send(self._connection, message, descriptors)
        except OSError:
            # It is gone, or has stopped reading: a new connection starts from what stands
            self._connection.shutdown(socket.SHUT_RDWR)

    async def _keep(self) -> None:
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with connection:
                connection.setblocking(False)
                try:
                    connection.connect(sockets.address(self._path))
                except OSError:
                    await asyncio.sleep(_RETRY)
                    continue
                self._connection = connection
                try:
                    for grants in self._grants.values():
                        for grant in grants:
                            messages.send(connection, grant.message, [grant.descriptor])
                    messages.send(connection, {"complete": True})
                    await readable(connection.fileno())  # nothing is ever sent to us: this is its end
                except OSError:
                    await asyncio.sleep(_RETRY)
                finally:
                    self._connection = None

    async def close(self) -> None:
        """Revoke everything, and disconnect."""
        for instance in list(self._grants):
            self.revoke(instance)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
