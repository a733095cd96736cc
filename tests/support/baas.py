"""The data API in this process, and a stand-in for the function service that grants listeners."""

import asyncio
import json
import socket
from typing import Any

from baas.server import serve
from pilotlight import sockets
from pilotlight.datafolder import DataFolder
from pilotlight.settings import Settings


class Baas:
    """The running service."""

    def __init__(self, data: DataFolder, max_documents: int = 1 << 30) -> None:
        self.data = data
        self.settings = Settings(data=data.root, max_documents=max_documents)
        self.stopping = asyncio.Event()
        self._ready = asyncio.Event()

    async def start(self) -> None:
        self.task = asyncio.create_task(
            serve(self.settings, self.data, stopping=self.stopping, ready=self._ready.set)
        )
        waiting = asyncio.create_task(self._ready.wait())
        await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        waiting.cancel()
        if self.task.done():
            self.task.result()
        assert self._ready.is_set()

    async def stop(self) -> None:
        self.stopping.set()
        await asyncio.wait_for(self.task, 10)


class Granter:
    """The function service's end of the hand-over."""

    def __init__(self, data: DataFolder) -> None:
        self.peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer.connect(sockets.address(data.socket("listeners")))

    def send(self, message: Any, *descriptors: int) -> None:
        content = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.peer, [content], list(descriptors))

    def grant(
        self,
        instance: str,
        *,
        kind: str = "data",
        app: str = "shop",
        function: str = "cart",
        egress: tuple[str, ...] = (),
    ) -> int:
        """Hand over a listener on loopback, and return its port."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            message = {
                "grant": instance,
                "kind": kind,
                "app": app,
                "function": function,
                "egress": list(egress),
            }
            self.send(message, listener.fileno())
            return int(listener.getsockname()[1])

    def revoke(self, instance: str) -> None:
        self.send({"revoke": instance})

    def complete(self) -> None:
        """Say that all that stands has been granted."""
        self.send({"complete": True})

    def close(self) -> None:
        self.peer.close()
