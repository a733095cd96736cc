"""All instances: starts them out of the pool, leases them to gateways, drains and ends them.

A cold start is `acquire` → `start` → coldstart.py. What to do when nobody asks is decided in scaler.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from function_service import coldstart, scaler
from function_service.contract import Ended, Lease, Recall, Revision, RouteTable
from function_service.engines.base import Engine
from function_service.instance import Instance, State
from function_service.layers.store import LayerStore
from function_service.logs import LogBook
from function_service.policy import History, choose
from function_service.pool import Pool
from function_service.registry import Registry
from pilotlight.problems import Problem
from pilotlight.rpc import Peer

_log = logging.getLogger(__name__)
ENDED_BY_ITSELF = "it ended by itself"
_TICK = 1.0  # seconds between two looks of the scaler
_DRAIN_MARGIN = 5.0  # seconds beyond a function's time-out after which a recalled instance is ended
_REMEMBERED = 200  # instances that have ended
_IDLE_WITHIN = 2.0  # seconds that `to_zero` waits for gateways to give instances back

Event = RouteTable | Recall | Ended


class Fleet:
    """The instances of every function, and who holds them."""

    def __init__(
        self, engine: Engine, pool: Pool, registry: Registry, layers: LayerStore, logs: LogBook
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._registry = registry
        self._layers = layers
        self._logs = logs
        self._instances: dict[str, Instance] = {}
        self._ended: dict[str, Instance] = {}  # the latest ones, so that a gateway can ask for the cause
        self._starting: dict[str, int] = {}  # function → how many are being started
        self._histories: dict[str, History] = {}
        self._listeners: dict[Peer, Callable[[Event], None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._scaler: asyncio.Task[None] | None = None
        self._closing = False
        self.started = 0  # cold starts since the service started
        self.failed = 0

    def __repr__(self) -> str:
        return f"Fleet({', '.join(f'{i.function}/{i.id}: {i.state}' for i in self._instances.values())})"

    async def start_scaler(self) -> None:
        """Begin to keep minimums, and to end what is idle for too long."""
        self._scaler = asyncio.create_task(self._scale_for_ever(), name="scaler")

    async def close(self) -> None:
        """End every instance."""
        self._closing = True
        if self._scaler is not None:
            self._scaler.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *([self._scaler] if self._scaler else []), return_exceptions=True)
        await asyncio.gather(*(self.end(i, "the platform stops") for i in list(self._instances.values())))

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run work in a task that this object owns; a fault in it is logged."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Problem):
            _log.error("%s failed", task.get_name(), exc_info=error)

    # Gateways

    def listen(self, peer: Peer, tell: Callable[[Event], None]) -> None:
        """Tell a gateway what happens to its leases. When it goes, its instances are ended.

        They may be in the middle of calls whose callers are gone with it.
        """
        self._listeners[peer] = tell
        peer.on_close.append(lambda: self._gateway_gone(peer))

    def _gateway_gone(self, peer: Peer) -> None:
        self._listeners.pop(peer, None)
        for instance in [i for i in self._instances.values() if i.holder is peer]:
            self.spawn(self.end(instance, "its gateway has gone"), "end")

    def broadcast(self, table: RouteTable) -> None:
        """Tell every gateway the new routes."""
        for tell in self._listeners.values():
            tell(table)

    def keep_alive(self, revision: Revision) -> float:
        """Return for how many seconds an instance stays that has nothing to do."""
        history = self._histories.get(revision.config.name, History())
        return choose(revision.config.keep_alive).keep(history)

    def record(self, function: str, instance: str, started: float, duration: float) -> None:
        """Take a call into account that has ended."""
        self._histories.setdefault(function, History()).record(started)
        if (found := self._instances.get(instance)) is not None:
            found.last_used = max(found.last_used, started + duration)

    async def acquire(self, function: str, peer: Peer, wait: float) -> Lease:
        """Lease an idle instance, or a new one. Raises Problem."""
        revision = self._registry.live(function)
        idle = [i for i in self.of(function) if i.can_serve and i.revision.id == revision.id]
        if idle:
            # The one used last is the one whose memory is still in the caches
            return self._lease(max(idle, key=lambda i: i.last_used), peer, cold=False)
        count = len(self.of(function)) + self._starting.get(function, 0)
        if count >= revision.config.max_instances:
            raise Problem(
                "no-capacity",
                f"All {revision.config.max_instances} instances of {function!r} that `max_instances` allows "
                "are in use.",
                retry_after=1,
            )
        # A start is finished also if nobody waits for it any more: what is ready then serves the next call
        starting = self.spawn(self.start(revision, wait), f"start {function}")
        instance: Instance = await asyncio.shield(starting)
        if not instance.can_serve:
            raise Problem(
                "no-capacity", f"The new instance of {function!r} was taken away again.", retry_after=1
            )
        return self._lease(instance, peer, cold=True)

    def _lease(self, instance: Instance, peer: Peer, *, cold: bool) -> Lease:
        instance.become(State.LEASED)
        instance.holder = peer
        instance.last_used = time.time()
        return Lease(
            id=instance.id,
            function=instance.function,
            revision=instance.revision.id,
            instance=instance.id,
            socket=str(instance.sandbox.socket),
            concurrency=instance.revision.config.concurrency,
            cold=cold,
            stages=instance.stages,
            idle=self.keep_alive(instance.revision),
        )

    async def release(self, lease: str) -> None:
        """Take an instance back: it stays if it is live and was used lately, else it ends."""
        instance = self._instances.get(lease)
        if instance is None or not instance.held:
            return
        if instance.state is State.DRAINING:
            await self.end(instance, instance.reason)
            return
        instance.holder = None
        instance.become(State.IDLE)
        self._scale()

    def held(self, lease: str) -> Instance | None:
        """Return the instance of a lease, also one that has ended lately."""
        return self._instances.get(lease) or self._ended.get(lease)

    # Instances

    def all(self) -> list[Instance]:
        """List all instances."""
        return list(self._instances.values())

    def of(self, function: str) -> list[Instance]:
        """List the instances of a function."""
        return [i for i in self._instances.values() if i.function == function]

    async def start(self, revision: Revision, wait: float) -> Instance:
        """Start an instance within `wait` seconds. Raises Problem."""
        name = revision.config.name
        self._starting[name] = self._starting.get(name, 0) + 1
        try:
            instance = await coldstart.run(
                revision, self._pool, self._engine, self._layers, self._registry.secrets, self._logs, wait
            )
        except Problem:
            self.failed += 1
            raise
        finally:
            self._starting[name] -= 1
        self.started += 1
        if self._closing:
            await self._engine.destroy(instance.sandbox)
            raise Problem("unavailable", "The platform is stopping.")
        self._instances[instance.id] = instance
        instance.sandbox.ended.add_done_callback(lambda _: self._died(instance))
        return instance

    def _died(self, instance: Instance) -> None:
        if instance.state is not State.ENDED:
            self.spawn(self.end(instance, instance.reason or ENDED_BY_ITSELF), "clean up")

    async def end(self, instance: Instance, reason: str) -> None:
        """Kill an instance and wait until everything in it is dead. May be called again."""
        if instance.state is not State.ENDED:
            instance.become(State.ENDED)
            instance.reason = reason
            _log.info("action=end function=%s instance=%s reason=%r", instance.function, instance.id, reason)
            if instance.holder is not None and (tell := self._listeners.get(instance.holder)):
                tell(Ended(instance.id))
        await self._engine.destroy(instance.sandbox)
        if self._instances.pop(instance.id, None) is not None:
            self._ended[instance.id] = instance
            while len(self._ended) > _REMEMBERED:
                del self._ended[next(iter(self._ended))]

    def drain(self, instances: Iterable[Instance], reason: str) -> None:
        """End idle instances now, and leased ones as soon as their calls have ended."""
        for instance in instances:
            if instance.state is State.IDLE:
                self.spawn(self.end(instance, reason), "end")
            elif instance.state is State.LEASED:
                instance.become(State.DRAINING)
                instance.reason = reason
                if instance.holder is not None and (tell := self._listeners.get(instance.holder)):
                    tell(Recall(instance.id))
                self.spawn(self._end_late(instance), "drain")

    async def _end_late(self, instance: Instance) -> None:
        async with asyncio.timeout(None) as limit:
            limit.reschedule(
                asyncio.get_running_loop().time() + instance.revision.config.timeout + _DRAIN_MARGIN
            )
            try:
                await asyncio.shield(instance.sandbox.ended)
            except TimeoutError:
                await self.end(instance, f"{instance.reason}; it did not end in time")

    async def to_zero(self, function: str) -> int:
        """Drain all instances of a function; return how many there were, once the idle ones are gone."""
        instances = self.of(function)
        self.drain(instances, "scaled to zero")
        ends = [asyncio.shield(i.sandbox.ended) for i in instances]
        if ends:
            await asyncio.wait(ends, timeout=_IDLE_WITHIN)
        return len(instances)

    # Scaling

    def routes_changed(self) -> None:
        """Drain what is live no more, and keep ready what the live functions need."""
        live = {r.config.name: r for r in self._registry.all_live()}
        stale = [i for i in self.all() if i.function not in live or live[i.function].id != i.revision.id]
        self.drain(stale, "another revision is live")
        self._pool.want({r.config.runtime for r in live.values()})
        self._scale()

    def _scale(self) -> None:
        goals = {
            r.config.name: scaler.Goal(r.id, r.config.min_instances, self.keep_alive(r))
            for r in self._registry.all_live()
        }
        actions = scaler.decide(goals, self.all(), time.time())
        for instance in actions.end:
            self.spawn(self.end(instance, "idle"), "end")
        for function, count in actions.start.items():
            revision = self._registry.live(function)
            for _ in range(count - self._starting.get(function, 0)):
                self.spawn(self.start(revision, revision.config.timeout), f"start {function}")

    async def _scale_for_ever(self) -> None:
        while True:
            self._scale()
            await asyncio.sleep(_TICK)
