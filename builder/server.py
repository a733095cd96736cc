"""The builder as a service: it wires its parts, serves, and ends in a fixed order.

Read next: `receive.py` (the git remote), `pushes.py` (what a push means), `pipeline.py` (its walk).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from builder import folders, hookserver, recovery
from builder.detect import Languages
from builder.hookserver import HookServer
from builder.limits import Limits
from builder.metrics import Metrics
from builder.package_index import PackageIndex
from builder.pipeline import Pipeline
from builder.pushes import Pushes
from builder.receive import GitRemote
from builder.repository import Repositories
from builder.steps import Workshop
from function_service.client import FunctionServiceClient
from function_service.contract import Builds
from pilotlight import sockets
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem
from pilotlight.settings import Settings, environment
from runtimes.declaration import load_all

_log = logging.getLogger(__name__)
_PAUSE = 0.5  # seconds between attempts to reach the function service

HOOKS: Final = "builder-hooks"
"""The name of the socket that git's hooks ask."""


PACKAGE_INDEX: Final = "package-index"
"""The folder, beside the sockets, with what builds need to reach an index."""


@dataclass(frozen=True)
class Host:
    """What this service must know of the machine, and may not see once it has dropped its privileges."""

    index: PackageIndex
    languages: Languages


def prepare() -> Host:
    """Read root's own configuration, if this is root, and find the interpreters in its home too."""
    runtimes = load_all()
    languages = Languages(runtimes, {name: runtime.find() for name, runtime in runtimes.items()})
    return Host(PackageIndex.find(environment()), languages)


async def serve(
    settings: Settings,
    data: DataFolder,
    *,
    host: Host,
    stopping: asyncio.Event,
    ready: Callable[[], None],
) -> None:
    """Serve git clients on the builder's socket until `stopping` is set. Raises Problem without git."""
    client = FunctionServiceClient.connect(data)
    try:
        index = host.index.store(data.run / PACKAGE_INDEX)
        machine = Machine(client.builds, host.languages)
        limits = Limits(repository=settings.max_repository)
        builder = Builder(data, client.builds, machine.languages, index, limits)
        await builder.serve(stopping, ready)
    finally:
        await client.close()
        folders.remove(data.run / PACKAGE_INDEX)


class Machine:
    """The languages of this machine."""

    def __init__(self, builds: Builds, found: Languages) -> None:
        self._builds = builds
        self._found = found

    async def languages(self) -> Languages:
        """Return what both this service and the engine have."""
        usable = set(await self._builds.runtimes())
        return Languages(
            self._found.runtimes,
            {
                name: tuple(each for each in interpreters if each.name in usable)
                for name, interpreters in self._found.interpreters.items()
            },
        )


class Builder:
    """All parts of the service."""

    def __init__(
        self,
        data: DataFolder,
        builds: Builds,
        languages: Callable[[], Awaitable[Languages]],
        index: PackageIndex,
        limits: Limits,
    ) -> None:
        self._data = data
        self._builds = builds
        self._limits = limits
        self._repositories = Repositories(data.repositories, limits)
        pipeline = Pipeline(data.builds, Workshop(builds, data.layers, index, limits), languages)
        metrics = Metrics()
        self._pushes = Pushes(self._repositories, pipeline, metrics)
        self._hooks = HookServer(data.socket(HOOKS), self._pushes.answer)
        self._remote = GitRemote(self._repositories, self._pushes, str(data.socket(HOOKS)), metrics)

    async def serve(self, stopping: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serve until `stopping` is set; ends within a few times the grace of the limits."""
        await asyncio.to_thread(recovery.clear, self._data, self._repositories)
        await self._repositories.prepare()
        hookserver.install(self._repositories.hooks)
        await self._hooks.start()
        runner = web.AppRunner(
            self._remote.application(),
            handler_cancellation=True,  # a client that goes away ends its processes
            auto_decompress=False,  # http-backend does it
            access_log=None,
            shutdown_timeout=self._limits.grace,
        )
        await runner.setup()
        async with asyncio.TaskGroup() as group:
            catching_up = group.create_task(
                recovery.catch_up(self._repositories, self._pushes, self._builds), name="catch up"
            )
            settling = group.create_task(self._settle(), name="settle")
            try:
                await web.SockSite(runner, sockets.listen(self._data.socket("builder"))).start()
                ready()
                await stopping.wait()
            finally:
                catching_up.cancel()
                settling.cancel()
                # pushes that are being built are refused with a word; their requests end by themselves then
                await self._hooks.stop(self._limits.grace)
                await runner.cleanup()
                await self._pushes.settle(self._limits.grace)
                self._data.socket("builder").unlink(missing_ok=True)

    async def _settle(self) -> None:
        """Have the repositories of the platform here, as soon as the function service answers."""
        while True:
            try:
                await self._builds.settle()
            except Problem as problem:
                if problem.kind != "unavailable":
                    _log.warning("action=idle detail=%r", problem.detail)
                    return
                await asyncio.sleep(_PAUSE)
            else:
                return
