"""All instances: starts them out of the pool, leases them to gateways, drains and ends them.

A cold start is `acquire` → `start` → coldstart.py. What to do when nobody asks is decided in scaler.py.
"""

import asyncio
import contextlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

import msgspec

from function_service import coldstart, images, interpreters, scaler
from function_service.contract import Ended, Lease, Machines, Recall, Revision, RouteTable, Stages, Wanted
from function_service.engines.base import Engine, Survivor
from function_service.homes import Homes
from function_service.instance import Instance, State
from function_service.keeper import Keeper
from function_service.layers.exchange import Exchange
from function_service.layers.store import LayerStore
from function_service.logs import LogBook
from function_service.pool import Pool
from function_service.registry import Registry
from function_service.snapshots import Snapshots
from function_service.turns import Ticket, Turns
from pilotlight import clock
from pilotlight.machines import machine_of
from pilotlight.problems import Problem
from pilotlight.rpc import Peer

_log = logging.getLogger(__name__)
ENDED_BY_ITSELF = "it ended by itself"
_SHORTEST_LEASE, _LONGEST_LEASE = 1.0, 3600.0  # seconds without a call; then the policy has its say here
_TICK = 1.0  # seconds between two looks of the scaler
_DEMOTE_EVERY = 15  # ticks
_DRAIN_MARGIN = 5.0  # seconds beyond a function's time-out after which a recalled instance is ended
_REMEMBERED = 200  # instances that have ended
_IDLE_WITHIN = 2.0  # seconds that `to_zero` waits for gateways to give instances back
_LAST_WORDS = 0.5  # seconds to read what an instance has printed once it is dead
_OWN_WITHIN = 2.0  # seconds that a gateway waits for instances which it holds itself, as it can't use them
_CLAIM_WITHIN = 5.0  # seconds after a restart in which gateways say on which instances they have calls
_RETRY = 10.0  # seconds until an instance is started again that nobody waits for, and that failed

_RESTARTED = "the function service was restarted"

Event = RouteTable | Recall | Ended | Wanted | Machines


def _unobserved(_runtime: str, _stages: Stages) -> None:
    """Do nothing with what a start has taken."""


class _Note(msgspec.Struct, frozen=True):
    """What the next service must know of an instance, should this one be killed."""

    function: str
    revision: str
    created: float  # seconds since the epoch


class Fleet:
    """The instances of every function, and who holds them."""

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        snapshots: Snapshots,
        registry: Registry,
        layers: LayerStore,
        logs: LogBook,
        keeper: Keeper,
        homes: Homes | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        """`homes` and `exchange` are for a platform of several machines."""
        self._engine = engine
        self._pool = pool
        self._snapshots = snapshots
        self._registry = registry
        self._layers = layers
        self._logs = logs
        self._keeper = keeper
        self._homes = homes
        self._exchange = exchange
        self._instances: dict[str, Instance] = {}
        self._of: dict[str, dict[str, Instance]] = {}  # the same by function
        self._ended: dict[str, Instance] = {}  # the latest ones, so that a gateway can ask for the cause
        self._starting: Counter[str] = Counter()  # revision → how many of its instances are being started
        self._functions_starting: Counter[str] = Counter()
        self._starting_for: Counter[tuple[str, Peer | None]] = Counter()  # the same by the gateway that asked
        self._retry_at: dict[str, float] = {}  # revision → when to try again, on the loop's clock
        self._listeners: dict[Peer, Callable[[Event], None]] = {}
        self._mounted: list[Revision] = []  # by what is no instance
        self._turns = Turns()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._scaler: asyncio.Task[None] | None = None
        self._closing = False
        self.observe: Callable[[str, Stages], None] = _unobserved  # told of each cold start
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
            await asyncio.gather(self._scaler, return_exceptions=True)
        endings = {i.ending for i in self.all()}
        for task in self._tasks - endings:
            task.cancel()
        await asyncio.gather(*(self.end(i, "the platform stops") for i in self.all()), return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(i.last_words(_LAST_WORDS) for i in self._ended.values()))

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

    # What a former service has left

    def take_over(self, survivors: list[Survivor]) -> None:
        """Watch over instances of a service that was killed: they end when the calls on them have ended."""
        for survivor in survivors:
            sandbox = survivor.sandbox
            note = msgspec.json.decode(survivor.note, type=_Note)
            revision = self._registry.revisions.get(note.function, {}).get(note.revision)
            if revision is None:
                _log.warning("action=end instance=%s: its revision is gone", sandbox.id)
                self.spawn(self._engine.destroy(sandbox), f"end {sandbox.id}")
                os.close(sandbox.output)
                continue
            instance = Instance(sandbox, revision, note.created, sandbox.stages, clock.steady())
            instance.reason = _RESTARTED
            for state in (State.IDLE, State.LEASED, State.DRAINING):
                instance.become(state)
            collecting = coldstart.collect(instance, self._logs)
            instance.collector = asyncio.create_task(collecting, name=f"logs {sandbox.id}")
            self._add(instance)
            self.spawn(self._end_late(instance), "drain")
            self.spawn(self._end_unclaimed(instance), "wait for a claim")

    async def _end_unclaimed(self, instance: Instance) -> None:
        await asyncio.wait([instance.sandbox.ended], timeout=_CLAIM_WITHIN)
        if instance.holder is None:
            await self.end(instance, instance.reason)

    def claim(self, leases: list[str], peer: Peer) -> None:
        """Give leases of a former service to the gateway that had them."""
        for instance in (self._instances.get(lease) for lease in leases):
            if instance is not None and instance.state is State.DRAINING and instance.holder is None:
                instance.holder = peer

    # Gateways

    def listen(self, peer: Peer, tell: Callable[[Event], None]) -> None:
        """Tell a gateway what happens to its leases. When it goes, its instances are ended.

        They may be in the middle of calls whose callers are gone with it.
        """
        self._listeners[peer] = tell
        peer.on_close.append(lambda: self._gateway_gone(peer))

    def _gateway_gone(self, peer: Peer) -> None:
        self._listeners.pop(peer, None)
        if self._closing:
            return  # `close` ends them all
        for instance in [i for i in self._instances.values() if i.holder is peer]:
            self.spawn(self.end(instance, "its gateway has gone"), "end")

    def broadcast(self, event: RouteTable | Machines) -> None:
        """Tell every gateway the new routes, or the other machines."""
        for tell in self._listeners.values():
            tell(event)

    def record(self, function: str, instance: str, started: float, duration: float) -> None:
        """Take a call into account that has ended; `started` is a moment of the steady clock."""
        self._keeper.record(function, started, started + duration)
        if (found := self._instances.get(instance)) is not None:
            found.last_used = max(found.last_used, started + duration)

    async def acquire(self, function: str, peer: Peer, wait: float) -> Lease:
        """Lease an idle instance, or a new one, within about `wait` seconds. Raises Problem."""
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            revision, instance = await self._choose(function, peer, deadline)
            if instance is not None:
                return self._lease(instance, cold=False)
            starting = self._begin(revision, deadline - asyncio.get_running_loop().time(), peer)
            try:
                instance = await asyncio.shield(starting)
            except asyncio.CancelledError:
                # It is started all the same: what is ready then serves the next call
                starting.add_done_callback(self._unclaimed)
                raise
            if instance.holder is peer and instance.state is not State.DRAINING:
                return self._lease(instance, cold=True)  # also if it has died already: the caller asks why
            # Another revision has become live meanwhile
            await self.release(instance.id)
            if asyncio.get_running_loop().time() >= deadline:
                raise Problem("no-capacity", f"{function!r} was changed meanwhile; try again.", retry_after=1)

    async def _choose(self, function: str, peer: Peer, deadline: float) -> tuple[Revision, Instance | None]:
        """Give an idle instance to a gateway, or return None where a new one may be started.

        Where other gateways hold all that there may be, wait for one of theirs. Where it is the gateway
        itself, which would not ask if it could use them, they are dying or on their way back: wait for these
        a while, and for those that drain as for others. Raises Problem.
        """
        ticket: Ticket | None = None
        until = min(deadline, asyncio.get_running_loop().time() + _OWN_WITHIN)
        try:
            while True:
                revision = self._registry.live(function)
                same = [i for i in self.of(function) if i.revision.id == revision.id]
                count = sum(i.state is not State.ENDED for i in same) + self._starting[revision.id]
                if self._turns.is_due(function, ticket):
                    if idle := [i for i in same if i.can_serve]:
                        # The one used last is the one whose memory is still in the caches
                        instance = max(idle, key=lambda i: i.last_used)
                        self._hold(instance, peer)
                        return revision, instance
                    if count < revision.config.max_instances:
                        return revision, None
                own = sum(i.state is State.LEASED and i.holder is peer for i in same)
                own += self._starting_for[revision.id, peer]
                asked, ticket = ticket, None
                ticket = await self._turns.wait(
                    function, asked, until if own >= count else deadline, partial(self._want, function, peer)
                )
        except TimeoutError:
            raise _all_in_use(revision) from None
        finally:
            if ticket is not None:
                self._turns.leave(function, ticket)

    def _want(self, function: str, peer: Peer) -> None:
        """Ask the gateway that holds most instances of a function, besides `peer`, to give one back."""
        held = Counter(
            i.holder
            for i in self.of(function)
            if i.state is State.LEASED and i.holder is not None and i.holder is not peer
        )
        for holder, _ in held.most_common(1):
            if (tell := self._listeners.get(holder)) is not None:
                tell(Wanted(function))

    def _unclaimed(self, starting: asyncio.Task[Instance]) -> None:
        """Put an instance among the idle ones whose caller has gone while it was started."""
        if not starting.cancelled() and not starting.exception() and not self._closing:
            self.spawn(self.release(starting.result().id), "release")

    def _hold(self, instance: Instance, peer: Peer) -> None:
        instance.become(State.LEASED)
        instance.holder = peer
        instance.last_used = clock.steady()
        note = _Note(instance.function, instance.revision.id, instance.created)
        self._engine.keep(instance.sandbox, msgspec.json.encode(note).decode())

    def _lease(self, instance: Instance, *, cold: bool) -> Lease:
        return Lease(
            id=instance.id,
            function=instance.function,
            revision=instance.revision.id,
            instance=instance.id,
            socket=str(instance.sandbox.socket),
            concurrency=instance.revision.config.concurrency,
            cold=cold,
            stages=instance.stages,
            idle=self._lease_time(instance.revision),
        )

    def _lease_time(self, revision: Revision) -> float:
        """Return for how many seconds without a call a gateway keeps an instance.

        It is as long as the policy holds the code, so that a warm call needs nobody but the gateway. A policy
        may hold it for no time at all; calls that follow at once still find it, unless the manifest says 0.
        """
        hold = self._keeper.hold(revision, clock.steady())
        shortest = _SHORTEST_LEASE if revision.config.keep_alive is None else 0.0
        return min(_LONGEST_LEASE, max(shortest, hold))

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
        self._engine.keep(instance.sandbox, None)
        self._scale_one(instance.function)
        self._turns.free(instance.function)

    def held(self, lease: str) -> Instance | None:
        """Return the instance of a lease, also one that has ended lately."""
        return self._instances.get(lease) or self._ended.get(lease)

    # Instances

    def all(self) -> list[Instance]:
        """List all instances."""
        return list(self._instances.values())

    @contextlib.asynccontextmanager
    async def keeping_layers(self, revision: Revision) -> AsyncIterator[None]:
        """Have the layers of a revision here, and count them as in use, for what is no instance.

        Raises Problem where another machine has them and can't give them, or this one can't have the image.
        """
        images.check(self._engine, revision)
        self._mounted.append(revision)
        try:
            async with self._fetching(revision):
                yield
        finally:
            self._mounted.remove(revision)

    def _fetching(self, revision: Revision) -> contextlib.AbstractAsyncContextManager[None]:
        """Return the context within which the layers of a revision are here."""
        return contextlib.nullcontext() if self._exchange is None else self._exchange.holding(revision)

    def layers_in_use(self) -> set[str]:
        """Return the digests of what instances have mounted, also those that only drain."""
        revisions = [*(i.revision for i in self._instances.values()), *self._mounted]
        return {digest for r in revisions for digest in (r.code, r.dependencies) if digest is not None}

    def functions(self) -> set[str]:
        """Return the functions of which there are instances, or are about to be."""
        return {*self._of, *self._functions_starting}

    def lost(self, function: str) -> None:
        """Let go of a function that another machine has now."""
        self.drain(self.of(function), "another machine has the function now")

    def of(self, function: str) -> list[Instance]:
        """List the instances of a function."""
        return list(self._of.get(function, {}).values())

    def _begin(self, revision: Revision, wait: float, holder: Peer | None) -> asyncio.Task[Instance]:
        """Begin a start that takes at most about `wait` seconds; it counts from this moment on."""
        self._starting[revision.id] += 1
        self._functions_starting[revision.config.name] += 1
        self._starting_for[revision.id, holder] += 1
        starting = self.spawn(self._start(revision, wait, holder), f"start {revision.config.name}")
        starting.add_done_callback(lambda _: self._turns.free(revision.config.name))
        return starting

    async def _start(self, revision: Revision, wait: float, holder: Peer | None) -> Instance:
        """Start an instance; `holder` has it from the first moment, if its revision is still live then."""
        try:
            if self._homes is not None:
                images.check(self._engine, revision)  # else it would be at home where it can't be started
                await self._homes.take(revision.config.name)
            instance = await self._cold_start(revision, wait, self._logs)
        finally:
            self._starting -= Counter([revision.id])
            self._functions_starting -= Counter([revision.config.name])
            self._starting_for -= Counter([(revision.id, holder)])
        self._add(instance)
        owner = self._registry.owner(instance.function)
        if holder is not None and owner is not None and owner.live[instance.function] == revision.id:
            self._hold(instance, holder)
        return instance

    def _add(self, instance: Instance) -> None:
        self._instances[instance.id] = instance
        self._of.setdefault(instance.function, {})[instance.id] = instance
        instance.sandbox.ended.add_done_callback(lambda _: self._died(instance))

    async def _cold_start(self, revision: Revision, wait: float, logs: LogBook | None) -> Instance:
        try:
            images.check(self._engine, revision)
            async with self._fetching(revision):
                self._know_image(revision)
                instance = await coldstart.run(
                    revision,
                    self._pool,
                    self._engine,
                    self._layers,
                    self._registry.secrets,
                    logs,
                    wait,
                    self._snapshots,
                    called=logs is not None,
                )
        except Problem:
            self.failed += 1
            raise
        self.started += 1
        self.observe(revision.config.runtime, instance.stages)
        return instance

    def ready(self, revision: Revision) -> None:
        """Keep ready what a live revision runs in, now that it is here."""
        if revision.image is not None:
            self._know_image(revision)
            self._demote()

    def _know_image(self, revision: Revision) -> None:
        """Have the pool know what a revision runs in, if it may."""
        if revision.image is not None and not images.refusal(self._engine, revision):
            self._pool.know(interpreters.of_image(revision.image))

    async def rehearse(self, revision: Revision, wait: float) -> None:
        """Start an instance that nobody is given, and end it. Raises Problem.

        It counts towards no limit: calls of the live revision must not be refused because of a push.
        """
        instance = await self._cold_start(revision, wait, None)
        instance.become(State.ENDED)
        await self._engine.destroy(instance.sandbox)
        await instance.last_words(_LAST_WORDS)

    def _died(self, instance: Instance) -> None:
        if instance.state is not State.ENDED:
            self.spawn(self.end(instance, ENDED_BY_ITSELF), "clean up")

    async def end(self, instance: Instance, reason: str) -> None:
        """Kill an instance and wait until everything in it is dead. May be called again.

        It is ended also when the caller stops waiting.
        """
        if instance.ending is None:
            instance.become(State.ENDED)
            instance.reason = reason
            _log.info("action=end function=%s instance=%s reason=%r", instance.function, instance.id, reason)
            if instance.holder is not None and (tell := self._listeners.get(instance.holder)):
                tell(Ended(instance.id))
            instance.ending = self.spawn(self._bury(instance), f"end {instance.id}")
        await asyncio.shield(instance.ending)

    async def _bury(self, instance: Instance) -> None:
        await self._engine.destroy(instance.sandbox)
        del self._instances[instance.id]
        of_its_function = self._of[instance.function]
        del of_its_function[instance.id]
        if not of_its_function:
            del self._of[instance.function]
        self._ended[instance.id] = instance
        self._turns.free(instance.function)
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
        limit = instance.revision.config.timeout + _DRAIN_MARGIN
        ended, _ = await asyncio.wait([instance.sandbox.ended], timeout=limit)
        if not ended:
            await self.end(instance, f"{instance.reason}; it did not end in time")

    async def to_zero(self, function: str) -> int:
        """Drain all instances of a function; return how many there were, once the idle ones are gone."""
        instances = self.of(function)
        self.drain(instances, "scaled to zero")
        if instances:
            await asyncio.wait([i.sandbox.ended for i in instances], timeout=_IDLE_WITHIN)
        return len(instances)

    async def all_to_zero(self) -> bool:
        """Drain every instance; return whether all are gone, which those that answer a call are not."""
        await asyncio.gather(*(self.to_zero(name) for name in {i.function for i in self.all()}))
        await asyncio.gather(*(i.ending for i in self.all() if i.ending), return_exceptions=True)
        return not self._instances

    async def last_words(self, function: str) -> None:
        """Wait until what the dead instances of a function printed has been read."""
        dead = (i for i in (*self.all(), *self._ended.values()) if i.function == function)
        await asyncio.gather(*(i.last_words(_LAST_WORDS) for i in dead if i.state is State.ENDED))

    # Scaling

    def routes_changed(self) -> None:
        """Drain what is live no more, and keep ready what the live functions need."""
        live = {r.config.name: r for r in self._registry.all_live()}
        stale = [i for i in self.all() if i.function not in live or live[i.function].id != i.revision.id]
        self.drain(stale, "another revision is live")
        self._keeper.live(list(live.values()), clock.steady())
        if self._exchange is not None:
            self._exchange.look()  # which tells of an image when it is here
        for revision in live.values() if self._exchange is None else ():
            self._know_image(revision)
        self._retry_at.clear()
        self._demote()
        self._snapshots.keep({r.id for r in live.values()})
        self._scale()

    def _demote(self) -> None:
        """Keep blank sandboxes of those runtimes whose functions are still worth one.

        An instance that has run a function's code never becomes blank again: it ends, and what is held of the
        function from then on is a sandbox of the pool, which all functions of that runtime share.
        """
        self._pool.want(self._keeper.runtimes(clock.steady()))

    def _scale(self) -> None:
        now = clock.steady()
        self._carry_out(scaler.decide(self._keeper.goals(set(self._of), now), self.all(), now))

    def _scale_one(self, function: str) -> None:
        """Look at one function alone: all of them, with a thousand instances, take milliseconds."""
        now = clock.steady()
        self._carry_out(scaler.decide(self._keeper.goal(function, now), self.of(function), now))

    def _carry_out(self, actions: scaler.Actions) -> None:
        for instance in actions.end:
            self.spawn(self.end(instance, "idle"), "end")
        self.drain(actions.recall, "the keep-alive policy needs its memory")
        for function, count in actions.start.items():
            revision = self._registry.live(function)
            if asyncio.get_running_loop().time() >= self._retry_at.get(revision.id, 0):
                for _ in range(count - self._starting[revision.id]):
                    starting = self._begin(revision, revision.config.timeout, None)
                    starting.add_done_callback(partial(self._started_ahead, revision))

    def _started_ahead(self, revision: Revision, starting: asyncio.Task[Instance]) -> None:
        if not starting.cancelled() and (error := starting.exception()) is not None:
            self._retry_at[revision.id] = asyncio.get_running_loop().time() + _RETRY
            if isinstance(error, Problem) and machine_of(error) is not None:
                return  # that is where they are kept ready
            _log.warning(
                "action=start function=%s: an instance for `min_instances`, or to be ready early, failed: %s",
                revision.config.name,
                error,
            )

    async def _scale_for_ever(self) -> None:
        for tick in itertools.count():
            self._scale()
            if tick % _DEMOTE_EVERY == 0:
                self._demote()
            self._snapshots.tidy(partial(self._keeper.is_worth_a_snapshot, now=clock.steady()))
            await asyncio.sleep(_TICK)


def _all_in_use(revision: Revision) -> Problem:
    return Problem(
        "no-capacity",
        f"All {revision.config.max_instances} instances of {revision.config.name!r} that `max_instances` "
        "allows are in use.",
        retry_after=1,
    )
