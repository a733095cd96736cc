"""The function service behind its doors: `Invocations`, `Control` and `Builds` of contract.py.

Each class here is one door. They share the registry, the fleet, the layers and the logs.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from function_service import debugging, images, imports, interpreters, stories
from function_service.audit import AuditLog
from function_service.contract import (
    PLATFORM,
    Actor,
    App,
    Exit,
    FunctionStatus,
    Guarantee,
    Image,
    ImageBuild,
    ImageStatus,
    Imported,
    InstanceStatus,
    Job,
    Layer,
    Lease,
    LogLine,
    Opened,
    Output,
    Revision,
    Route,
    RouteTable,
    Stages,
    Story,
    Terminal,
    Usage,
)
from function_service.engines.base import Engine
from function_service.fleet import ENDED_BY_ITSELF, Event, Fleet
from function_service.garbage import Garbage, needed_by
from function_service.homes import Homes
from function_service.instance import State, explain
from function_service.layers.exchange import Exchange
from function_service.layers.store import LayerStore
from function_service.logs import LogBook
from function_service.metrics import Metrics
from function_service.pool import Pool
from function_service.registry import Registry
from function_service.shells import Shells
from function_service.snapshots import Snapshots
from function_service.spread import Spread
from pilotlight import clock, rpc
from pilotlight.problems import Problem
from pilotlight.store import Store
from runtimes.declaration import Interpreter, load_all

_BREATH = 2.0  # seconds that a process which broke off a call has to end by itself
_LAST_WORDS = 0.5  # seconds to read what it printed
_MAX_TAIL = 10_000
_TIED = 20_000  # of the latest calls, among which the request of a line is looked for
_CACHES = (*Stages.__struct_fields__, "snapshot")


class InvocationsDoor:
    """Implements contract.Invocations."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        metrics: Metrics,
        logs: LogBook,
        homes: Homes | None = None,
        spread: Spread | None = None,
    ) -> None:
        self._homes = homes
        self._spread = spread
        self._registry = registry
        self._fleet = fleet
        self._metrics = metrics
        self._logs = logs

    def table(self) -> RouteTable:
        """Return the routes and keys as they are now."""
        routes = {}
        for revision in self._registry.all_live():
            config = revision.config
            routes[config.name] = Route(
                function=config.name,
                app=revision.app,
                revision=revision.id,
                access=config.access,
                timeout=config.timeout,
                concurrency=config.concurrency,
                max_instances=config.max_instances,
            )
        keys = {key.sha256: key for key in self._registry.keys.values()}
        return RouteTable(routes, keys, self._registry.edition)

    def publish(self) -> None:
        """Make what the registry says known to the gateways, in one step, and drain what is live no more."""
        self._fleet.broadcast(self.table())
        self._fleet.routes_changed()

    async def spread(self) -> None:
        """Wait for the other machines to hear of what was changed here, for three seconds at most."""
        if self._spread is not None:
            await self._spread.reached(self._registry.edition)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what happens (see contract)."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._fleet.listen(rpc.peer.get(), events.put_nowait)
        if self._homes is not None:
            yield self._homes.machines
        yield self.table()
        while True:
            yield await events.get()

    async def acquire(self, function: str, wait: float) -> Lease:
        """Lease an instance (see contract)."""
        return await self._fleet.acquire(function, rpc.peer.get(), wait)

    async def claim(self, leases: list[str]) -> None:
        """Give former leases to a gateway (see contract)."""
        self._fleet.claim(leases, rpc.peer.get())

    async def release(self, lease: str) -> None:
        """Take a lease back (see contract)."""
        await self._fleet.release(lease)

    async def stop(self, lease: str, reason: str) -> None:
        """Kill the instance of a lease (see contract)."""
        instance = self._fleet.held(lease)
        if instance is not None:
            await self._fleet.end(instance, reason)

    async def diagnose(self, lease: str) -> tuple[str, str, list[str]]:
        """Tell why an instance broke off a call (see contract)."""
        instance = self._fleet.held(lease)
        if instance is None:
            return (
                "crashed",
                "The instance has ended, and how is not known any more; its logs may say why.",
                [],
            )
        ended = instance.sandbox.ended
        await asyncio.wait([asyncio.shield(ended)], timeout=_BREATH)
        if not ended.done():
            await self._fleet.end(instance, "it broke off a call")
            lines = await instance.last_words(_LAST_WORDS)
            return "crashed", "The function broke off the connection without a whole answer.", lines
        reason = instance.reason
        stopped = instance.state is State.ENDED and reason not in ("", ENDED_BY_ITSELF)
        await self._fleet.end(instance, reason or ENDED_BY_ITSELF)
        lines = await instance.last_words(_LAST_WORDS)
        if stopped:
            return "crashed", f"The instance was stopped: {reason}.", lines
        kind, detail = explain(ended.result(), instance.revision.config.memory)
        return kind, detail, lines

    async def report(self, calls: list[Usage]) -> None:
        """Take calls into account (see contract)."""
        by_function: dict[str, list[Usage]] = {}
        now, date = clock.steady(), time.time()
        for call in calls:
            by_function.setdefault(call.function, []).append(call)
            if call.instance:
                ago = max(0.0, date - call.started - call.duration)  # the date may have been set back since
                self._fleet.record(call.function, call.instance, now - ago - call.duration, call.duration)
                self._metrics.call(call)
        for function, its in by_function.items():
            if self._registry.owner(function) is not None:  # else it was deleted meanwhile
                self._logs.calls.append(function, its)


class ControlDoor:
    """Implements contract.Control."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        logs: LogBook,
        layers: LayerStore,
        engine: Engine,
        pool: Pool,
        snapshots: Snapshots,
        interpreters: tuple[Interpreter, ...],
        invocations: InvocationsDoor,
        metrics: Metrics,
        audit: AuditLog,
        store: Store,
        shells: Shells,
        garbage: Garbage,
        homes: Homes | None = None,
    ) -> None:
        self._homes = homes
        self._audit = audit
        self._garbage = garbage
        self._store = store
        self._shells = shells
        self._registry = registry
        self._fleet = fleet
        self._logs = logs
        self._layers = layers
        self._engine = engine
        self._pool = pool
        self._snapshots = snapshots
        self._interpreters = interpreters
        self._invocations = invocations
        self._metrics = metrics

    async def apps(self) -> list[App]:
        """List the apps."""
        return [
            App(name=a.name, commit=a.commit, functions=sorted(a.live), updated=a.updated)
            for a in sorted(self._registry.apps.values(), key=lambda a: a.name)
            if a.live
        ]

    async def functions(self) -> list[FunctionStatus]:
        """List the functions."""
        instances = Counter(i.function for i in self._fleet.all())
        live = sorted(self._registry.all_live(), key=lambda r: r.config.name)
        return [self._status(r, instances[r.config.name]) for r in live]

    def _status(self, revision: Revision, instances: int) -> FunctionStatus:
        name = revision.config.name
        return FunctionStatus(
            name=name,
            app=revision.app,
            revision=revision.id,
            commit=revision.commit,
            updated=self._registry.apps[revision.app].updated,
            config=revision.config,
            instances=instances,
            calls=self._metrics.calls_of(name),
            snapshot=revision.id in self._snapshots,
            snapshot_refusal=self._snapshots.unfit(revision.id),
        )

    async def delete_function(self, function: str, by: Actor = PLATFORM) -> bool:
        """Delete a function (see contract)."""
        owner = self._registry.owner(function)
        details = {"function": function, "app": owner.name if owner is not None else None}
        app_gone = await self._audit.during("function.delete", by, self._delete_function(function), details)
        await self._invocations.spread()
        return app_gone

    async def _delete_function(self, function: str) -> bool:
        app_gone = await self._registry.delete(function)
        self._invocations.publish()
        self._shells.stop(function, "its function was deleted")
        await self._fleet.to_zero(function)
        await self._fleet.last_words(function)
        self._metrics.forget(function)
        await self._garbage.collect()
        return app_gone

    async def instances(self, function: str | None) -> list[InstanceStatus]:
        """List instances, and after them shells."""
        if function is not None:
            await self._know(function)
        chosen = self._fleet.all() if function is None else self._fleet.of(function)
        instances = [
            InstanceStatus(
                id=i.id,
                function=i.function,
                revision=i.revision.id,
                state=str(i.state),
                created=i.created,
                last_used=time.time() - (clock.steady() - i.last_used),
                memory=use.memory,
                cpu_seconds=use.cpu_seconds,
                processes=use.processes,
                stages=i.stages,
            )
            for i in chosen
            if i.state is not State.ENDED
            for use in [self._engine.use(i.sandbox)]
        ]
        return instances + self._shells.statuses(function)

    async def scale_to_zero(self, function: str, by: Actor = PLATFORM) -> int:
        """End all instances of a function."""
        work = self._scale_to_zero(function)
        return await self._audit.during("instances.end", by, work, {"function": function})

    async def _know(self, function: str) -> None:
        """Raise Problem where there is no such function, or where it is another machine that knows of it."""
        self._registry.live(function)
        if self._homes is not None:
            await self._homes.find(function)

    async def _scale_to_zero(self, function: str) -> int:
        await self._know(function)
        return await self._fleet.to_zero(function)

    async def revisions(self, function: str) -> list[Revision]:
        """List revisions, newest first."""
        return self._registry.kept(function)

    async def rollback(self, function: str, revision: str | None, by: Actor = PLATFORM) -> Revision:
        """Make a former revision live."""
        details: dict[str, object] = {"function": function, "revision": revision}
        work = self._rollback(function, revision, details)
        live = await self._audit.during("function.rollback", by, work, details)
        await self._invocations.spread()
        return live

    async def _rollback(self, function: str, revision: str | None, details: dict[str, object]) -> Revision:
        def check(former: Revision) -> None:
            if why := images.refusal(self._engine, former):
                raise Problem("conflict", why)

        wanted = await self._registry.rollback(function, revision, check)
        details["revision"] = wanted.id
        self._invocations.publish()
        return wanted

    async def logs(self, function: str, tail: int, follow: bool) -> AsyncGenerator[LogLine, None]:
        """Yield log lines. Those that are yet to come are printed where the function is at home."""
        if follow:
            await self._know(function)
        self._registry.live(function)
        calls = await asyncio.to_thread(self._logs.calls.tail, function, _TIED)
        known = stories.CallsByInstance(calls)
        lines = self._logs.read(function, min(max(tail, 0), _MAX_TAIL), follow=follow)
        async with contextlib.aclosing(lines):
            async for line in lines:
                yield known.named(line)

    async def invocations(self, function: str, tail: int, failed: bool) -> list[Usage]:
        """List the latest calls of a function."""
        self._registry.live(function)
        count = min(max(tail, 0), _MAX_TAIL)
        if not failed:
            return await asyncio.to_thread(self._logs.calls.tail, function, count)
        calls = await asyncio.to_thread(self._logs.calls.tail, function, _TIED)
        bad = [call for call in calls if call.status >= 500 or not call.instance]
        return bad[-count:] if count else []

    async def story(self, request: str) -> list[Story]:
        """Tell what is remembered of a request (see contract)."""
        found = await asyncio.to_thread(stories.find, request, self._logs)
        if not found:
            raise Problem(
                "not-found",
                f"No call of the request {request[:128]!r} is remembered. Its name is the X-Request-Id of "
                "an answer; calls are known a second after their end, and of each function the latest stay.",
            )
        return [Story(call=call, lines=lines, instance_end=self._ending(call)) for call, lines in found]

    def _ending(self, call: Usage) -> str:
        instance = self._fleet.held(call.instance)
        if instance is None or instance.state is not State.ENDED:
            return ""
        if instance.reason not in ("", ENDED_BY_ITSELF) or not instance.sandbox.ended.done():
            return instance.reason
        return explain(instance.sandbox.ended.result(), instance.revision.config.memory)[1].rstrip(".")

    async def layers(self) -> list[Layer]:
        """List the layers."""
        return await asyncio.to_thread(self._layers.all)

    async def images(self) -> list[ImageStatus]:
        """List the images."""
        kept = (revision for each in self._registry.revisions.values() for revision in each.values())
        return await images.listed(self._engine, list(kept))

    async def empty(self, stage: str, by: Actor = PLATFORM) -> None:
        """Empty a cache (see contract)."""
        await self._audit.during("cache.empty", by, self._empty(stage), {"stage": stage})

    async def _empty(self, stage: str) -> None:
        if stage not in _CACHES:
            raise Problem("not-found", f"There is no cache {stage[:80]!r}; there are {', '.join(_CACHES)}.")
        if not await self._fleet.all_to_zero():
            raise Problem("conflict", "Instances are answering calls. Try again when they are done.")
        await self._snapshots.drop_all()  # they hold what all of the stages make
        if stage == "code":
            await asyncio.to_thread(self._layers.forget_pages, "code")
        elif stage != "snapshot":
            await self._pool.empty()
            await self._engine.empty(stage)

    async def imports(self, function: str) -> list[Imported]:
        """Tell what a function's import is made of."""
        revision = self._registry.live(function)
        images.check(self._engine, revision)
        interpreter = interpreters.of(revision, self._interpreters)
        if interpreter is None:
            raise Problem("init-failed", f"This machine has no {revision.config.runtime}.")
        runtime = load_all()[interpreter.runtime]
        secrets = self._registry.secrets
        async with self._fleet.keeping_layers(revision):
            return await imports.trace(revision, runtime, interpreter, self._engine, self._layers, secrets)

    def shell(
        self, function: str, command: tuple[str, ...], terminal: Terminal | None, by: Actor = PLATFORM
    ) -> AsyncGenerator[Opened | Exit, None]:
        """Run a command in a fresh sandbox (see contract)."""
        return self._shells.run(function, command, terminal, by)

    async def metrics(self) -> str:
        """Return the metrics."""
        return self._metrics.text(self._fleet, await asyncio.to_thread(self._layers.all))

    async def guarantees(self) -> list[Guarantee]:
        """List the guarantees."""
        weakness = await self._store.weakness()
        remedy = (
            weakness
            and "Set appendonly yes, appendfsync always and maxmemory-policy noeviction in Redis, and where "
            "others take over min-replicas-to-write 1: docs/REDIS.md."
        )
        lasting = Guarantee(
            name="acknowledged writes are kept", kept=not weakness, reason=weakness, remedy=remedy
        )
        return [*self._engine.guarantees(), lasting]


class BuildsDoor:
    """Implements contract.Builds."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        layers: LayerStore,
        garbage: Garbage,
        engine: Engine,
        interpreters: tuple[Interpreter, ...],
        builds: Path,
        invocations: InvocationsDoor,
        metrics: Metrics,
        audit: AuditLog,
        *,
        debug: bool = False,
        exchange: Exchange | None = None,
        homes: Homes | None = None,
    ) -> None:
        self._homes = homes
        self._debug = debug
        self._exchange = exchange
        self._audit = audit
        self._registry = registry
        self._fleet = fleet
        self._layers = layers
        self._garbage = garbage
        self._engine = engine
        self._interpreters = interpreters
        self._builds = builds
        self._invocations = invocations
        self._metrics = metrics

    async def settle(self) -> None:
        """Have the repositories here (see contract)."""
        if self._homes is not None:
            await self._homes.settle()

    async def runtimes(self) -> list[str]:
        """List the runtimes of this machine."""
        return [i.name for i in self._interpreters]

    async def claim(self, app: str, functions: list[str]) -> None:
        """Check that names are free, and that pushes are for this machine."""
        await self.settle()
        self._registry.claim(app, functions)

    async def current(self, app: str) -> list[Revision]:
        """Return the live revisions of an app."""
        record = self._registry.apps.get(app)
        return [self._registry.revisions[name][id_] for name, id_ in record.live.items()] if record else []

    async def commit(self, app: str) -> str | None:
        """Return the live commit of an app."""
        record = self._registry.apps.get(app)
        return record.commit if record and record.commit else None

    def _below_builds(self, folder: str) -> Path:
        path = Path(folder).resolve()
        if self._builds.resolve() not in path.parents:
            raise Problem("invalid-request", f"{folder} is not a folder of a build.")
        return path

    async def run(self, job: Job) -> AsyncGenerator[Output | Exit, None]:
        """Run a job."""
        for mount in job.mounts:
            if mount.writable:
                self._below_builds(mount.source)
        if job.image is not None:
            images.source(self._engine)
        began = time.perf_counter()
        succeeded = False
        try:
            async with contextlib.aclosing(self._engine.run(job)) as items:
                async for item in items:
                    succeeded = isinstance(item, Exit) and item.code == 0 and not item.reason
                    yield item
        finally:
            self._metrics.built(time.perf_counter() - began, succeeded=succeeded)

    async def image(self, name: str, runtime: str) -> AsyncGenerator[Output | Image]:
        """Find an image (see contract)."""
        async with contextlib.aclosing(images.resolve(self._engine, name, runtime)) as items:
            async for item in items:
                if isinstance(item, Image):
                    self._garbage.asked(item.id)
                yield item

    async def build_image(self, order: ImageBuild) -> AsyncGenerator[Output | Image]:
        """Build the image of a function (see contract)."""
        path = self._below_builds(order.folder)
        began = time.perf_counter()
        built = None
        try:
            fixed = msgspec.structs.replace(order, folder=str(path))
            async with contextlib.aclosing(images.build(self._engine, fixed)) as items:
                async for item in items:
                    if isinstance(item, Image):
                        built = item
                        self._garbage.asked(item.id)
                    yield item
        finally:
            self._metrics.built(time.perf_counter() - began, succeeded=built is not None)
        await self._garbage.collect_images()

    async def has_layer(self, digest: str) -> bool:
        """Tell whether a layer is there."""
        found = self._layers.has(digest)
        self._metrics.looked_up(found=found)
        if found:
            self._garbage.asked(digest)
        return found

    async def seal_layer(self, digest: str, folder: str, description: str) -> None:
        """Move a built folder into the store."""
        path = self._below_builds(folder)
        self._garbage.asked(digest)
        await asyncio.to_thread(self._layers.seal, digest, path, "code", description)
        if self._exchange is not None:
            await self._exchange.offer(digest, description)
        await self._garbage.collect_layers()

    async def verify(self, revision: Revision) -> None:
        """Start a revision once, and end it."""
        within = debugging.START if self._debug else revision.config.timeout
        await self._fleet.rehearse(self._fitted(revision), within)

    def _fitted(self, revision: Revision) -> Revision:
        return debugging.fitted(revision, load_all()) if self._debug else revision

    async def prepare(self, app: str, commit: str, revisions: list[Revision]) -> None:
        """Store revisions that `activate` will make live."""
        for revision in revisions:
            for digest in (revision.code, revision.dependencies):
                if digest is not None and not self._layers.has(digest):
                    detail = f"A layer of {revision.config.name!r} was removed meanwhile. Push it again."
                    raise Problem("not-found", detail)
        await self._registry.prepare(app, commit, [self._fitted(each) for each in revisions])

    async def activate(self, app: str, commit: str, by: Actor = PLATFORM) -> None:
        """Make prepared revisions live."""
        details: dict[str, object] = {"app": app, "commit": commit}
        await self._audit.during("app.deploy", by, self._activate(app, commit, details), details)
        await self._invocations.spread()

    async def _activate(self, app: str, commit: str, details: dict[str, object]) -> None:
        changed = await self._registry.activate(app, commit)
        details["revisions"] = self._registry.apps[app].live
        if changed:
            self._invocations.publish()
            revisions = await self.current(app)
            self._garbage.settled(key for each in revisions for key in needed_by(each))
            await self._garbage.collect()
