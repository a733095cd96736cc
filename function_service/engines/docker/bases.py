"""Base images, which functions can name: made of Debian's packages, or of a registry's image.

One that is made anew takes the name over. The former one goes when no revision needs it any more.
"""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

from function_service.contract import Output
from function_service.engines.base import FoundImage
from function_service.engines.docker import litter
from function_service.engines.docker.daemon import Daemon
from function_service.engines.docker.images import Images

NAMES: Final = {runtime: f"pilotlight-{runtime}" for runtime in ("native", "python", "node")}
"""The base image of each runtime."""

_IMPORT_WITHIN: Final = 600.0  # seconds


def kind(label: str) -> str:
    """Return the kind (see litter.LABEL) of base images of the platform with that label."""
    return f"{label}-base"


async def bring(daemon: Daemon, tar: Path, runtime: str, label: str) -> int:
    """Make the base image of a runtime out of a root file system; return its size. Raises Problem."""

    def work(client: Any) -> int:
        changes = (litter.label(kind(label)), "ENV LANG=C.UTF-8")
        client.import_image_from_file(str(tar), repository=NAMES[runtime], tag="latest", changes=changes)
        return _size(client, runtime)

    return await daemon.call(work, _IMPORT_WITHIN)


async def adopt(daemon: Daemon, image: str, runtime: str) -> AsyncGenerator[Output | int, None]:
    """Make an image of a registry the base image of a runtime; yield how its pull goes, at last its size.

    Raises Problem.
    """
    found = None
    async with contextlib.aclosing(Images(daemon).find(image)) as items:
        async for item in items:
            if isinstance(item, FoundImage):
                found = item.id
            else:
                yield item

    def work(client: Any) -> int:
        client.tag(found, NAMES[runtime], "latest", force=True)
        return _size(client, runtime)

    yield await daemon.call(work)


def _size(client: Any, runtime: str) -> int:
    size: int = client.inspect_image(NAMES[runtime])["Size"]
    return size
