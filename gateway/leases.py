"""The leases of one function, and the calls that wait for one. Only bookkeeping: it does no I/O.

Whoever calls `take` or is handed a lease holds one of its slots, and gives it back exactly once.
`broker.py` carries out what is decided here.
"""

import asyncio
import math
import time
from collections import deque
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from function_service.contract import Lease, Route
from gateway.forward import Connection
from gateway.pace import Pace, longest_queue
from pilotlight import sockets
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from gateway.headers import Fields, Form

_CONNECTION_IDLE = 1.0  # seconds; shorter than servers that functions bring along keep them (Node: 5)


class State(Enum):
    """What may be done with a lease."""

    OPEN = "open"  # calls may be sent
    DRAINING = "draining"  # no new calls; released when the last one has ended
    VOID = "void"  # the instance is dead or about to be; there is nothing to release


class HeldLease:
    """One lease in our hands: how many calls are under way on it, and the connections kept alive."""

    def __init__(self, lease: Lease, owner: "FunctionLeases", generation: int) -> None:
        self.lease = lease
        self.owner = owner
        self.generation = generation  # of the connection to the function service
        self.state = State.OPEN
        self.busy = 0
        self.since = asyncio.get_running_loop().time()
        self.idle_since = 0.0
        self.address = sockets.address(Path(lease.socket))
        self.stopped = ""  # why we stopped the instance, for the other calls on it
        self.ending: asyncio.Task[None] | None = None  # done when the instance that we stopped is dead
        self.diagnosis: asyncio.Task[Problem] | None = None  # why it broke off, asked once for all calls
        self.idle_timer: asyncio.TimerHandle | None = None
        self._connections: list[Connection] = []
        self.last_form: tuple[tuple[int, bytes, Fields], Form] | None = None
        """The head of the last answer that quick.py passed on, and what became of it."""
        self.lines = (
            f"Pilotlight-Start: warm\r\nPilotlight-Instance: {lease.instance}\r\n"
            f"Pilotlight-Revision: {lease.revision}\r\n"
        ).encode()
        self.cold_lines = self.lines.replace(b"warm", b"cold", 1)

    def __repr__(self) -> str:
        return (
            f"<lease {self.lease.id} {self.state.value} {self.busy}/{self.lease.concurrency} "
            f"of {self.lease.instance}>"
        )

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return self.busy >= self.lease.concurrency

    def connection(self) -> Connection | None:
        """Return a connection that was kept alive, if there is one."""
        while self._connections:
            connection = self._connections.pop()
            if connection.alive:
                if time.monotonic() - connection.idle_since < _CONNECTION_IDLE:
                    return connection
                connection.close()
        return None

    def keep(self, connection: Connection) -> None:
        """Keep the connection for the next call if it can be used again, else close it."""
        if connection.reusable and self.state is State.OPEN:
            connection.idle_since = time.monotonic()
            self._connections.append(connection)
        else:
            connection.close()

    def disconnect(self) -> None:
        """Close the connections that nobody uses, and stop watching for idleness."""
        if self.idle_timer is not None:
            self.idle_timer.cancel()
            self.idle_timer = None
        for connection in self._connections:
            connection.close()
        self._connections.clear()


def instances_to_ask(*, waiting: int, concurrency: int, under_way: int, held: int, max_instances: int) -> int:
    """Decide how many more instances to ask for: what the waiting calls need, and no more than allowed.

    Ten calls that wait for a function with concurrency 4 need three instances; with one acquire under
    way, two more are asked for.
    """
    needed = math.ceil(waiting / concurrency)
    return max(0, min(needed, max_instances - held) - under_way)


class Waiter:
    """A call that waits for a slot: `handed` gets the lease, or the Problem that it ends with."""

    __slots__ = ("cold", "handed", "left", "owner")

    def __init__(self, owner: "FunctionLeases") -> None:
        self.owner = owner
        self.handed: asyncio.Future[HeldLease] = asyncio.get_running_loop().create_future()
        self.cold = False  # whether the lease was made by a cold start that it waited for
        self.left: Problem | None = None  # for one that left without a lease: what it waited for in vain


class FunctionLeases:
    """What the gateway holds of one function."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.open: set[HeldLease] = set()
        self.free: list[HeldLease] = []  # open ones with a free slot; the last used one is the last
        self.draining: set[HeldLease] = set()
        self.waiters: deque[Waiter] = deque()
        self.acquires: list[asyncio.Task[None]] = []  # under way, the latest last
        self.trouble: Problem | None = None  # why no instance can be had at present
        self.retry: asyncio.TimerHandle | None = None  # until then nothing is asked for
        self.full: tuple[Problem, float] | None = None  # why nobody else may wait, and until when that holds
        self._pace = Pace()

    def __repr__(self) -> str:
        return (
            f"<{self.route.function} open={sorted(map(repr, self.open))} draining={len(self.draining)} "
            f"waiting={len(self.waiters)} acquires={len(self.acquires)}>"
        )

    @property
    def empty(self) -> bool:
        """Whether nothing is left of this function."""
        return not (self.open or self.draining or self.waiters or self.acquires)

    def to_ask(self) -> int:
        """Return how many instances must be asked for now."""
        if self.retry is not None:
            return 0
        return instances_to_ask(
            waiting=len(self.waiters),
            concurrency=self.route.concurrency,
            under_way=len(self.acquires),
            held=len(self.open),
            max_instances=self.route.max_instances,
        )

    def queue(self) -> Waiter:
        """Let a call wait behind the others."""
        if not self.waiters:
            self._pace.begin(asyncio.get_running_loop().time())
        waiter = Waiter(self)
        self.waiters.append(waiter)
        return waiter

    def longest_queue(self, wait: float) -> int | None:
        """Return how many calls may wait so that the last one need not wait longer than `wait` seconds.

        None as long as nothing is known of how quickly they get their slots. In a burst they may wait as
        long as leaves them time for their answer. Instances that are being started are expected to be as
        quick as those that there are.
        """
        now = asyncio.get_running_loop().time()
        interval = self._pace.interval(now)
        if interval is None or not self.open:
            return None
        instances = len(self.open) + len(self.acquires)
        return longest_queue(
            interval * len(self.open) / instances,
            slots=instances * self.route.concurrency,
            wait=math.inf if self._pace.is_burst(now) else wait,
            timeout=self.route.timeout,
        )

    def surplus(self) -> list[asyncio.Task[None]]:
        """Take out and return the acquires that nobody needs any more, the latest first."""
        needed = math.ceil(len(self.waiters) / self.route.concurrency)
        surplus = self.acquires[needed:][::-1]
        del self.acquires[needed:]
        return surplus

    def take(self) -> HeldLease | None:
        """Take a slot if one is free. The last used lease comes first, so that the others can go idle."""
        if not self.free:
            return None
        held = self.free[-1]
        held.busy += 1
        if held.busy >= held.lease.concurrency:
            self.free.pop()
        return held

    def add(self, held: HeldLease) -> None:
        """Add a new lease, and hand its slots to those who wait."""
        self.open.add(held)
        while not held.full and (waiter := self._next_waiter()) is not None:
            held.busy += 1
            waiter.cold = held.lease.cold
            self._hand(waiter, held)
        if not held.full:
            self.free.append(held)

    def give_back(self, held: HeldLease) -> bool:
        """Give a slot back; who waits longest gets it. Return whether the lease is idle now."""
        if held.state is State.OPEN and (waiter := self._next_waiter()) is not None:
            self._hand(waiter, held)
            return False
        if held.state is State.OPEN and held.full:
            self.free.append(held)
        held.busy -= 1
        if held.busy == 0 and held.state is State.DRAINING:
            self.draining.discard(held)
        return held.busy == 0

    def drain(self, held: HeldLease) -> bool:
        """Send no new calls there. Return whether it is idle, and so to be released now."""
        if held.state is not State.OPEN:
            return False
        self._close(held, State.DRAINING)
        if held.busy:
            self.draining.add(held)
        return held.busy == 0

    def void(self, held: HeldLease) -> None:
        """Forget the lease: its instance is dead or about to be."""
        self.draining.discard(held)
        self._close(held, State.VOID)

    def _close(self, held: HeldLease, state: State) -> None:
        held.state = state
        held.disconnect()
        self.open.discard(held)
        if held in self.free:
            self.free.remove(held)

    def _hand(self, waiter: Waiter, held: HeldLease) -> None:
        self._pace.handed(asyncio.get_running_loop().time())
        waiter.handed.set_result(held)

    def _next_waiter(self) -> Waiter | None:
        while self.waiters:
            waiter = self.waiters.popleft()
            self.full = None
            if not waiter.handed.done():
                return waiter
        return None

    def vain(self) -> Problem:
        """Return the problem for a call whose time ran out in the queue."""
        if self.trouble is not None:
            return self.trouble
        route = self.route
        return Problem(
            "timeout",
            f"No instance was free for the call within its timeout of {route.timeout:g} s: {len(self.open)} "
            f"of at most {route.max_instances} instances were busy, {len(self.acquires)} were being started, "
            f"{len(self.waiters)} calls waited. Raise max_instances, concurrency or timeout in the manifest.",
        )

    def fail(self, problem: Problem) -> None:
        """Let every waiting call end with problem."""
        while (waiter := self._next_waiter()) is not None:
            # each gets an exception of its own, because raising one adds to its traceback
            waiter.handed.set_exception(
                Problem(problem.kind, problem.detail, retry_after=problem.retry_after, **problem.extra)
            )
