"""All requests but calls of functions: the Application, its routes, and its middleware in order."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, quote

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from function_service.contract import Actor, Control, Scope
from gateway import routing
from gateway.admission import Caller, Doorkeeper
from gateway.call import remote
from gateway.control import CALLER, ControlApi
from gateway.exchange import SENT, SENT_LAST
from gateway.follow import Follower
from gateway.identity import REQUEST_ID, identify
from gateway.machines import Machines
from gateway.meter import Meter
from gateway.relay import Builder, Relay
from gateway.replies import fault, problem_response
from gateway.routing import Routes
from pilotlight.machines import machine_of
from pilotlight.problems import Problem
from pilotlight.server_name import sign_before_sending

if TYPE_CHECKING:
    from gateway.connections import CallerConnection

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NEED_KEY = ("/api/", "/git/", "/data/")
# All that the builder serves. What is spelled otherwise has no app, so that both see the same one
_GIT = re.compile(r"/git/([a-z0-9-]+)\.git/(?:info/refs|git-upload-pack|git-receive-pack)(?:\?.*)?")
_METRICS_WITHIN = 2.0  # seconds
_EDITION_WITHIN = 5.0  # seconds; whoever asks has less patience
_NONE: frozenset[bytes] = frozenset()
_MAX_JSON = 1 << 20  # bytes of a body that the control API reads


class Platform:
    """What the Application serves."""

    def __init__(
        self,
        *,
        routes: Routes,
        doorkeeper: Doorkeeper,
        follower: Follower,
        meter: Meter,
        control: Control,
        api: ControlApi,
        builder: Builder,
        data: Relay,
        layers: Relay,
        machines: Machines,
        max_body: int,
    ) -> None:
        self._layers = layers
        self._machines = machines
        self._max_body = max_body
        self._routes = routes
        self._doorkeeper = doorkeeper
        self._follower = follower
        self._meter = meter
        self._control = control
        self._api = api
        self._builder = builder
        self._data = data
        self._registry = CollectorRegistry()
        self._registry.register(meter)
        self._up = Gauge("pilotlight_up", "Whether a service answered", ["service"], registry=self._registry)
        self.closing = False

    def application(self) -> web.Application:
        """Return the Application. Its outermost middleware comes first."""
        application = web.Application(
            middlewares=[self._identified, self._refusals, self._keyed], client_max_size=_MAX_JSON
        )
        application.on_response_prepare.append(sign_before_sending)
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                *self._api.routes(),
                web.route("*", "/git/{rest:.*}", self._git, expect_handler=_not_yet),
                web.get("/machines/layers/{digest}", self._layer),
                web.get("/machines/images/{digest}", self._layer),
                web.get(r"/machines/editions/{edition:\d{1,15}}", self._edition),
                web.route("*", f"{Builder.PATH}/{{rest:.*}}", self._builder_here, expect_handler=_not_yet),
                web.route("*", "/data/v1/{rest:.*}", self._documents, expect_handler=_not_yet),
            ]
        )
        return application

    # middleware

    @web.middleware
    async def _identified(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give each answer its request id."""
        request_id, _, _ = identify(request.headers.get("X-Request-Id"), None)
        request[REQUEST_ID] = request_id
        response = await handler(request)
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
            if self.closing:
                response.force_close()
        return SENT_LAST if response is SENT and self.closing else response

    @web.middleware
    async def _refusals(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn whatever ends a request into a problem document, aiohttp's own errors too."""
        headers: dict[str, str] = {}
        try:
            return await handler(request)
        except Problem as error:
            problem = error
            origin = cast("CallerConnection", request.protocol).origin
            if (address := machine_of(error)) is not None and not origin.machine:
                return await self._relay(address).pass_on(request, routing.origin_form(request.raw_path))
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            headers["Allow"] = allowed
            problem = Problem(
                "method-not-allowed", f"{request.method} is not possible here. Possible are: {allowed}."
            )
        except web.HTTPNotFound:
            problem = _nothing_here(request.path)
        except web.HTTPRequestEntityTooLarge:
            problem = Problem("too-large", f"The body is larger than {_MAX_JSON} bytes. Send less.")
        except web.HTTPException as error:
            problem = Problem("invalid-request", f"The request can't be served: {error.reason}.")
        except web.RequestPayloadError as error:
            problem = Problem("invalid-request", f"The request's body can't be read to its end: {error}.")
        except ConnectionError:
            raise  # the caller is gone
        except Exception as error:  # noqa: BLE001  the boundary: a fault must reach the log and the caller
            _log.error("action=fault path=%s", request.path, exc_info=error)
            problem = fault()
        self._meter.refusal(problem.kind)
        _log.info(
            "action=refused method=%s path=%s problem=%s status=%d",
            request.method,
            request.path[:200],
            problem.kind,
            problem.status,
        )
        return problem_response(problem, headers)

    @web.middleware
    async def _keyed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let nobody without a key reach what is the operator's; handlers see what the key is good for."""
        if request.path.startswith(_NEED_KEY):
            if self._routes.table is None:
                raise Problem(
                    "unavailable",
                    "The gateway does not know the keys yet: the function service has not answered so far. "
                    "Try again in a moment.",
                    retry_after=1,
                )
            given = request.headers
            address = remote(given, cast("CallerConnection", request.protocol).origin)
            key = self._doorkeeper.enter(given.get("Authorization"), address)
            actor = Actor(key=key.id, name=key.name, address=address, request_id=request[REQUEST_ID])
            request[CALLER] = Caller(key, actor)
        return await handler(request)

    # handlers

    async def _healthz(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002
        missing = await self.missing()
        if missing:
            raise Problem(
                "unavailable",
                f"Not ready: {'; '.join(missing)}. If this lasts, see the log of the platform.",
                retry_after=1,
            )
        return web.Response(text="ready\n")

    async def missing(self) -> list[str]:
        """Return what keeps the gateway from serving everything."""
        missing = []
        if self.closing:
            missing.append("the gateway is shutting down")
        if self._routes.table is None:
            missing.append("the function service has not told the functions yet")
        elif not self._follower.connected:
            missing.append("the function service does not answer")
        async with asyncio.TaskGroup() as group:
            data = group.create_task(self._data.answers())
            builder = group.create_task(self._builder.answers())
        if not data.result():
            missing.append("the data API does not answer")
        if not builder.result():
            missing.append("the builder does not answer")
        return missing

    async def _metrics(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002
        """Answer with our own metrics and those of the neighbours that answer in time."""
        async with asyncio.TaskGroup() as group:
            service = group.create_task(self._service_metrics())
            data = group.create_task(_neighbour_metrics(self._data))
            builder = group.create_task(_neighbour_metrics(self._builder))
        parts = {"function-service": service.result(), "baas": data.result(), "builder": builder.result()}
        for name, part in parts.items():
            self._up.labels(name).set(part is not None)
        own = generate_latest(self._registry).decode()
        texts = [own, *(part for part in parts.values() if part)]
        text = "".join(part.rstrip("\n") + "\n" for part in texts)
        return web.Response(
            body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _service_metrics(self) -> str | None:
        try:
            async with asyncio.timeout(_METRICS_WITHIN):
                return await self._control.metrics()
        except (Problem, TimeoutError):
            return None

    async def _git(self, request: web.Request) -> web.StreamResponse:
        target = routing.origin_form(request.raw_path)
        caller = request[CALLER]
        match = _GIT.fullmatch(target)
        caller.demand(Scope.DEPLOY, match[1] if match is not None else None)
        return await self._builder.pass_on(request, target, by=caller.actor)

    async def _layer(self, request: web.Request) -> web.StreamResponse:
        """Give another machine a layer or an image."""
        _only_for_machines(request)
        return await self._layers.pass_on(request, request.path)

    async def _edition(self, request: web.Request) -> web.Response:
        """Tell another machine, once it is so, that calls are answered by an edition of the registry."""
        _only_for_machines(request)
        try:
            async with asyncio.timeout(_EDITION_WITHIN):
                await self._follower.heard_of(int(request.match_info["edition"]))
        except TimeoutError:
            raise Problem("unavailable", "This machine has not heard of it in time.", retry_after=1) from None
        return web.Response(status=204)

    async def _builder_here(self, request: web.Request) -> web.StreamResponse:
        """Pass on what another machine asks the builder."""
        _only_for_machines(request)
        return await self._builder.pass_here(request, routing.origin_form(request.raw_path))

    async def _documents(self, request: web.Request) -> web.StreamResponse:
        target = routing.origin_form(request.raw_path)
        caller = request[CALLER]
        own = caller.key.app
        caller.demand(Scope.DATA, _named_app(request, target) or own)
        if (address := await self._other_data_api(request)) is not None:
            return await self._relay(address).pass_on(request, target)
        # However the data API reads the query: it refuses one that names another app than the header
        return await self._data.pass_on(request, target, app=own)

    async def _other_data_api(self, request: web.Request) -> str | None:
        """Return the machine to ask where the data API of this one is away: all have the same documents."""
        origin = cast("CallerConnection", request.protocol).origin
        if origin.machine or not self._machines.others or await self._data.answers():
            return None
        return await self._machines.any_that_answers()

    def _relay(self, address: str) -> Relay:
        """Return the way to another machine, which judges the caller's key again."""
        return Relay(
            address,
            lambda: self._machines.connect(address),
            self._max_body,
            without=_NONE,
            feeds=self._data.feeds,
        )


def _named_app(request: web.Request, target: str) -> str | None:
    """Return the app whose documents a request means."""
    named = parse_qs(target.partition("?")[2]).get("app")
    return named[-1] if named else request.headers.get("Pilotlight-App")


async def _neighbour_metrics(neighbour: Relay | Builder) -> str | None:
    try:
        async with asyncio.timeout(_METRICS_WITHIN):
            status, body = await neighbour.ask("GET", "/metrics")
    except (Problem, TimeoutError):
        return None
    return body.decode(errors="replace") if status == 200 else None


async def _not_yet(request: web.Request) -> None:
    """Leave `Expect: 100-continue` to the relay, which answers it once the neighbour is reached."""


def _only_for_machines(request: web.Request) -> None:
    if not cast("CallerConnection", request.protocol).origin.machine:
        raise _nothing_here(request.path)


def _nothing_here(path: str) -> Problem:
    return Problem(
        "not-found",
        f"There is nothing at {quote(path[:200])}. Functions are at /function/NAME, the control API at "
        "/api/v1/ (described by /api/v1/openapi.json), git at /git/APP.git, documents at /data/v1/.",
    )
