"""Leases come and go here: asks the function service for instances, gives them back, has them stopped.

`leases.py` decides, this module acts. What happens when the function service is lost, and mostly started
again within a second: the instances of our leases live on. So they stay usable until the service can be
reached again, and are drained then: running calls end on them, new calls get new leases. Those with running
calls are claimed, or the service would end them; the others are given back. An instance that died meanwhile
shows itself by refusing connections. On a platform of several machines, others take its functions over when
it is away for longer, and new calls go there.
"""

import asyncio
import contextlib
import logging
import math

from function_service.contract import Invocations, Lease, Route, RouteTable
from gateway.leases import FunctionLeases, HeldLease, State, Waiter
from gateway.machines import Machines
from gateway.tasks import Tasks
from pilotlight.machines import elsewhere, machine_of
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

_RELEASE_WITHIN = 10.0  # seconds
_STOP_WITHIN = 5.0  # seconds until an instance that is killed must be dead
_LONGEST_AWAY = (
    35.0  # seconds after which the function service can't be away without its instances having ended
)
_DIAGNOSE_WITHIN = 3.0  # seconds; the service itself waits up to one
_SHORTEST_TURN = 0.05  # seconds that a busy lease is kept though another gateway wants it
_MOVE_AFTER = 3.0  # seconds that the function service is away; well before its claims lapse
_FULL = 0.01  # seconds that a queue stays full without being looked at
_PAUSE = 0.25  # seconds before an instance is asked for again after that failed
_MAY_PASS = frozenset({"no-capacity", "unavailable", "overloaded"})


class Broker:
    """Hands out slots of leases, one function at a time."""

    def __init__(
        self,
        invocations: Invocations,
        queue_limit: int,
        queue_wait: float = math.inf,
        machines: Machines | None = None,
    ) -> None:
        """Let `queue_limit` calls wait for each function, if they need not wait longer than `queue_wait`.

        The wait is in seconds, and what is expected of the pace at which others get their slots.
        """
        self._invocations = invocations
        self._machines = machines or Machines(None)
        self._moving: asyncio.TimerHandle | None = None  # until calls go to other machines
        self._moved = False  # whether they do
        self._queue_limit = queue_limit
        self._queue_wait = queue_wait
        self._functions: dict[str, FunctionLeases] = {}
        self._leases: dict[str, HeldLease] = {}
        self._generation = 0
        self._tasks = Tasks()
        self._away = False  # whether the function service is
        self._stopping = False  # whether the gateway is to stop once the calls that it has are answered
        self._closing = False

    # what calls do

    def take(self, route: Route) -> HeldLease | None:
        """Take a free slot, without waiting. The caller gives it back."""
        function = self._functions.get(route.function)
        return None if function is None else function.take()

    def queue(self, route: Route) -> Waiter:
        """Join the function's queue. Raises Problem `overloaded` where it is full."""
        function = self._functions.get(route.function)
        if function is not None and (problem := self._refusal(route, function)) is not None:
            raise problem
        if self._moved and self._machines.others:
            raise elsewhere(route.function, self._machines.others[0])
        if function is None:
            function = self._functions[route.function] = FunctionLeases(route)
        if self._stopping and self._away:
            raise _going()
        waiter = function.queue()
        self._ask(function)
        return waiter

    def join(self, route: Route) -> Waiter | None:
        """Join the queue of a function that has all the instances it may have; None where it hasn't.

        It is not looked again whether the call may wait: `refusal` has just said so.
        """
        function = self._functions.get(route.function)
        if function is None or self._away or len(function.open) < route.max_instances:
            return None
        return function.queue()

    def refusal(self, route: Route) -> Problem | None:
        """Return why a call may not wait for a slot, or None where it may.

        A flood asks thousands of times a second. So what was said once holds until a call leaves the queue,
        or for some milliseconds.
        """
        function = self._functions.get(route.function)
        if function is None:
            return None
        now = asyncio.get_running_loop().time()
        if function.full is not None and now < function.full[1]:
            return function.full[0]
        problem = self._refusal(route, function)
        if problem is not None:
            function.full = (problem, now + _FULL)
        return problem

    def _refusal(self, route: Route, function: FunctionLeases) -> Problem | None:
        if not function.waiters:
            return None
        waiting = len(function.waiters)
        longest = function.longest_queue(self._queue_wait)
        if waiting < self._queue_limit and (longest is None or waiting < longest):
            return None
        flag = "--queue" if waiting >= self._queue_limit else "--queue-wait"
        return Problem(
            "overloaded",
            f"{waiting} calls wait for {route.function!r} already, on {len(function.open)} instances of at "
            f"most {route.max_instances}. Try later; max_instances or concurrency in the manifest, or {flag} "
            "of the platform, raise the limit.",
            retry_after=1,
        )

    async def slot(self, waiter: Waiter) -> HeldLease:
        """Wait for the slot. The caller bounds the wait, and gives the slot back.

        Raises the Problems of `Invocations.acquire`.
        """
        try:
            return await waiter.handed
        except BaseException:
            self.leave(waiter)
            raise

    def leave(self, waiter: Waiter) -> None:
        """Wait no more. A slot that has been handed over meanwhile is given back."""
        function, handed = waiter.owner, waiter.handed
        waiter.left = function.vain()
        if handed.done() and not handed.cancelled() and handed.exception() is None:
            self.give_back(handed.result())  # it was handed over in the moment of leaving
            return
        with contextlib.suppress(ValueError):
            function.waiters.remove(waiter)
            function.full = None
        for task in function.surplus():
            task.cancel()
        self._forget_if_empty(function)

    def give_back(self, held: HeldLease) -> None:
        """Give a slot back."""
        if not held.owner.give_back(held):
            return
        if held.state is State.OPEN:
            loop = asyncio.get_running_loop()
            held.idle_since = loop.time()
            if held.idle_timer is None:
                held.idle_timer = loop.call_later(held.lease.idle, self._check_idle, held)
        elif held.state is State.DRAINING:
            self._release(held)

    def stop(self, held: HeldLease, reason: str) -> asyncio.Task[None]:
        """Have the instance killed; the returned task ends when it is dead. Its other calls end by that."""
        if held.ending is None:
            held.stopped = reason
            self.void(held)
            held.ending = self._tasks.start(self._stop(held, reason), f"stop {held.lease.instance}")
        return held.ending

    async def diagnose(self, held: HeldLease) -> Problem:
        """Tell why the instance broke off a call. It is void from now on."""
        if held.stopped:
            return Problem(
                "crashed",
                f"The call ended because its instance was stopped: {held.stopped}. Try again.",
            )
        found = await asyncio.shield(self.look_into(held))
        return Problem(found.kind, found.detail, **found.extra)

    def look_into(self, held: HeldLease) -> asyncio.Task[Problem]:
        """Have it found out why an instance broke off; it is asked once, whoever waits for it."""
        self.void(held)
        if held.diagnosis is None:
            held.diagnosis = self._tasks.start(self._diagnose(held), f"diagnose {held.lease.instance}")
        return held.diagnosis

    def void(self, held: HeldLease) -> None:
        """Use the lease no more and do not release it: its instance is dead or about to be."""
        self._leases.pop(held.lease.id, None)
        if held.state is not State.VOID:
            held.owner.void(held)
            self._ask(held.owner)
            self._forget_if_empty(held.owner)

    def queues(self) -> dict[str, int]:
        """Return how many calls wait, by function."""
        return {name: len(leases.waiters) for name, leases in self._functions.items()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return how many leases are held and how many calls are under way on them, by function."""
        return {
            name: (len(held), sum(one.busy for one in held))
            for name, leases in self._functions.items()
            for held in [leases.open | leases.draining]
        }

    # what the function service tells

    def swap(self, table: RouteTable) -> None:
        """Follow a new table: leases of former revisions are drained."""
        for function in list(self._functions.values()):
            former = function.route
            route = table.routes.get(former.function)
            if route is None:
                function.fail(
                    Problem("unknown-function", f"The function {former.function!r} has just been deleted.")
                )
                for task in function.surplus():
                    task.cancel()
            else:
                function.route = route
                function.full = None
            if route is None or route.revision != former.revision:
                for held in list(function.open):
                    if route is None or held.lease.revision != route.revision:
                        self._drain(held)
            self._ask(function)
            self._forget_if_empty(function)

    def recall(self, lease: str) -> None:
        """Send no new call on this lease, and release it when its last call has ended."""
        if (held := self._leases.get(lease)) is not None:
            self._drain(held)
            self._ask(held.owner)

    def spare(self, function: str) -> None:
        """Give a lease back for another gateway: an idle one, else that with the fewest calls when they end.

        A busy one stays for a while first: changing hands costs some messages, and the time of calls that
        could have been answered meanwhile. Nothing is done while another one is on its way back already.
        """
        leases = self._functions.get(function)
        if leases is None or leases.draining or not leases.open:
            return
        held = min(leases.open, key=lambda each: each.busy)
        if held.busy and asyncio.get_running_loop().time() - held.since < _SHORTEST_TURN:
            return  # we are told again
        self._drain(held)
        self._ask(leases)

    def ended(self, lease: str) -> None:
        """Forget the lease: its instance is dead. Calls that are under way notice by themselves."""
        if (held := self._leases.get(lease)) is not None:
            self.void(held)

    def disconnected(self) -> None:
        """The function service went away: what we hold belongs to the connection that was lost."""
        self._generation += 1
        self._away = True
        if self._stopping:
            self._fail_all()
        if self._moving is None:
            self._moving = asyncio.get_running_loop().call_later(_MOVE_AFTER, self._move)

    def _move(self) -> None:
        """Leave new calls, and those that wait, to other machines, which are about to take the functions."""
        self._moved = True
        for function in list(self._functions.values()) if self._machines.others else ():
            function.fail(elsewhere(function.route.function, self._machines.others[0]))
            for task in function.surplus():
                task.cancel()
            for held in list(function.open):
                self._drain(held)
            self._forget_if_empty(function)

    def reconnected(self) -> None:
        """The function service is there again: claim and drain the leases of former connections."""
        self._away = self._moved = False
        if self._moving is not None:
            self._moving.cancel()
            self._moving = None
        former = [held for held in self._leases.values() if held.generation != self._generation]
        busy = [held.lease.id for held in former if held.busy]
        if busy:
            self._tasks.start(self._claim(busy), "claim leases")
        for held in former:
            held.generation = self._generation
            self._drain(held)
            self._ask(held.owner)

    def orphaned(self, lease: Lease) -> None:
        """Give back a lease that arrived after its acquire had been cancelled."""
        self._tasks.start(self._give_up(lease.id), f"release {lease.instance}")

    # how it is done

    def _ask(self, function: FunctionLeases) -> None:
        for _ in range(0 if self._closing else function.to_ask()):
            function.acquires.append(
                self._tasks.start(
                    self._acquire(function, function.route), f"acquire {function.route.function}"
                )
            )

    async def _acquire(self, function: FunctionLeases, route: Route) -> None:
        task = asyncio.current_task()
        outcome: Lease | Problem
        try:
            outcome = await self._invocations.acquire(route.function, route.timeout)
        except Problem as problem:
            outcome = problem
        finally:
            function.acquires = [other for other in function.acquires if other is not task]
        if isinstance(outcome, Problem):
            self._failed(function, outcome)
        else:
            self._arrived(function, route, outcome)
        self._forget_if_empty(function)

    def _arrived(self, function: FunctionLeases, asked: Route, lease: Lease) -> None:
        now = function.route
        outdated = now.revision not in (lease.revision, asked.revision)
        if self._closing or outdated or self._functions.get(now.function) is not function:
            self._tasks.start(self._give_up(lease.id), f"release {lease.instance}")
            self._ask(function)
            return
        function.trouble = None
        held = HeldLease(lease, function, self._generation)
        self._leases[lease.id] = held
        function.add(held)
        if not held.busy:
            loop = asyncio.get_running_loop()
            held.idle_since = loop.time()
            held.idle_timer = loop.call_later(lease.idle, self._check_idle, held)

    def _failed(self, function: FunctionLeases, problem: Problem) -> None:
        """Decide who ends with the problem. While others can still serve the queue, nobody does."""
        _log.info(
            "action=acquire-failed function=%s problem=%s detail=%r",
            function.route.function,
            problem.kind,
            problem.detail,
        )
        function.trouble = problem
        passing = problem.kind in _MAY_PASS and (problem.kind == "unavailable" or bool(function.acquires))
        hope = bool(function.open) or (passing and machine_of(problem) is None)
        if not hope:
            function.fail(problem)
            for task in function.surplus():
                task.cancel()
        elif function.retry is None and not self._closing:
            function.retry = asyncio.get_running_loop().call_later(_PAUSE, self._ask_again, function)

    def _ask_again(self, function: FunctionLeases) -> None:
        function.retry = None
        self._ask(function)
        self._forget_if_empty(function)

    def _check_idle(self, held: HeldLease) -> None:
        held.idle_timer = None
        if held.busy or held.state is not State.OPEN:
            return
        loop = asyncio.get_running_loop()
        left = held.idle_since + held.lease.idle - loop.time()
        if left > 0:
            held.idle_timer = loop.call_later(left, self._check_idle, held)
        else:
            self._drain(held)

    def _drain(self, held: HeldLease) -> None:
        if held.owner.drain(held):
            self._release(held)

    def _release(self, held: HeldLease) -> None:
        self._leases.pop(held.lease.id, None)
        if held.generation == self._generation:
            self._tasks.start(self._give_up(held.lease.id), f"release {held.lease.instance}")
        self._ask(held.owner)
        self._forget_if_empty(held.owner)

    def _forget_if_empty(self, function: FunctionLeases) -> None:
        if function.empty and self._functions.get(function.route.function) is function:
            if function.retry is not None:
                function.retry.cancel()
                function.retry = None
            del self._functions[function.route.function]

    async def _give_up(self, lease: str) -> None:
        try:
            async with asyncio.timeout(_RELEASE_WITHIN):
                await self._invocations.release(lease)
        except (Problem, TimeoutError) as error:
            # the connection over which it was held is gone, and the lease with it
            _log.warning("action=release-failed lease=%s error=%r", lease, error)

    async def _claim(self, leases: list[str]) -> None:
        try:
            await self._invocations.claim(leases)
        except Problem as problem:  # it has gone again, and they are claimed when it is back
            _log.warning("action=claim-failed leases=%s detail=%r", ",".join(leases), problem.detail)

    async def _stop(self, held: HeldLease, reason: str) -> None:
        lease = held.lease
        _log.info("action=stop function=%s instance=%s reason=%r", lease.function, lease.instance, reason)
        given_up = asyncio.get_running_loop().time() + _LONGEST_AWAY
        while True:
            try:
                async with asyncio.timeout(_STOP_WITHIN):
                    await self._invocations.stop(lease.id, reason)
            except (Problem, TimeoutError) as error:
                away = isinstance(error, Problem) and error.kind == "unavailable"
                late = asyncio.get_running_loop().time() > given_up
                # A platform that is gone as a whole has taken its instances with it
                if away and not late and not (self._stopping and self._away):
                    await asyncio.sleep(_PAUSE)
                    continue
                _log.error("action=stop-failed instance=%s error=%r", lease.instance, error)
            return

    async def _diagnose(self, held: HeldLease) -> Problem:
        if held.generation != self._generation:  # whoever knew is gone
            return _ended_with_its_service(held)
        try:
            async with asyncio.timeout(_DIAGNOSE_WITHIN):
                kind, detail, lines = await self._invocations.diagnose(held.lease.id)
        except (Problem, TimeoutError) as error:
            _log.warning("action=diagnose-failed instance=%s error=%r", held.lease.instance, error)
            if held.generation != self._generation or self._away:
                return _ended_with_its_service(held)
            return Problem(
                "crashed",
                f"The instance broke the call off, and why is not known ({error or 'no answer in time'}): "
                f"see `pilotlight logs {held.lease.function}`.",
            )
        return Problem(kind, detail, logs=lines)

    def stopping(self) -> None:
        """The gateway is about to stop: from now on, nobody waits for a function service that is away.

        It is not coming back then, as where `pilotlight up` was killed and all services stop at once.
        """
        self._stopping = True
        if self._away:
            self._fail_all()

    def _fail_all(self) -> None:
        for function in list(self._functions.values()):
            function.fail(_going())
            for task in function.surplus():
                task.cancel()
            self._forget_if_empty(function)

    async def close(self, grace: float) -> None:
        """Let nobody wait any more, give all leases back, and end within grace seconds."""
        self._closing = True
        if self._moving is not None:
            self._moving.cancel()
        self._fail_all()
        for function in list(self._functions.values()):
            for held in list(function.open):
                self._drain(held)
        await self._tasks.close(grace)


def _going() -> Problem:
    return Problem("unavailable", "The gateway is shutting down. Try again.", retry_after=1)


def _ended_with_its_service(held: HeldLease) -> Problem:
    return Problem(
        "crashed",
        f"The instance {held.lease.instance} ended during the call. Why is not known: the function service "
        "was restarted. What the call was to do may have been done, or not: look before you try again.",
    )
