"""THE handler: a call of a function, from its arrival to its answer.

Read `Calls.answer` and `Calls._run` first: route, admit, lease, forward, answer. What went wrong is turned
into a problem in one place, `Calls._problem`. Most warm calls take the short way in quick.py, and come here
only where that does not lead to its end.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, cast

from aiohttp.web import BaseRequest, RequestPayloadError, StreamResponse

from function_service.contract import Route, Usage
from gateway import headers, routing
from gateway.admission import Doorkeeper
from gateway.broker import Broker
from gateway.call import Call, Origin, QuickCall, calling, forwarding, remote, withheld
from gateway.exchange import SENT, SENT_LAST, Upload, break_off, pass_answer
from gateway.forward import BrokenOff, Connection, Malformed, TooLarge, connect
from gateway.identity import identify, lines
from gateway.leases import HeldLease, Waiter
from gateway.machines import ELSEWHERE, Machines
from gateway.meter import Meter
from gateway.refusals import Refusals
from gateway.replies import fault, problem_response
from gateway.reports import Reports
from gateway.routing import Routes
from pilotlight.machines import machine_of
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from gateway.connections import CallerConnection

_log = logging.getLogger(__name__)
_ATTEMPTS = 3  # instances that may turn out to be dead before one takes the call
_AGAIN = 0.1  # seconds until it is asked again on which machine a function is at home
_MARGIN = 2.0  # seconds that another machine has to say that the time is over
_PATH = 200  # characters of a path that are remembered
GONE = 499  # what is counted and logged for a call whose caller went away, as nginx does


class _Elsewhere(Exception):  # noqa: N818  where to go on
    """The function is at home on another machine."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


class Calls:
    """Answers `/function/NAME[/rest]`."""

    def __init__(
        self,
        routes: Routes,
        doorkeeper: Doorkeeper,
        broker: Broker,
        meter: Meter,
        reports: Reports,
        refusals: Refusals,
        max_body: int,
        machines: Machines,
    ) -> None:
        self._machines = machines
        self._routes = routes
        self._doorkeeper = doorkeeper
        self._broker = broker
        self._meter = meter
        self._reports = reports
        self._refusals = refusals
        self._max_body = max_body
        self.closing = False  # from then on, connections are not kept alive

    async def answer(
        self, request: BaseRequest, origin: Origin, target: str, begun: QuickCall | None = None
    ) -> StreamResponse:
        """Answer one call; target is the path and query as they were sent.

        `begun` is the same call, where it waits for a slot or has been sent to an instance already.
        """
        call = begun or _call(request, origin)
        try:
            if begun is None:
                name, call.target = routing.split(target)
                route = call.route = self._routes.find(name)
                authorization = request.headers.get("Authorization")
                self._doorkeeper.admit(
                    route, authorization, remote(request.headers, origin), inside=origin.inside
                )
                call.admitted = True
                headers.refuse_what_cannot_pass(request.headers, request.method)
            else:
                route = begun.wanted
            upload = call.upload = Upload(request, self._max_body)
            async with asyncio.timeout(route.timeout + call.arrived - time.perf_counter()) as limit:
                keep_alive = await self._run(call, origin, route, upload, limit, begun)
        except asyncio.CancelledError:
            self.ended(call, GONE, None)
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets an answer
            return await self._fail(call, request, error)
        self.ended(call, call.status, None)
        return SENT if keep_alive else SENT_LAST

    async def _run(
        self,
        call: Call,
        origin: Origin,
        route: Route,
        upload: Upload,
        limit: asyncio.Timeout,
        begun: QuickCall | None,
    ) -> bool:
        """Get a slot and forward the call; return whether the caller's connection is kept alive."""
        attempts = 0
        waiter = begun.waiter if begun is not None and not begun.sent else None
        sent = begun if begun is not None and begun.sent else None
        while True:
            if sent is None:
                call.held = None
                held = None if waiter is not None else self._broker.take(route)
                if held is None:
                    place, waiter = waiter, None  # what comes of waiting there, comes once
                    try:
                        held = await self._slot(call, origin, route, place)
                    except _Elsewhere as elsewhere:
                        kept = await self._pass_on(call, origin, elsewhere, upload, limit)
                        if kept is None:
                            continue
                        return kept
                call.held = held
                call.waited = time.perf_counter() - call.arrived
            else:
                held = sent.slot
            try:
                return await self._forward(call, origin, held, upload, sent)
            except BrokenOff as broken:
                self._broker.void(held)
                attempts += 1
                if broken.taken or upload.streaming or attempts == _ATTEMPTS:
                    raise
                self._broker.look_into(held)  # it was dead before the call began, so another one can take it
            except BaseException:
                if limit.expired() and not _waits_for_caller(upload):
                    self._broker.stop(held, f"a call ran longer than the timeout of {route.timeout:g} s")
                else:
                    self._broken_off(held)
                raise
            finally:
                self._broker.give_back(held)
            sent = None

    async def _slot(
        self, call: Call, origin: Origin, route: Route, waiter: Waiter | None = None
    ) -> HeldLease:
        """Wait for a slot. Raises Problem, and _Elsewhere where another machine has the function.

        `waiter` is the call's place in the queue, where it has one already.
        """
        if waiter is None and not origin.machine and (address := self._machines.home(route.function)):
            raise _Elsewhere(address)
        try:
            call.waiter = waiter or self._broker.queue(route)
            held = await self._broker.slot(call.waiter)
        except Problem as problem:
            address = machine_of(problem)
            if address is None or origin.machine:
                raise
            self._machines.learn(route.function, address)
            raise _Elsewhere(address) from problem
        call.cold = call.waiter.cold
        return held

    async def _pass_on(
        self, call: Call, origin: Origin, elsewhere: "_Elsewhere", upload: Upload, limit: asyncio.Timeout
    ) -> bool | None:
        """Have another machine make the call; return whether the caller's connection is kept alive.

        None where that machine does not answer, or has not got the function any more: look again.
        """
        address, request, route = elsewhere.address, upload.request, call.route
        assert route is not None  # noqa: S101
        try:
            connection = await self._machines.connect(address)
        except BrokenOff:
            self._machines.forget(route.function)
            await asyncio.sleep(_AGAIN)
            return None
        if not call.passed_on:  # it keeps the time itself
            call.passed_on = True
            limit.reschedule((limit.when() or 0) + _MARGIN)
        try:
            await upload.send(connection, self._passed_head(call, origin, route, request))
            await connection.head()
            if any(name.lower() == ELSEWHERE.lower().encode() for name, _ in connection.headers):
                connection.close()
                self._machines.forget(route.function)
                if upload.streaming:
                    raise Problem(
                        "unavailable", f"{route.function!r} has just moved. Try again.", retry_after=1
                    )
                await asyncio.sleep(_AGAIN)
                return None
            head = await self._hand_back(call, request, connection)
        except (BrokenOff, Malformed) as error:
            raise Problem(
                "crashed",
                f"The machine {address}, which made the call, broke it off ({error}). What it was to do may "
                "have been done, or not: look before you try again.",
            ) from error
        except BaseException:
            connection.close()
            raise
        finally:
            if upload.streaming:
                await upload.end()
        self._machines.keep(address, connection)
        return head.keep_alive

    def _passed_head(self, call: Call, origin: Origin, route: Route, request: BaseRequest) -> bytes:
        """Return the head of a request for another machine, which withholds the caller's key itself."""
        given = request.headers
        return headers.request_head(
            request.method,
            f"{routing.PREFIX}{route.function}{call.target}",
            request.raw_headers,
            given,
            forwarding(given, origin) + lines(call.request_id, call.traceparent),
        )

    def _broken_off(self, held: HeldLease) -> None:
        """Stop an instance that works on nothing but a call which was broken off."""
        if held.lease.concurrency == 1:
            self._broker.stop(held, "the call that it worked on was broken off")

    def abandon(self, begun: QuickCall) -> None:
        """End a call that has begun on the short way and whose caller is gone."""
        if begun.sent:
            begun.connection.close()
            self._broken_off(begun.slot)
            self._broker.give_back(begun.slot)
        elif begun.waiter is not None:
            self._broker.leave(begun.waiter)
        self.ended(begun, GONE, None)

    async def _forward(
        self, call: Call, origin: Origin, held: HeldLease, upload: Upload, sent: QuickCall | None
    ) -> bool:
        connection = held.connection() if sent is None else sent.connection
        if connection is not None:
            try:
                if sent is None:
                    await self._send(call, origin, upload, connection)
                return await self._exchange(call, held, upload, connection)
            except BrokenOff as broken:
                if broken.taken or upload.streaming:
                    raise  # else the instance had closed the connection meanwhile, as idle ones are
        connection = await connect(held.address)
        await self._send(call, origin, upload, connection)
        return await self._exchange(call, held, upload, connection)

    async def _send(self, call: Call, origin: Origin, upload: Upload, connection: Connection) -> None:
        try:
            await upload.send(connection, self._request_head(call, origin, upload.request))
        except BaseException:
            connection.close()
            await upload.end()
            raise

    async def _exchange(self, call: Call, held: HeldLease, upload: Upload, connection: Connection) -> bool:
        try:
            await connection.head()
            head = await self._hand_back(call, upload.request, connection, call.receipt(held))
        except BaseException:
            connection.close()
            raise
        finally:
            if upload.streaming:
                await upload.end()
        held.keep(connection)
        return head.keep_alive

    async def _hand_back(
        self, call: Call, request: BaseRequest, connection: Connection, receipt: headers.Receipt | None = None
    ) -> headers.AnswerHead:
        """Pass the answer whose head has come on to the caller."""
        call.status = connection.status
        head = headers.answer_head(
            connection.status,
            connection.reason,
            connection.headers,
            bodiless=connection.bodiless,
            http11=request.version >= (1, 1),
            keep_alive=request.keep_alive and not self.closing,
            receipt=receipt,
        )
        call.head_sent = True
        await pass_answer(request, connection, head)
        return head

    def _request_head(self, call: Call, origin: Origin, request: BaseRequest) -> bytes:
        given = request.headers
        return headers.request_head(
            request.method,
            call.target,
            request.raw_headers,
            given,
            forwarding(given, origin) + lines(call.request_id, call.traceparent),
            without=withheld(given, self._routes.keys, trace_taken=call.trace_taken),
        )

    async def _fail(self, call: Call, request: BaseRequest, error: Exception) -> StreamResponse:
        """Answer a call that could not be answered by its function."""
        if isinstance(error, ConnectionError):  # the caller's: it is gone
            self.ended(call, GONE, None)
            return SENT_LAST
        problem = await self._problem(call, error)
        if call.head_sent:
            self.ended(call, call.status, problem)
            return break_off(request)
        self._meter.refusal(problem.kind)
        self.ended(call, problem.status, problem)
        added = call.failure_headers()
        connection = cast("CallerConnection", request.protocol)
        if connection.origin.machine and (address := machine_of(problem)) is not None:
            added[ELSEWHERE] = address
        response = problem_response(problem, added)
        unread = call.upload is None or call.upload.unread  # the caller may be about to send its body, or not
        if self.closing or problem.kind == "upgrade-refused" or (unread and "Expect" in request.headers):
            response.force_close()
        return response

    async def _problem(self, call: Call, error: Exception) -> Problem:
        match error:
            case Problem():
                return error
            case TimeoutError():
                return await self._out_of_time(call)
            case BrokenOff() if call.held is not None:
                return await self._broker.diagnose(call.held)
            case Malformed():
                return Problem(
                    "crashed",
                    f"The function's answer is not valid HTTP: {error}. A program that serves $PORT must "
                    "answer in HTTP/1.1.",
                )
            case TooLarge():
                return Problem(
                    "too-large",
                    f"The body is larger than {self._max_body} bytes. Send less, or raise --max-body of the "
                    "platform.",
                )
            case RequestPayloadError():
                return Problem("invalid-request", f"The request's body can't be read to its end: {error}.")
        _log.error("action=call-fault request_id=%s", call.request_id, exc_info=error)
        return fault()

    async def _out_of_time(self, call: Call) -> Problem:
        """Wait until the work is stopped, and say what the time was spent on."""
        route, held = call.route, call.held
        name, limit = (route.function, f"{route.timeout:g} s") if route is not None else ("", "")
        if held is None and call.passed_on:
            return Problem("timeout", f"No machine has answered within the function's timeout of {limit}.")
        if held is None:
            return call.waiter.left if call.waiter is not None and call.waiter.left is not None else fault()
        if held.ending is not None:
            await asyncio.shield(held.ending)
        if call.upload is not None and call.upload.starved:
            return Problem(
                "timeout",
                f"The request's body did not come to its end within the function's timeout of {limit}. Send "
                "it faster, or raise timeout in the manifest.",
            )
        return Problem(
            "timeout",
            f"The function did not answer within its timeout of {limit}, and was stopped: it waited "
            f"{call.waited * 1000:.0f} ms for an instance, the rest was the handler's. Raise timeout in the "
            f"manifest, or see `pilotlight logs {name}`.",
        )

    def turned_away(self, route: Route, problem: Problem, seconds: float) -> bool:
        """Count a call that may not wait; return whether it is to be told by itself (see refusals.py)."""
        self._meter.refusal(problem.kind)
        self._meter.call(route.function, problem.status, "none", seconds)
        return self._refusals.singly(route.function)

    def ended(self, call: Call, status: int, problem: Problem | None) -> None:
        """Count, report and log a call."""
        if call.passed_on and problem is None:
            return  # the machine that made it does so
        duration = time.perf_counter() - call.arrived
        route = call.route
        if route is not None:
            self._meter.call(route.function, status, _start(call), duration)
            turned_away = problem is not None and problem.kind == "overloaded" and call.held is None
            if turned_away and not self._refusals.singly(route.function):
                return
        self.tell(call, status, problem, duration)

    def tell(self, call: Call, status: int, problem: Problem | None, duration: float) -> None:
        """Report and log a call that has been counted; `duration` is in seconds."""
        route, held = call.route, call.held
        if route is not None and call.admitted:  # strangers fill no function's memory of its calls
            self._reports.add(
                Usage(
                    function=route.function,
                    revision=route.revision if held is None else held.lease.revision,
                    instance="" if held is None else held.lease.instance,
                    request_id=call.request_id,
                    started=time.time() - duration,
                    duration=duration,
                    status=status,
                    cold=call.cold,
                    method=call.method,
                    path=call.target.partition("?")[0][:_PATH],
                    caller=call.caller or "",
                    waited=duration if held is None else call.waited,
                    stages=held.lease.stages if held is not None and call.cold else None,
                    problem="" if problem is None else problem.kind,
                    detail="" if problem is None else problem.detail,
                )
            )
        level = logging.INFO if problem is not None or status >= GONE else logging.DEBUG
        if _log.isEnabledFor(level):
            _log.log(
                level,
                "action=call method=%s function=%s status=%d start=%s ms=%.1f wait_ms=%.1f request_id=%s "
                "traceparent=%s instance=%s caller=%s problem=%s",
                call.method,
                route.function if route is not None else "-",
                status,
                _start(call),
                duration * 1000,
                call.waited * 1000,
                call.request_id,
                call.traceparent,
                held.lease.instance if held is not None else "-",
                call.caller or "-",
                problem.kind if problem is not None else "-",
            )


def _start(call: Call) -> str:
    return "none" if call.held is None else "cold" if call.cold else "warm"


def _waits_for_caller(upload: Upload) -> bool:
    """Tell whether it was the caller that held its call up: that is no fault of the function.

    Nor shall it end the calls of others on the same instance. So it is as if the caller had gone away.
    """
    return upload.starved or cast("CallerConnection", upload.request.protocol).full


def _call(request: BaseRequest, origin: Origin) -> Call:
    given = request.headers
    identity = identify(given.get("X-Request-Id"), given.get("traceparent"))
    return Call(request.method, identity, calling(given, origin))
