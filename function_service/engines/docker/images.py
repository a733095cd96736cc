"""The images that functions name: looked for in dockerd, pulled where they are not there, known by id."""

import asyncio
import contextlib
import platform
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

import docker.errors

from function_service.contract import Output
from function_service.engines.base import FoundImage
from function_service.engines.docker.daemon import Daemon
from pilotlight import image_names
from pilotlight.problems import Problem

_PULL_WITHIN: Final = 900.0  # seconds
_AT_ONCE: Final = 2  # pulls, each of which keeps a thread that asks dockerd busy
_REMEMBERED: Final = 256
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}  # ours → Docker's
_TOLD: Final = ("Pull complete", "Already exists")  # of what is told of each layer


@dataclass(frozen=True)
class Inspected:
    """What the engine must know of an image."""

    id: str
    env: dict[str, str]
    volumes: tuple[str, ...]
    platform: str
    size: int  # bytes
    command: tuple[str, ...]  # ENTRYPOINT and CMD
    folder: str  # in which that runs
    triggers: tuple[str, ...]  # ONBUILD
    digests: tuple[str, ...]  # REPOSITORY@DIGEST, by which registries have it


class Images:
    """Those that functions name, and all that is known of any."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._known: dict[str, Inspected] = {}  # by id
        self._pulls = asyncio.Semaphore(_AT_ONCE)

    async def inspect(self, name: str) -> Inspected:
        """Return what there is to know of an image. Raises Problem, docker.errors.ImageNotFound."""
        if (known := self._known.get(name)) is not None:
            return known
        image = _read(await self._daemon.call(lambda client: client.inspect_image(name)))
        while len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[image.id] = image
        return image

    def forget(self, image: str) -> None:
        """Have dockerd asked for an image anew."""
        self._known.pop(image, None)

    def lost(self, image: str) -> Problem:
        """Return what there is to say of an image that is not in dockerd any more."""
        self.forget(image)
        detail = f"The image {image[:19]} that it runs in is not on this machine any more."
        return Problem("init-failed", f"{detail} Push the function again, which looks for the image anew.")

    async def find(
        self, name: str, shown: str = "", absent: Problem | None = None
    ) -> AsyncGenerator[Output | FoundImage, None]:
        """Look for an image, else raise `absent`, or pull it where that is None (see ImageSource).

        It is called `shown` where that is not empty.
        """
        shown = shown or name
        try:
            found = await self.inspect(name)
        except docker.errors.ImageNotFound:
            if absent is not None:
                raise absent from None
            yield Output(f"The image {shown} is not on this machine; pulling it")
            async with contextlib.aclosing(self._pull(name, shown)) as lines:
                async for line in lines:
                    yield Output(line)
            found = await self.inspect(name)
        own = f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}"
        if found.platform != own:
            raise Problem(
                "build-failed",
                f"The image {shown} is for {found.platform}, and this machine is {own}. "
                f"Name one for it, or fetch it: docker pull --platform {own} {shown}",
            )
        yield FoundImage(found.id, found.env, source=_source(name, found))

    async def pull(self, name: str) -> None:
        """Pull an image, with nobody to tell how that goes. Raises Problem `build-failed`."""
        async with contextlib.aclosing(self._pull(name, name)) as lines:
            async for _ in lines:
                pass

    async def _pull(self, name: str, shown: str) -> AsyncGenerator[str, None]:
        """Pull an image; yield what there is to tell of it. Raises Problem `build-failed`.

        Whoever leaves it goes on at once. Its thread may hang at the registry for a while: it keeps its place
        until then, since those that make containers are few.
        """
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop, left = asyncio.get_running_loop(), threading.Event()
        await self._pulls.acquire()

        def work(client: Any) -> None:
            try:
                for event in client.pull(name, stream=True, decode=True):
                    if left.is_set():
                        return
                    if _is_to_be_told(event):
                        loop.call_soon_threadsafe(events.put_nowait, event)
            except docker.errors.APIError as error:
                event = {"error": str(error.explanation or error)}
                loop.call_soon_threadsafe(events.put_nowait, event)
            finally:
                loop.call_soon_threadsafe(self._pulls.release)

        pulling = asyncio.create_task(self._daemon.call(work, _PULL_WITHIN), name=f"pull {name}")
        pulling.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                if "error" in event:
                    raise _not_pulled(shown, str(event["error"]))
                status, of = str(event.get("status", "")), event.get("id")
                yield status if of is None else f"{of}: {status}"
            await pulling
        finally:
            left.set()
            pulling.cancel()
            await asyncio.gather(pulling, return_exceptions=True)


def _source(name: str, found: Inspected) -> str:
    """Return the name with its digest of an image that came from a registry; else nothing."""
    try:
        repository = image_names.read(name).repository
        digests = [image_names.read(each) for each in found.digests]
    except ValueError:  # an id, or what Docker names otherwise than images are
        return ""
    return next((str(each) for each in digests if each.repository == repository), "")


def _is_to_be_told(event: dict[str, Any]) -> bool:
    """Tell what is an end from what tells of progress, many times a second."""
    return "error" in event or event.get("id") is None or event.get("status") in _TOLD


def _not_pulled(name: str, why: str) -> Problem:
    return Problem(
        "build-failed",
        f"The image {name} is not on this machine, and can't be pulled: {why.rstrip('.')}. "
        "See that the name is right. Where no registry is in reach, bring the image with `docker load` or "
        "`docker import`.",
    )


def _read(image: dict[str, Any]) -> Inspected:
    config = image.get("Config") or {}
    pairs = (each.partition("=") for each in config.get("Env") or ())
    return Inspected(
        image["Id"],
        {name: value for name, _, value in pairs},
        tuple(config.get("Volumes") or ()),
        f"{image['Os']}/{image['Architecture']}",
        image["Size"],
        (*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())),
        config.get("WorkingDir") or "/",
        tuple(config.get("OnBuild") or ()),
        tuple(image.get("RepoDigests") or ()),
    )
