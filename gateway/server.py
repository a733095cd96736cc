"""The gateway as a service: wires its parts, serves, and shuts down. Then read `invoke.py`.

Shutdown: not ready → accept no more → let running calls end → break off the rest → give leases back.
"""

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from aiohttp import web

from function_service.client import FunctionServiceClient
from gateway import routing
from gateway.admission import Doorkeeper
from gateway.app import Platform
from gateway.broker import Broker
from gateway.connections import CallerConnection, Front, Handler
from gateway.control import ControlApi
from gateway.follow import Follower
from gateway.invoke import Calls
from gateway.ledger import Ledger
from gateway.machines import Machines
from gateway.meter import Meter
from gateway.quick import Quick
from gateway.refusals import Refusals
from gateway.relay import Builder, Elsewhere, Relay
from gateway.replies import problem_response
from gateway.reports import Reports
from gateway.routing import Routes
from pilotlight import sockets
from pilotlight.datafolder import DataFolder
from pilotlight.machines import Link
from pilotlight.problems import Problem
from pilotlight.settings import Settings

_log = logging.getLogger(__name__)
_HOLD = 2.0  # seconds that connections wait until the functions are known
_DRAIN = 10.0  # seconds that running calls have to end at shutdown
_GIVE_BACK = 3.0  # seconds for the leases


async def serve(
    settings: Settings,
    data: DataFolder,
    *,
    listener: socket.socket,
    private: socket.socket | None = None,
    number: int | None = None,
    tls: ssl.SSLContext | None = None,
    link: Link | None = None,
    machines: socket.socket | None = None,
    stopping: asyncio.Event,
    ready: Callable[[], None],
) -> None:
    """Serve on listener, which is bound, by HTTPS where `tls` is given, and on the private socket.

    It ends when stopping is set. On a platform of several machines, `link` is how this one reaches others,
    and `machines` the socket on which it serves them.

    Where this is one of several gateways, they share both, and `number` says which of them it is, from 1 on;
    else `private` is made here.
    `ready` is called once the functions are known. Calls wait for that a while, then are `unavailable`.
    """
    client = FunctionServiceClient.connect(data)
    routes = Routes()
    gateways = 1 if number is None else settings.gateways
    others = Machines(link)
    limit = math.ceil(settings.queue / gateways)
    broker = Broker(client.invocations, limit, settings.queue_wait, others)
    client.connection.on_orphan["Invocations.acquire"] = broker.orphaned
    ledger = Ledger(data.run, number or 1, gateways)
    meter = Meter(broker.queues, broker.counts, lambda: routes.table.routes if routes.table else None, ledger)
    reports = Reports(client.invocations, meter)
    follower = Follower(client.invocations, routes, broker, others)
    builder_here = Relay.to("builder", data.socket("builder"), settings.max_body)
    builder = Builder(builder_here, others, settings.max_body)
    documents = Relay.to("data API", data.socket("baas"), settings.max_body)
    elsewhere = Elsewhere(others, settings.max_body)
    api = ControlApi(client.control, client.vault, builder, routes, elsewhere)
    doorkeeper = Doorkeeper(routes)
    platform = Platform(
        routes=routes,
        doorkeeper=doorkeeper,
        follower=follower,
        meter=meter,
        control=client.control,
        api=api,
        builder=builder,
        data=documents,
        layers=Relay.to("function service", data.socket("layers"), settings.max_body),
        machines=others,
        max_body=settings.max_body,
    )
    refusals = Refusals()
    calls = Calls(routes, doorkeeper, broker, meter, reports, refusals, settings.max_body, others)
    runner = web.AppRunner(platform.application(), handler_cancellation=True, access_log=None)
    await runner.setup()
    quick = Quick(routes, broker, calls, settings.max_body)
    front = Front(runner, routing.PREFIX, quick)
    front.divert(_divider(calls))
    inside = private or sockets.listen(data.socket("gateway"))
    try:
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(follower.run(), name="follow the function service"),
                group.create_task(reports.run(), name="report calls"),
                group.create_task(meter.run(), name="write counts down"),
            ]
            try:
                # Connections wait for that rather than be refused, the more so beside a predecessor
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_HOLD):
                        await _first(follower.known.wait(), stopping.wait())
                await front.listen(listener, inside=False, tls=tls)
                await front.listen(inside, inside=True)
                if link is not None and machines is not None:
                    await front.listen(machines, inside=True, machine=True, tls=link.server)
                await _first(follower.known.wait(), stopping.wait())
                if not stopping.is_set():
                    ready()
                await stopping.wait()
                platform.closing = calls.closing = True
                _log.info("action=stopping")
                front.stop_accepting()
                api.close()
                documents.feeds.end()
                client.connection.hurry()
                broker.stopping()
                await front.drain(_DRAIN)
            finally:
                for task in background:
                    task.cancel()
        await reports.flush()
    finally:
        refusals.close()
        await broker.close(_GIVE_BACK)
        await runner.cleanup()
        others.close()
        await client.close()
        if private is None:
            data.socket("gateway").unlink(missing_ok=True)


def _divider(calls: Calls) -> Callable[[web.BaseRequest, Handler], Awaitable[web.StreamResponse]]:
    """Return what every request passes first: calls of functions go one way, everything else the other."""

    async def divide(request: web.BaseRequest, rest: Handler) -> web.StreamResponse:
        connection = cast("CallerConnection", request.protocol)
        target = routing.origin_form(request.raw_path)
        if target.startswith(routing.PREFIX):
            return await calls.answer(request, connection.origin, target, connection.take_over())
        if request.method == "CONNECT":
            response = problem_response(Problem("upgrade-refused", "This is no proxy: it opens no tunnels."))
            response.force_close()
            return response
        if connection.origin.inside and not connection.origin.machine:
            return problem_response(
                Problem("not-found", "A function can only call functions here: /function/NAME.")
            )
        return await rest(request)

    return divide


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of them has ended."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
