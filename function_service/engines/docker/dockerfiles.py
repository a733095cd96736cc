"""Images by the Dockerfiles of functions: built by dockerd, one at a time, within limits, none left over.

The steps of such a build run as root of containers that dockerd makes as it likes, not as ours are made; that
is why an operator has to permit it (docs/SECURITY.md). What stays in our hands: what the Dockerfile may say
(dockerfile.py), no network, memory, processor, time, and what it writes.
"""

import asyncio
import contextlib
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import docker.errors

from function_service.contract import ImageBuild, Output
from function_service.engines.base import FoundImage, KnownImage, MadeImage
from function_service.engines.docker import bases, context, daemon, litter
from function_service.engines.docker.daemon import Daemon
from function_service.engines.docker.dockerfile import Recipe
from function_service.engines.docker.images import Images
from function_service.engines.docker.moving import Moving
from function_service.engines.docker.permitted import BUILT, FETCHED, Permitted
from pilotlight.problems import Problem

if TYPE_CHECKING:
    import aiohttp

_log = logging.getLogger(__name__)
T = TypeVar("T")

_LOOK: Final = 2.0  # seconds between two looks at what a build has written
_SPARE: Final = 256 << 20  # bytes that a build must leave free on Docker's disk
_LONGEST: Final = 8 << 10  # characters of a line
_LONGEST_EVENT: Final = 8 << 20  # bytes of what dockerd says at once
_MOST_CONTAINERS: Final = 1000  # that are remembered; a step may print what it likes
_CLEAR_WITHIN: Final = 20.0  # seconds for dockerd to end what was broken off
_RUNNING: Final = re.compile(r" ---> Running in ([0-9a-f]{12})")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")  # dockerd prints in red what a step has said as an error


@dataclass
class _Watched:
    """One build under way."""

    order: ImageBuild
    base: int  # bytes of the largest image that it begins with
    began: float = field(default_factory=time.time)
    containers: set[str] = field(default_factory=set)  # short ids that dockerd has named, or a step invented


class Dockerfiles:
    """The images that the functions of one data folder have built, which carries `label`."""

    def __init__(
        self, daemon: Daemon, images: Images, label: str, permitted: Permitted, *, builds: bool
    ) -> None:
        """`builds` says whether the operator permits builds."""
        self._daemon = daemon
        self._images = images
        self.transport = Moving(daemon, images, label, permitted)
        self._label = label
        self._permitted = permitted
        self._builds = builds
        self._turn = asyncio.Lock()
        self._root = Path("/")  # of Docker's files
        self._kinds = {"host": "platform", label: "dockerfile", bases.kind(label): "base"}

    async def start(self, root: str) -> None:
        """Remove what builds have left that a killed service had begun. Raises Problem."""
        self._root = Path(root)
        await self._sweep()

    def refusal(self, name: str) -> str:
        """Return why functions may not name an image (see ImageSource)."""
        return self._permitted.refusal(name)

    def find(self, name: str) -> AsyncGenerator[Output | FoundImage, None]:
        """Look for an image that a function names (see ImageSource)."""
        full = self._permitted.full(name)
        return self._images.find(full, name, self._permitted.absent(name))

    async def made(self) -> list[MadeImage]:
        """List the images that go when no revision needs them (see ImageSource)."""
        fetched = await self.transport.fetched()
        nameless = {"label": f"{litter.LABEL}={bases.kind(self._label)}", "dangling": True}

        def work(client: Any) -> list[dict[str, Any]]:
            built = client.images(name=BUILT, filters={"label": f"{litter.LABEL}={self._label}"})
            return [*built, *client.images(filters=nameless)]

        found = await self._daemon.call(work)
        # dockerd cuts fractions off, and what is older than this service is spared at first (garbage.py)
        made = [MadeImage(each["Id"], each["Size"], float(each["Created"]) + 1) for each in found]
        # No push waits for what came from elsewhere, whenever it was made there
        return made + [MadeImage(image, size, 0.0) for image, size in fetched.items()]

    async def known(self, ids: Collection[str]) -> list[KnownImage]:
        """List images (see ImageSource)."""
        # All: what has lost its name, and others are built on, dockerd takes for a step of a build
        found = await self._daemon.call(lambda client: client.images(all=True))
        images = []
        for each in found:
            names = litter.names(each)
            if not names and each["Id"] not in ids and each["ParentId"]:
                continue  # it is such a step
            kind = "named" if each["Id"] in ids else ""
            if any(name.startswith(f"{FETCHED}:{self._label}-") for name in names):
                kind, names = "fetched", []
            if any(name.removesuffix(":latest") in bases.NAMES.values() for name in names):
                kind = "base"
            kind = self._kinds.get((each["Labels"] or {}).get(litter.LABEL, ""), kind)
            if kind:
                created = float(each["Created"])
                images.append(KnownImage(each["Id"], names[0] if names else "", kind, each["Size"], created))
        return images

    async def remove(self, image: str) -> bool:
        """Remove one of them by its id, unless a container is made of it; tell whether it is gone.

        Equal images of several digests have as many names.
        """

        def work(client: Any) -> bool:
            for each in client.images(all=True):
                if each["Id"] == image:
                    names = litter.names(each)
                    made = f"{BUILT}:", f"{FETCHED}:{self._label}-"
                    ours = [name for name in names if name.startswith(made)]
                    return all(litter.remove(client, name) for name in (ours if names else [image]))
            return True

        return await self._daemon.call(work)

    async def build(self, order: ImageBuild) -> AsyncGenerator[Output | FoundImage, None]:
        """Build one, unless it is there (see ImageSource)."""
        if not self._builds:
            raise Problem(
                "invalid-request",
                "this platform builds by no Dockerfile, whose steps run as root of Docker's containers. "
                "Its operator can permit that: --dockerfiles yes, see docs/SECURITY.md.",
            )
        recipe = await asyncio.to_thread(context.recipe, Path(order.folder))
        for image in recipe.images:
            self._permitted.full(image)
        name = f"{BUILT}:{self._label}-{order.digest}"
        with contextlib.suppress(docker.errors.ImageNotFound):
            yield await self._found(name, recipe)
            return
        if self._turn.locked():
            yield Output("Another image is being built; waiting for it")
        async with self._turn:
            try:
                async with contextlib.aclosing(self._build(order, recipe, name)) as items:
                    async for item in items:
                        yield item
            finally:
                await self._sweep()

    async def _found(self, name: str, recipe: Recipe) -> FoundImage:
        image = await self._images.inspect(name)
        if not image.command:
            raise Problem(
                "build-failed",
                'neither CMD nor ENTRYPOINT says what to run. Add CMD ["PROGRAM"] that serves HTTP on $PORT.',
            )
        return FoundImage(image.id, image.env, image.command, image.folder, recipe.images)

    async def _build(
        self, order: ImageBuild, recipe: Recipe, name: str
    ) -> AsyncGenerator[Output | FoundImage, None]:
        folder = Path(order.folder)
        ids: dict[str, str] = {}
        base = 0
        for image in recipe.images:
            async with contextlib.aclosing(self.find(image)) as items:
                async for item in items:
                    if isinstance(item, FoundImage):
                        ids[image] = item.id
                    else:
                        yield item
            begun = await self._images.inspect(ids[image])
            if begun.triggers:
                detail = f"{image} has ONBUILD triggers, which are not run here. Begin with another image."
                raise Problem("build-failed", detail)
            base = max(base, begun.size)
        watched = _Watched(order, base)
        with tempfile.TemporaryFile() as packed:
            await asyncio.to_thread(context.pack, folder, recipe.text(ids, self._label), packed)
            try:
                async with contextlib.aclosing(self._ask(watched, name, packed)) as lines:
                    async for line in lines:
                        yield Output(line)
            finally:
                await self._clear(watched)
        try:
            found = await self._found(name, recipe)
            if (await self._images.inspect(found.id)).size - base > order.growth:
                raise _too_large(order)
        except Problem:
            await self._daemon.call(lambda client: litter.remove(client, name))
            raise
        except docker.errors.ImageNotFound as error:
            raise Problem("build-failed", "dockerd has ended the build without an image.") from error
        yield found

    async def _ask(self, watched: _Watched, name: str, packed: IO[bytes]) -> AsyncGenerator[str, None]:
        """Have dockerd build; yield what is printed. Leaving it, dockerd ends the build.

        Raises Problem `build-failed`, `no-capacity`.
        """
        order = watched.order
        query = {
            "version": "1",  # the builder that is part of dockerd
            "t": name,
            "dockerfile": context.WRITTEN,
            "networkmode": "none",
            "rm": "1",
            "forcerm": "1",
            "memory": str(order.memory),
            "memswap": str(order.memory),  # with the swap: none
            "cpuperiod": str(daemon.PERIOD),
            "cpuquota": str(int(order.cpu * daemon.PERIOD)),
        }
        headers = {"Content-Type": "application/x-tar"}
        watching = asyncio.create_task(self._watch(watched), name=f"watch {name}")
        try:
            async with self._daemon.session() as session:
                asking = session.post("build", params=query, data=packed, headers=headers)
                response = await _unless(watching, asking)
                with contextlib.closing(response):
                    if response.status != 200:
                        raise _failed(str((await response.json())["message"]))
                    async for line in _lines(_events(response, watching), watched):
                        yield line
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, watched: _Watched) -> str:
        """Return why the build must not go on, at its end of time, or when it has written too much."""
        within = watched.order.timeout
        why = ""
        try:
            async with asyncio.timeout(within):
                while not why:
                    await asyncio.sleep(_LOOK)
                    why = await self._too_much(watched)
        except TimeoutError:
            why = f"it was not done after {within:g} s"
        return why

    async def _too_much(self, watched: _Watched) -> str:
        """Return why it must not go on, or nothing."""
        filters = {"label": f"{litter.LABEL}={self._label}"}
        try:
            running = await self._daemon.call(lambda client: client.containers(size=True, filters=filters))
            images = await self._daemon.call(lambda client: client.images(all=True, filters=filters))
        except Problem as problem:
            _log.warning("action=build-not-measured detail=%r", problem.detail)
            return ""
        written = max(
            (each.get("SizeRw") or 0 for each in running if daemon.LABEL not in each["Labels"]), default=0
        )
        fresh = max((each["Size"] for each in images if each["Created"] >= watched.began - 1), default=0)
        if max(0, fresh - watched.base) + written > watched.order.growth:
            return str(_too_large(watched.order))
        if self._root.is_dir() and shutil.disk_usage(self._root).free < _SPARE:
            return f"Docker's disk has less than {_SPARE >> 20} MB left"
        return ""

    async def _clear(self, watched: _Watched) -> None:
        """See that no step runs any more. dockerd ends them itself when nobody waits, but in its own time."""
        filters = {"label": f"{litter.LABEL}={self._label}"}
        try:
            async with asyncio.timeout(_CLEAR_WITHIN):
                found = await self._daemon.call(lambda client: client.containers(all=True, filters=filters))
                for each in found:
                    if each["Id"][:12] in watched.containers and daemon.LABEL not in each["Labels"]:
                        await asyncio.shield(self._daemon.bury(each["Id"]))
        except (Problem, TimeoutError) as error:
            _log.warning("action=build-not-cleared error=%r", error)

    async def _sweep(self) -> None:
        """Remove what is left of builds that failed, and stages that nothing was copied into."""
        try:
            await self._daemon.call(lambda client: litter.remove_nameless(client, self._label))
        except Problem as problem:
            _log.warning("action=not-swept detail=%r: the next build does it", problem.detail)


async def _unless(watching: asyncio.Task[str], work: Awaitable[T]) -> T:
    """Return what comes of some work, unless the build has to be broken off before. Raises Problem."""
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            raise _failed(watching.result())
        return await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _events(
    response: "aiohttp.ClientResponse", watching: asyncio.Task[str]
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield what dockerd says, one object at a time. Raises Problem."""
    rest = b""
    while piece := await _unless(watching, response.content.readany()):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if line.strip():
                yield json.loads(line)
        if len(rest) > _LONGEST_EVENT:
            raise _failed("dockerd says more at once than can be taken")


async def _lines(
    events: AsyncGenerator[dict[str, Any], None], watched: _Watched
) -> AsyncGenerator[str, None]:
    """Yield what is printed, line by line, and take note of what it tells. Raises Problem."""
    begun = ""
    async for event in events:
        if "error" in event:
            if begun:
                yield _COLOUR.sub("", begun)
            raise _failed(str(event["error"]))
        *whole, begun = (begun + str(event.get("stream", ""))).split("\n")
        begun = begun[:_LONGEST]
        for line in (_COLOUR.sub("", each) for each in whole):
            if len(watched.containers) < _MOST_CONTAINERS:
                watched.containers |= set(_RUNNING.findall(line))
            if line.strip():
                yield line[:_LONGEST].rstrip("\r")
    if begun.strip():
        yield _COLOUR.sub("", begun)


def _failed(why: str) -> Problem:
    return Problem("build-failed", f"{why.strip().rstrip('.')}. What it printed stands above.")


def _too_large(order: ImageBuild) -> Problem:
    return Problem(
        "build-failed", f"it adds more than {order.growth >> 20} MB to the image that it begins with."
    )
