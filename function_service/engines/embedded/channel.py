"""The function service's end of a channel (messages.py), on its event loop."""

import socket
from collections.abc import Sequence
from typing import Any

from function_service.engines.embedded import messages
from pilotlight.descriptors import readable_once


class Unread(EOFError):  # noqa: N818  as `Untouched` in base.py
    """The other side is gone, and had not read what was sent to it last (ECONNRESET, EPIPE; unix(7))."""


class Channel:
    """One end; one task receives at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message. Raises Unread, and OSError (also BlockingIOError where nobody reads)."""
        try:
            messages.send(self._socket, message, descriptors)
        except ConnectionError as error:
            raise Unread from error

    async def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Wait for a message and its descriptors. Raises EOFError when the other side is gone, see Unread."""
        while True:
            try:
                return messages.receive(self._socket)
            except BlockingIOError:
                pass
            except ConnectionError as error:
                raise Unread from error
            await readable_once(self._socket.fileno())

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
