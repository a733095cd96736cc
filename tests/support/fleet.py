"""A fleet on a fake engine, with everything that it needs, in memory; and what must be left of it: nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from function_service.contract import FunctionConfig, Revision
from function_service.engines.fake import FakeEngine
from function_service.fleet import Event, Fleet
from function_service.keeper import Keeper
from function_service.layers.store import LayerStore
from function_service.logs import LogBook
from function_service.policies import Fixed, Policy
from function_service.pool import Pool
from function_service.registry import Registry
from function_service.snapshots import Snapshots
from pilotlight.rpc import Peer
from pilotlight.store_memory import MemoryStore
from runtimes.declaration import Interpreter
from tests.support.safes import open_safe

NODE = Interpreter("node", "20", "/usr/bin/node")  # one that is never made a snapshot of


def revision(name: str = "f", number: int = 1, **config: Any) -> Revision:
    """Make a revision of a function."""
    settings = FunctionConfig(name=name, handler="h", **({"runtime": "node20", "timeout": 1.0} | config))
    return Revision(
        id=f"{name}-{number}",
        app=name,
        config=settings,
        code="code",
        commit=str(number),
        created=float(number),
    )


@dataclass
class World:
    """All parts."""

    engine: FakeEngine
    pool: Pool
    registry: Registry
    logs: LogBook
    layers: LayerStore
    fleet: Fleet

    async def deploy(self, name: str = "f", number: int = 1, **config: Any) -> None:
        """Make a revision live."""
        made = revision(name, number, **config)
        await self.registry.prepare(name, made.commit, [made])
        await self.registry.activate(name, made.commit)
        self.fleet.routes_changed()

    async def delete(self, name: str = "f") -> None:
        """Delete a function."""
        await self.registry.delete(name)
        self.fleet.routes_changed()

    def gateway(self) -> "Gateway":
        """Connect a gateway."""
        gateway = Gateway()
        self.fleet.listen(gateway.peer, gateway.told.append)
        return gateway


class Gateway:
    """One gateway: its connection, and what it was told."""

    def __init__(self) -> None:
        self.peer = Peer(lambda *_: None, lambda _: None)
        self.told: list[Event] = []

    def go(self) -> None:
        """Be gone."""
        self.peer.connection_lost(None)


@contextlib.asynccontextmanager
async def world(
    engine: FakeEngine, folder: Path, *, waiting: int = 0, policy: Policy | None = None
) -> AsyncIterator[World]:
    """Run a fleet; at the end no sandbox, no task, no descriptor and no instance of it is left.

    `policy` is one minute fixed unless it is named.
    """
    tasks, descriptors = asyncio.all_tasks(), _descriptors()
    registry = Registry(MemoryStore(), open_safe())
    pool = Pool(engine, (NODE,), {"node20": waiting})
    logs = LogBook(folder)
    snapshots = Snapshots(engine, pool, (NODE,))
    keeper = Keeper(policy or Fixed(60.0))
    (folder / "layers").mkdir(exist_ok=True)
    layers = LayerStore(folder / "layers")
    fleet = Fleet(engine, pool, snapshots, registry, layers, logs, keeper)
    await pool.start()
    try:
        yield World(engine, pool, registry, logs, layers, fleet)
    finally:
        async with asyncio.timeout(10):
            await fleet.close()
            await snapshots.close()
            await pool.close()
            await registry.close()
            await asyncio.gather(*engine.destroying.values())
    assert fleet.all() == []
    assert engine.sandboxes == {}
    assert {task.get_name() for task in asyncio.all_tasks() - tasks} == set()
    assert _descriptors() == descriptors


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: Any) -> None:
    """Let the loop turn until a condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)
