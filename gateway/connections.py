"""The connections of callers: aiohttp's server, told apart by where they come from, refusing in our words."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.call import Origin, QuickCall
from gateway.glance import Glance, Plain
from gateway.quick import Quick
from gateway.replies import fault, malformed, problem_response
from pilotlight.fresh import Fresh

_log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_IDLE = 75.0  # seconds that a connection may wait for its next request, or take to send the head of one
_HANDSHAKE = 10.0  # seconds that a caller has to agree on TLS
_BREAK_OFF = 0.5  # seconds for what is written already to go out, after the grace
_MAX_HEADER = 16 << 10  # bytes of the request line, and of one header


class CallerConnection(RequestHandler):
    """One connection of a caller."""

    __slots__ = ("__weakref__", "begun", "busy", "counted", "fresh", "front", "full", "glance", "handed",
                 "inside", "machine", "origin", "plain", "queued")  # fmt: skip

    front: "Front"
    inside: bool
    machine: bool
    origin: Origin
    glance: Glance
    fresh: bool  # whether nothing has come yet
    busy: bool  # whether a request is under way
    full: bool  # whether the caller takes answers slower than they come
    queued: int  # requests that aiohttp has got and not answered
    begun: QuickCall | None  # the call under way of which aiohttp does not know
    handed: QuickCall | None  # the same, when aiohttp knows, until its handler is called
    counted: bool  # whether the front counts it already
    plain: Plain | None  # the headers of the last plain request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where the connection comes from."""
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else "127.0.0.1"
        self.busy = self.full = self.counted = False
        self.queued = 0
        self.begun = self.handed = self.plain = None
        self.glance = Glance()
        scheme = "http" if transport.get_extra_info("sslcontext") is None else "https"
        self.origin = Origin(address, scheme, inside=self.inside, machine=self.machine)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take a call the short way where that can be, else give to aiohttp what came."""
        if self.fresh:
            self._heard()
        quick, glance = self.front.quick, self.glance
        free = self.begun is None and self.queued == 0 and glance.whole and not glance.lost and not self.full
        if free and quick.again(self, data):
            return
        glance.feed(data)
        if free and glance.plain and quick.first(self, data):
            return
        if self.begun is not None:
            quick.hand_over(self.begun)  # aiohttp must see it before what has come now
        self.queued += glance.begun
        super().data_received(data)
        if glance.cut:  # aiohttp drops that silently: its answers would be taken for those of other requests
            self.close()

    def _heard(self) -> None:
        self.fresh = False
        self.front.fresh.discard(self)

    def begins(self, call: QuickCall) -> None:
        """Note that a call is under way of which aiohttp does not know."""
        self.begun = call
        self.busy = self.counted = True
        self.front.running += 1
        self._next_keepalive_close_time = self._loop.time() + _IDLE  # else aiohttp thinks that it idles

    def answer(self, data: bytes, *, keep_alive: bool) -> None:
        """Write the answer of the call that has begun."""
        self.begun = None
        self._ended()
        if self.transport is not None:
            self.transport.write(data)
            if not keep_alive:
                self.transport.close()

    def reply(self, data: bytes) -> None:
        """Write the answer to a request that nobody has begun."""
        self._next_keepalive_close_time = self._loop.time() + _IDLE
        if self.transport is not None:
            self.transport.write(data)

    def hand_over(self, call: QuickCall) -> None:
        """Let aiohttp know of the call; its handler goes on with it."""
        self.begun, self.handed = None, call
        self.queued += 1
        super().data_received(call.data)

    def take_over(self) -> QuickCall | None:
        """Return the call that was handed over, to the handler that is called for it."""
        handed, self.handed = self.handed, None
        return handed

    def _abandon(self) -> None:
        if (call := self.begun or self.handed) is not None:
            self.begun = self.handed = None
            self.front.quick.abandon(call)
            self._ended()

    def _ended(self) -> None:
        self.busy = self.counted = False
        self.front.one_less()

    def pause_writing(self) -> None:
        """The caller takes answers slower than they come."""
        self.full = True
        super().pause_writing()

    def resume_writing(self) -> None:
        """The caller has caught up."""
        self.full = False
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the call that aiohttp does not know of, or has not begun to answer."""
        if self.fresh:
            self._heard()
        self._abandon()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse, or what a handler of ours failed at, by a problem document."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already, the connection can only be ended")
        self._abandon()
        if status == 400:
            problem = malformed(message or "")
            _log.info("action=refused problem=%s detail=%r", problem.kind, problem.detail)
        else:
            problem = fault()
            _log.error("action=fault method=%s", request.method, exc_info=exc)
        response = problem_response(problem)
        response.force_close()
        return response


class Front:
    """Accepts connections on the public port and on the private socket, for one handler of requests.

    The Application's own server makes its requests; calls of functions get the lean ones.
    """

    def __init__(self, runner: web.AppRunner, lean_prefix: str, quick: Quick) -> None:
        server = runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        self._server = server
        self._listeners: list[asyncio.Server] = []
        self.running = 0  # requests under way
        self.fresh = Fresh()  # those that agree on TLS among them
        self.quick = quick
        self._quiet = asyncio.Event()
        full = server.request_factory
        loop = asyncio.get_running_loop()

        def make(message, payload, protocol, writer, task):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            if message.path.startswith(lean_prefix):
                return web.BaseRequest(message, payload, protocol, writer, task, loop)
            return full(message, payload, protocol, writer, task)

        server.request_factory = make

    def divert(self, handler: Callable[[web.BaseRequest, Handler], Awaitable[web.StreamResponse]]) -> None:
        """Let handler see every request first; it is given the Application's handler for the rest."""
        rest = self._server.request_handler

        async def first(request: web.BaseRequest) -> web.StreamResponse:
            connection = cast("CallerConnection", request.protocol)
            connection.busy = True
            if connection.counted:  # it began on the short way
                connection.counted = False
            else:
                self.running += 1
            try:
                return await handler(request, rest)
            finally:
                connection.busy = False
                connection.queued -= 1
                self.one_less()

        self._server.request_handler = first

    def one_less(self) -> None:
        """Count a request that has ended."""
        self.running -= 1
        if self.running == 0:
            self._quiet.set()

    async def listen(
        self,
        listener: socket.socket,
        *,
        inside: bool,
        machine: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Accept connections on a socket that is bound: of functions, of other machines, or of strangers."""
        loop = asyncio.get_running_loop()

        def accept() -> CallerConnection:
            connection = CallerConnection(
                self._server,
                loop=loop,
                keepalive_timeout=_IDLE,
                access_log=None,  # type: ignore[arg-type]  # aiohttp takes None for "no log"
                auto_decompress=False,
                max_line_size=_MAX_HEADER,
                max_field_size=_MAX_HEADER,
            )
            connection.front = self
            connection.fresh = True
            self.fresh.add(connection)
            connection.inside = inside
            connection.machine = machine
            return connection

        if listener.family == socket.AF_UNIX:
            # Other gateways may share it, so its path stays. uvloop's: asyncio has it from Python 3.13 on
            keep: dict[str, Any] = {"cleanup_socket": False}
            self._listeners.append(await loop.create_unix_server(accept, sock=listener, backlog=1024, **keep))
        else:
            within = None if tls is None else _HANDSHAKE
            self._listeners.append(
                await loop.create_server(
                    accept, sock=listener, backlog=1024, ssl=tls, ssl_handshake_timeout=within
                )
            )

    def stop_accepting(self) -> None:
        """Take no more connections, and close those that wait for their next request.

        aiohttp's `pre_shutdown` closes the others too: they would get no more of their request's body.
        """
        for listener in self._listeners:
            listener.close()
        for connection in cast("list[CallerConnection]", self._server.connections):
            if not connection.busy and not connection.fresh:
                connection.close()

    async def drain(self, grace: float) -> None:
        """Let requests that are under way end within grace seconds, then break them off."""
        await self.fresh.heard(grace)
        self._quiet.clear()
        if self.running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._quiet.wait()
        await self._server.shutdown(_BREAK_OFF)
