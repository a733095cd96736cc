"""The short way of a warm call: from the caller's connection to the instance's and back, without a task.

It is taken where nothing has to be waited for but a slot and the answer: the request is plain and has come as
a whole (glance.py), the function is known and the caller may call it, a slot is free, or will be without
another instance, and a connection to its instance stands. The request is written at once, or by the callback
that hands the slot over, and the answer, if it comes soon and as a whole, by the one that it arrives in. In
every other case, even in the midst of it, the request goes to aiohttp as it came, and the call takes the long
way of invoke.py from where it is: `hand_over`.
"""

import asyncio
import re
import time
from typing import TYPE_CHECKING

from function_service.contract import Route
from gateway import admission, headers
from gateway.broker import Broker
from gateway.call import Call, QuickCall
from gateway.exchange import whole_answer
from gateway.forward import Connection
from gateway.glance import Plain, read
from gateway.identity import identify, lines
from gateway.invoke import Calls
from gateway.leases import HeldLease
from gateway.replies import problem_message
from gateway.routing import Routes
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from gateway.connections import CallerConnection

_SOON = 0.1  # seconds; an answer that takes longer is waited for on the long way, which has the time limits
_LONGEST_WAIT = 30.0  # seconds for a slot, on the short way; aiohttp closes what has been idle for 75
_LINE = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) /function/([A-Za-z0-9._-]+)([/?][!-\"$-~]*)? HTTP/1\.1"
)


class Quick:
    """Takes the calls that can go the short way."""

    def __init__(self, routes: Routes, broker: Broker, calls: Calls, max_body: int) -> None:
        self._routes = routes
        self._broker = broker
        self._calls = calls
        self._max_body = max_body
        self._under_way: dict[QuickCall, None] = {}  # those that were sent, the oldest first
        self._waiting: dict[QuickCall, None] = {}  # those that wait for a slot
        self._timer: asyncio.TimerHandle | None = None

    def again(self, caller: "CallerConnection", data: bytes) -> bool:
        """Take a request whose headers are those of the one before; return whether it was taken."""
        plain = caller.plain
        if plain is None:
            return False
        end = data.find(b"\r\n")
        if (
            not data.startswith(plain.block, end + 2)
            or len(data) != end + 2 + len(plain.block) + plain.length
        ):
            return False
        line = _LINE.fullmatch(data, 0, end)
        return (
            line is not None and plain.table is self._routes.table and self._take(caller, data, line, plain)
        )

    def first(self, caller: "CallerConnection", data: bytes) -> bool:
        """Take a request that the caller's glance says is whole; return whether it was taken."""
        table = self._routes.table
        line = _LINE.fullmatch(data, 0, data.find(b"\r\n"))
        if table is None or line is None:  # it may begin with empty lines, which the glance leaves out
            return False
        plain = caller.plain = read(caller.glance.fields, data, caller.origin, table)
        return plain is not None and self._take(caller, data, line, plain)

    def _take(self, caller: "CallerConnection", data: bytes, line: re.Match[bytes], plain: Plain) -> bool:
        if self._calls.closing or plain.length > self._max_body:
            return False
        method, name, rest = line.groups()
        route = plain.table.routes.get(name.decode())
        if route is None or route.timeout < 2 * _SOON:
            return False
        try:
            admission.admit(route, plain.authorization, plain.table.keys, inside=caller.origin.inside)
        except Problem:
            return False  # it is refused on the long way
        target = rest or b"/"
        if not target.startswith(b"/"):
            target = b"/" + target
        slot = self._broker.take(route)
        if slot is None:
            return method != b"HEAD" and self._without_slot(caller, data, method, target, route, plain)
        connection = slot.connection()
        if connection is None:
            self._broker.give_back(slot)
            return False
        self._send(self._begin(caller, data, method, target, route, plain), slot, connection)
        return True

    def _begin(
        self,
        caller: "CallerConnection",
        data: bytes,
        method: bytes,
        target: bytes,
        route: Route,
        plain: Plain,
    ) -> QuickCall:
        identity = identify(plain.request_id, plain.traceparent)
        call = QuickCall(method.decode(), identity, plain, self, caller, data, route)
        call.target = target.decode()
        caller.begins(call)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SOON, self._look)
        return call

    def _send(self, call: QuickCall, slot: HeldLease, connection: Connection) -> None:
        call.held = call.slot = slot
        call.connection = connection
        call.sent = True
        self._under_way[call] = None
        connection.watcher = call.woken
        connection.begin(call.method)
        plain, data = call.plain, call.data
        message = (
            call.method.encode(), b" ", call.target.encode(), b" HTTP/1.1\r\n", plain.lines,
            lines(call.request_id, call.traceparent), b"\r\n", data[len(data) - plain.length :],
        )  # fmt: skip
        connection.send(b"".join(message), whole=True)

    def _without_slot(
        self,
        caller: "CallerConnection",
        data: bytes,
        method: bytes,
        target: bytes,
        route: Route,
        plain: Plain,
    ) -> bool:
        """Refuse a call if it may not even wait. In a flood most of them are, so it has to cost little.

        Else it waits, unless another instance may be started for it: then it takes the long way meanwhile.
        """
        problem = self._broker.refusal(route)
        if problem is None:
            waiter = self._broker.join(route)
            if waiter is None:
                return False
            call = self._begin(caller, data, method, target, route, plain)
            call.waiter = waiter
            self._waiting[call] = None
            waiter.handed.add_done_callback(call.handed)
            return True
        began = time.perf_counter()
        identity = identify(plain.request_id, plain.traceparent)
        caller.reply(problem_message(problem, identity[0]))
        seconds = time.perf_counter() - began
        if self._calls.turned_away(route, problem, seconds):
            refused = Call(method.decode(), identity, plain.caller)
            refused.route, refused.target, refused.admitted = route, target.decode(), True
            self._calls.tell(refused, problem.status, problem, seconds)
        return True

    def handed(self, call: QuickCall) -> None:
        """Send a call that has waited; the long way goes on where there is no slot, connection or time."""
        waiter = call.waiter
        if waiter is None or call not in self._waiting:
            return  # it was handed over, or abandoned, in this very moment
        slot = waiter.handed.result() if waiter.handed.exception() is None else None
        now = time.perf_counter()
        connection = None
        if slot is not None and _left(call, now) >= 2 * _SOON:
            connection = slot.connection()
        if slot is None or connection is None:
            self.hand_over(call)
            return
        self._waiting.pop(call)
        call.waited = now - call.arrived
        self._send(call, slot, connection)

    def woken(self, call: QuickCall) -> None:
        """Pass the answer on if it is there."""
        connection = call.connection
        if not connection.finished:
            self.hand_over(call)
            return
        keep_alive = not self._calls.closing
        call.status = connection.status
        head = headers.fill(
            _form(call.slot, connection),
            bodiless=connection.bodiless,
            http11=True,
            keep_alive=keep_alive,
            receipt=call.receipt(call.slot),
        )
        call.caller_connection.answer(whole_answer(connection, head), keep_alive=keep_alive)
        self._leave(call)
        call.slot.keep(connection)
        self._broker.give_back(call.slot)
        self._calls.ended(call, call.status, None)

    def hand_over(self, call: QuickCall) -> None:
        """Let the call go on by the long way."""
        self._leave(call)
        call.caller_connection.hand_over(call)

    def abandon(self, call: QuickCall) -> None:
        """End a call whose caller is gone."""
        self._leave(call)
        self._calls.abandon(call)

    def _leave(self, call: QuickCall) -> None:
        if call.sent:
            call.connection.watcher = None
            self._under_way.pop(call, None)
        elif call.waiter is not None:
            call.waiter.handed.remove_done_callback(call.handed)
            self._waiting.pop(call, None)

    def _look(self) -> None:
        """Hand over what takes longer; the timer runs only while calls are under way, or wait."""
        self._timer = None
        now = time.perf_counter()
        for call in list(self._under_way):
            if call.arrived + call.waited > now - _SOON:
                break
            self.hand_over(call)
        for call in list(self._waiting):
            if _left(call, now) < 2 * _SOON or now - call.arrived > _LONGEST_WAIT:
                self.hand_over(call)
        if self._under_way or self._waiting:
            self._timer = asyncio.get_running_loop().call_later(_SOON, self._look)


def _left(call: QuickCall, now: float) -> float:
    """Return the seconds until the call's time is over."""
    return call.arrived + call.wanted.timeout - now


def _form(slot: HeldLease, connection: Connection) -> headers.Form:
    """Return what becomes of the answer's headers: mostly they are those of the instance's last answer."""
    said = (connection.status, connection.reason, connection.headers)
    if slot.last_form is None or slot.last_form[0] != said:
        slot.last_form = (said, headers.form(*said, receipted=True))
    return slot.last_form[1]
