"""One listener that is served over HTTP/1.1, with a bound on its connections, until it is closed."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import web

from pilotlight.problems import Problem
from pilotlight.server_name import sign

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_IDLE: Final = 75.0  # seconds that a connection may stay open without a request
_INSTANT: Final = 0.01  # seconds; aiohttp takes 0 for "without end"
_LINGER: Final = 2.0  # seconds to read on after a refusal, so that the client sees it before it is cut off


class Face:
    """Serves a handler on one listening socket, which it closes at the end."""

    def __init__(self, handler: Handler, *, connections: int) -> None:
        self._limit = connections
        self._http = web.Server(
            handler,
            handler_cancellation=True,  # a client that is gone waits for nothing
        )
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        # In two steps, so that a cancellation in between leaves a server that `close` knows
        self._server = await loop.create_server(self._connection, sock=listener, start_serving=False)
        await self._server.start_serving()

    async def close(self, grace: float) -> None:
        """Stop accepting, give the requests under way `grace` seconds, then break off what is left."""
        if self._server is not None:
            self._server.close()
        self._http.pre_shutdown()
        await self._http.shutdown(max(grace, _INSTANT))

    def _connection(self) -> asyncio.Protocol:
        if len(self._http.connections) >= self._limit:
            return _Busy(self._limit)
        return _Connection(
            self._http,
            loop=asyncio.get_running_loop(),
            auto_decompress=False,  # bodies are passed on as they are
            access_log=None,  # type: ignore[arg-type]  # aiohttp takes None for "no log"
            keepalive_timeout=_IDLE,
            lingering_time=_LINGER,
        )


class _Connection(web.RequestHandler):
    """Signs aiohttp's own answers too, such as those to what is no HTTP."""

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
