"""One listener that is served over HTTP/1.1, with a bound on its connections, until it is closed."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web

from pilotlight.fresh import Fresh
from pilotlight.problems import Problem
from pilotlight.server_name import sign

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_IDLE: Final = 75.0  # seconds that a connection may stay open without a request
_INSTANT: Final = 0.01  # seconds; aiohttp takes 0 for "without end"
_BREAK_OFF: Final = 0.5  # seconds for what is answered already to go out, after the grace
_LINGER: Final = 2.0  # seconds to read on after a refusal, so that the client sees it before it is cut off


class Face:
    """Serves a handler on one listening socket, which it closes at the end."""

    def __init__(self, handler: Handler, *, connections: int) -> None:
        async def first(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await handler(request)
            finally:
                cast("_Connection", request.protocol).settle()

        self._limit = connections
        self._http = web.Server(
            first,
            handler_cancellation=True,  # a client that is gone waits for nothing
        )
        self.fresh = Fresh()
        self.answered = asyncio.Event()  # whenever a connection has nothing under way any more
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        # In two steps, so that a cancellation in between leaves a server that `close` knows
        self._server = await loop.create_server(self._connection, sock=listener, start_serving=False)
        await self._server.start_serving()

    async def close(self, grace: float) -> None:
        """Stop accepting, give the requests under way `grace` seconds, then break off what is left.

        aiohttp reads nothing more from a connection that is to end, not even the rest of a request's body. So
        it is told of those only that have nothing under way.
        """
        if self._server is not None:
            self._server.close()
        self._close_idle(fresh=False)
        await self.fresh.heard(grace)
        self._close_idle(fresh=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while any(connection.busy for connection in self._connections()):
                    self.answered.clear()
                    await self.answered.wait()
        await self._http.shutdown(min(grace, _BREAK_OFF) or _INSTANT)

    def _close_idle(self, *, fresh: bool) -> None:
        for connection in self._connections():
            if not connection.busy and (fresh or not connection.fresh):
                connection.close()

    def _connections(self) -> "list[_Connection]":
        return cast("list[_Connection]", self._http.connections)

    def _connection(self) -> asyncio.Protocol:
        if len(self._http.connections) >= self._limit:
            return _Busy(self._limit)
        connection = _Connection(
            self,
            self._http,
            loop=asyncio.get_running_loop(),
            auto_decompress=False,  # bodies are passed on as they are
            access_log=None,  # aiohttp takes None for "no log"
            keepalive_timeout=_IDLE,
            lingering_time=_LINGER,
        )
        self.fresh.add(connection)
        return connection


class _Connection(web.RequestHandler):
    """Signs aiohttp's own answers too, such as those to what is no HTTP."""

    def __init__(self, face: Face, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._face = face
        self.fresh = True  # nothing has come yet
        self.busy = False  # a request, or a part of one, has come that is not answered

    def data_received(self, data: bytes) -> None:
        """Take note that something has come."""
        self.busy = True
        self._heard()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Expect nothing of it any more."""
        self._heard()
        self.settle()
        super().connection_lost(exc)

    def settle(self) -> None:
        """Take note that nothing is under way any more."""
        self.busy = False
        self._face.answered.set()

    def _heard(self) -> None:
        if self.fresh:
            self.fresh = False
            self._face.fresh.discard(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed."""
        return sign(super().handle_error(request, status, exc, message))


class _Busy(asyncio.Protocol):
    """Answers a connection that is one too many, and closes it.

    It waits for the request, shortly: closing while bytes are unread would reset the connection, and the
    client would never see the answer.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._timer = asyncio.get_running_loop().call_later(_LINGER, self._refuse)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        self._refuse()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._timer.cancel()

    def _refuse(self) -> None:
        if not self._transport.is_closing():
            detail = f"All {self._limit} connections are in use. Keep one for many requests."
            self._transport.write(raw_problem(Problem("overloaded", detail, retry_after=1)))
            self._transport.close()


def raw_problem(problem: Problem) -> bytes:
    """Return a whole HTTP/1.1 response that refuses and ends the connection."""
    body = json.dumps(problem.document()).encode()
    headers = {**problem.headers(), "Content-Length": str(len(body)), "Connection": "close"}
    lines = [
        f"HTTP/1.1 {problem.status} {problem.kind}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
