"""The function service as a process: wires its parts, and serves its doors on one socket."""

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import runtimes.declaration
from function_service import images, policies
from function_service.audit import AuditLog
from function_service.contract import PLATFORM, Builds, Control, Invocations, Revision, Scope, Vault
from function_service.engines import choosing
from function_service.engines.base import Engine
from function_service.fleet import Fleet
from function_service.garbage import Garbage
from function_service.homes import Homes
from function_service.image_exchange import ImageExchange
from function_service.keeper import Keeper
from function_service.layers.exchange import Exchange
from function_service.layers.store import LayerStore
from function_service.logs import LogBook
from function_service.metrics import Metrics
from function_service.pool import Pool
from function_service.registry import EDITION, Registry
from function_service.safe import Safe
from function_service.service import (
    BuildsDoor,
    ControlDoor,
    InvocationsDoor,
)
from function_service.shells import Shells
from function_service.snapshots import Snapshots
from function_service.spread import Spread
from function_service.vault import VaultDoor
from pilotlight import stores
from pilotlight.datafolder import DataFolder
from pilotlight.history import History
from pilotlight.machines import Link, Machine
from pilotlight.rpc import Server
from pilotlight.settings import Settings
from pilotlight.store import Store
from pilotlight.store_sqlite import SqliteStore
from runtimes.declaration import Interpreter

_log = logging.getLogger(__name__)

Maker = Callable[[LayerStore, tuple[Interpreter, ...]], Engine]
"""How an engine is made, once the service has what it needs."""

_FORKED, _BOOTED, _BARE = 4, 1, 2  # blank sandboxes that wait, by kind of runtime


async def serve(
    settings: Settings,
    data: DataFolder,
    *,
    stopping: asyncio.Event,
    ready: Callable[[], None],
    anchor: socket.socket | None = None,
) -> None:
    """Serve until `stopping` is set. Called while this process has one thread, as the embedded engine needs.

    `anchor` leads to `up`, and is for the instances that outlive this process: until `up` has ended too.
    """
    engine = choosing.choose(settings.engine)
    _log.info("action=engine engine=%s reason=%r", *engine)
    make = _docker(settings, data) if engine[0] == "docker" else _embedded(settings, data, anchor)
    async with running(settings, data, make):
        ready()
        await stopping.wait()


def _embedded(settings: Settings, data: DataFolder, anchor: socket.socket | None) -> Maker:
    """Move this process into the namespaces that the embedded engine needs, and return how that is made."""
    from function_service.engines.embedded import namespaces
    from function_service.engines.embedded.engine import EmbeddedEngine

    users = namespaces.enter()
    descriptor = anchor.fileno() if anchor is not None else None
    debug = settings.debug == "yes"
    return lambda layers, interpreters: EmbeddedEngine(
        data, layers, users, interpreters, anchor=descriptor, debug=debug
    )


def _docker(settings: Settings, data: DataFolder) -> Maker:
    """Return how the docker engine is made."""
    from function_service.engines.docker.engine import DockerEngine

    runtime, debug = settings.docker_runtime, settings.debug == "yes"
    dockerfiles, named = settings.dockerfiles == "yes", settings.images
    return lambda _, interpreters: DockerEngine(
        data, interpreters, runtime=runtime, debug=debug, dockerfiles=dockerfiles, images=named
    )


@contextlib.asynccontextmanager
async def running(settings: Settings, data: DataFolder, make: Maker) -> AsyncIterator[None]:
    """Run the service: started in the order of dependency, stopped in the reverse one."""
    known = runtimes.declaration.load_all()
    interpreters = tuple(i for runtime in known.values() for i in runtime.find())
    debug = settings.debug == "yes"
    link = Link.of(settings)
    async with contextlib.AsyncExitStack() as stack:
        if link is None:
            store = await stores.registry(settings.store, data)
        else:
            store = await stores.shared_registry(settings.store, _log_of)
        stack.push_async_callback(store.close)
        named = settings.secrets_key
        safe = Safe(Path(named) if named else data.secrets_key, ours=not named)
        registry = Registry(store, safe, settings.kept_revisions)
        stack.push_async_callback(registry.close)
        await registry.load()
        audit = AuditLog(data.audit, settings.max_audit)
        stack.push_async_callback(audit.close)
        await _first_key(registry, data, audit)
        opening = asyncio.create_task(_open_secrets(registry, store), name="open the secrets")
        stack.push_async_callback(_settle, opening)
        layers = LayerStore(data.layers)
        layers.start()
        logs = LogBook(data.logs, settings.max_logs)
        garbage = Garbage(registry, layers, logs, settings.max_unused_layers)
        homes, exchange, spread = None, None, None
        if link is not None:
            here = Machine(stores.identity(data), link.address)
            homes = Homes(store, here)
            spread = Spread(homes, link)
            exchange = Exchange(store, layers, here, link, settings.max_fetched_layers)
        engine = make(layers, interpreters)
        stack.push_async_callback(engine.close)
        survivors = await engine.start()
        sizes = {i.name: _size(known[i.runtime], i) for i in interpreters}
        pool = Pool(engine, interpreters, sizes)
        stack.push_async_callback(pool.close)
        await pool.start()
        # An instance that is debugged is the one that has imported the function
        memory = settings.snapshot_memory if engine.forks and not debug else 0
        snapshots = Snapshots(engine, pool, interpreters, memory)
        stack.push_async_callback(snapshots.close)
        budget, thrift = settings.keep_alive_memory / (1 << 20), settings.keep_alive_thrift
        keeper = Keeper(policies.choose(settings.keep_alive, budget, thrift))
        if homes is not None:
            stack.push_async_callback(homes.close)  # others may have the functions once the fleet is closed
        fleet = Fleet(engine, pool, snapshots, registry, layers, logs, keeper, homes, exchange)
        stack.push_async_callback(fleet.close)
        fleet.take_over(survivors)
        garbage.fleet, garbage.images = fleet, engine.images
        images.tell_refused(engine, registry.all_live())
        if registry.apps:  # else the registry may be lost, and what others need be taken for garbage
            await garbage.collect()
        metrics = Metrics()
        fleet.observe = metrics.started
        pool.observe = metrics.took
        invocations = InvocationsDoor(registry, fleet, metrics, logs, homes, spread)
        server = Server(
            data.socket("function-service"),
            {
                Invocations: invocations,
                Control: ControlDoor(
                    registry,
                    fleet,
                    logs,
                    layers,
                    engine,
                    pool,
                    snapshots,
                    interpreters,
                    invocations,
                    metrics,
                    audit,
                    store,
                    Shells(engine, registry, fleet, layers, interpreters, audit),
                    garbage,
                    homes,
                ),
                Vault: VaultDoor(registry, snapshots, invocations, audit),
                Builds: BuildsDoor(
                    registry,
                    fleet,
                    layers,
                    garbage,
                    engine,
                    interpreters,
                    data.builds,
                    invocations,
                    metrics,
                    audit,
                    debug=debug,
                    exchange=exchange,
                    homes=homes,
                ),
            },
        )
        stack.push_async_callback(server.close)
        await opening
        if link is not None and homes is not None and exchange is not None:
            if engine.images is not None:
                most = settings.max_fetched_images
                exchange.images = ImageExchange(engine.images.transport, layers, link, most)
                stack.push_async_callback(exchange.images.close)
            following = _share(
                registry, store, homes, exchange, engine, fleet, snapshots, invocations, garbage
            )
            await stack.enter_async_context(following)
            from function_service.layers.serving import serving

            await stack.enter_async_context(serving(exchange, data.socket("layers")))
        fleet.routes_changed()
        await fleet.start_scaler()
        await server.start()
        yield


def _log_of(space: str) -> str | None:
    """Keep a history of when the registry was changed, by which other machines notice; of nothing else."""
    return "registry" if space == EDITION else None


@contextlib.asynccontextmanager
async def _share(
    registry: Registry,
    store: History,
    homes: Homes,
    exchange: Exchange,
    engine: Engine,
    fleet: Fleet,
    snapshots: Snapshots,
    invocations: InvocationsDoor,
    garbage: Garbage,
) -> AsyncIterator[None]:
    """Follow what the other machines change, and have them know of this one."""

    def changed(secrets: set[str]) -> None:
        for name in secrets:
            snapshots.forget_secret(name)
        invocations.publish()
        fleet.spawn(garbage.collect(), "collect garbage")

    def in_use() -> set[str]:
        copied = (r for r in registry.all_live() if r.id in snapshots)
        digests = {digest for r in copied for digest in (r.code, r.dependencies) if digest is not None}
        return digests | fleet.layers_in_use()

    def startable() -> list[Revision]:
        return [each for each in registry.all_live() if not images.refusal(engine, each)]

    homes.present, homes.on_lost = fleet.functions, fleet.lost
    homes.on_machines = fleet.broadcast
    exchange.in_use, exchange.live = in_use, startable
    exchange.on_ready = fleet.ready
    if exchange.images is not None:
        exchange.images.machines = lambda: homes.machines.addresses
        exchange.images.needed = registry.images_in_use
    registry.on_change = changed
    await homes.meet()
    async with asyncio.TaskGroup() as group:  # a fault in any of them ends the service
        tasks = [
            group.create_task(homes.run(), name="keep claims"),
            group.create_task(exchange.run(), name="exchange layers"),
            group.create_task(registry.follow(store), name="follow the registry"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def _size(runtime: runtimes.declaration.Runtime, interpreter: runtimes.declaration.Interpreter) -> int:
    if runtime.forkable:
        return _FORKED
    return _BARE if runtime.boot(interpreter) is None else _BOOTED


async def _open_secrets(registry: Registry, store: Store) -> None:
    """Read the secrets, while other things start: the cipher's package takes a while to import."""
    if await registry.open_secrets():
        if isinstance(store, SqliteStore):  # the versions that left secrets open knew no other
            await store.rewrite()
        await registry.forgot_open_secrets()


async def _settle(task: asyncio.Task[None]) -> None:
    """Wait for its end, and take note of its error: what had gone wrong before it is what counts."""
    await asyncio.gather(task, return_exceptions=True)


async def _first_key(registry: Registry, data: DataFolder, audit: AuditLog) -> None:
    """Make the first key, and another one in its place where it is lost or was withdrawn.

    It lies where only its owner can read it. `up` and the commands of this machine rely on it.
    """
    path = data.admin_key
    digest = hashlib.sha256(path.read_bytes().strip()).hexdigest() if path.exists() else ""
    if any(key.sha256 == digest and key.may(Scope.ADMIN, None) for key in registry.keys.values()):
        return
    key, text = await registry.create_key("admin", (Scope.ADMIN,), None, None)
    await audit.write("key.create", PLATFORM, {"key": key.name, "scopes": key.scopes, "id": key.id})
    fresh = path.with_name("admin.key.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text + "\n")
    fresh.replace(path)
