"""A loaded handler, whatever its kind, and how each kind is served."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from . import asgi, blocking, evented, loading, messages, wire, wsgi


class Application:
    """A loaded handler, ready to be served."""

    __slots__ = ("kind", "lifespan", "loop", "name", "target")

    def __init__(self, name: str, target: Any) -> None:
        """Decide what the handler is. Raises LoadError."""
        self.name = name
        self.target = target
        self.kind = loading.kind_of(target, name)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.lifespan: asgi.Lifespan | None = None

    def __repr__(self) -> str:
        return f"<Application {self.name} ({self.kind})>"

    def start(self) -> None:
        """Make the event loop that an asynchronous handler runs in, and run its startup. Raises LoadError."""
        if self.kind not in (loading.ASGI, loading.ASYNC):
            return
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        if self.kind == loading.ASGI:
            self.lifespan = asgi.Lifespan(self.target, self.loop)
            failure = self.lifespan.start()
            if failure is not None:
                raise loading.LoadError(f"The application refused to start: {failure}")

    def serve(self, listener: socket.socket, concurrency: int) -> None:
        """Answer requests until the process ends."""
        if self.loop is None:
            blocking.Server(listener, self.call(concurrency), concurrency).run()
        else:
            self.server(self.loop, concurrency).run(listener)

    def call(self, concurrency: int) -> blocking.Call:
        """Return what the blocking server calls for each request."""
        if self.kind == loading.WSGI:
            return wsgi.adapt(self.target, loading.prefix(), threads=concurrency > 1)
        handle, answer, request = self.target, messages.answer, messages.Request

        def call(head: wire.Head, body: blocking.Body | None) -> messages.Answer:
            return answer(handle(request(head, body)))

        return call

    def server(self, loop: asyncio.AbstractEventLoop, concurrency: int) -> evented.Server:
        """Return the evented server."""
        if self.kind == loading.ASYNC:
            return evented.Server(loop, evented.adapt(self.target), concurrency)
        state = self.lifespan.state if self.lifespan is not None else {}
        serve = asgi.adapt(self.target, loading.prefix(), state)
        # An application is told by http.disconnect first, and cancelled only if it goes on regardless.
        return evented.Server(loop, serve, concurrency, grace=1.0)
