"""What is collected: logs of functions that are no more, code layers and images that no revision needs.

A layer or an image that a push has asked for stays a while though no revision is made of it yet: the push may
be under way, or be made again after a failure and find its dependencies. All of these together have a limit,
beyond which those that were asked for longest ago go first; a push that is so slow is told to begin anew.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from function_service.contract import Revision
from function_service.layers.store import LayerStore
from function_service.logs import LogBook
from function_service.registry import Registry
from pilotlight import trees
from pilotlight.clock import steady
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from function_service.engines.base import ImageSource
    from function_service.fleet import Fleet

_log = logging.getLogger(__name__)
_SPARED: Final = 3600.0  # seconds; twice what a push may take
_AGAIN, _AGAIN_AT_MOST = 4.0, 600.0  # seconds until an image that was in use is looked at again


class Garbage:
    """Knows what is needed, and removes the rest when told."""

    def __init__(
        self,
        registry: Registry,
        layers: LayerStore,
        logs: LogBook,
        most: int,
        *,
        clock: Callable[[], float] = steady,
    ) -> None:
        """`most` is what layers that no revision needs may take together, in bytes; and images likewise."""
        self._registry = registry
        self._layers = layers
        self._logs = logs
        self._most = most
        self._clock = clock
        self._began = clock()
        self._asked: dict[str, float] = {}  # digest, or id of an image → when a push wanted it last
        self.fleet: Fleet | None = None  # whose instances have layers mounted
        self.images: ImageSource | None = None
        self._again = _AGAIN
        self._waiting = False  # for its time to look again

    def asked(self, key: str) -> None:
        """Note that a push is going to need a layer or an image."""
        self._asked[key] = self._clock()

    def settled(self, keys: Iterable[str]) -> None:
        """Note that the push has come to its end: revisions are made of these layers and images now."""
        for key in keys:
            self._asked.pop(key, None)

    async def collect(self) -> None:
        """Collect logs, layers and images."""
        self._logs.delete_others(revision.config.name for revision in self._registry.all_live())
        await self.collect_layers()
        await self.collect_images()

    async def collect_layers(self) -> None:
        """Remove the layers that nobody needs."""
        present = [layer for layer in await asyncio.to_thread(self._layers.all) if layer.kind == "code"]
        self._asked = {digest: when for digest, when in self._asked.items() if self._lately(when)}
        unneeded = [layer for layer in present if not self._needed(layer.digest)]
        unneeded.sort(key=lambda layer: self._wanted(layer.digest, layer.created), reverse=True)
        taken = 0
        for layer in unneeded:
            taken += layer.size
            if self._lately(self._wanted(layer.digest, layer.created)) and taken <= self._most:
                continue
            if not self._needed(layer.digest):  # asked again: other turns may have come since
                # Withdrawn before anybody else has a turn, so that no revision is prepared with it meanwhile
                withdrawn = self._layers.withdraw(layer.digest)
                await asyncio.to_thread(trees.remove, withdrawn)

    async def collect_images(self) -> None:
        """Remove the images, built for functions, that nobody needs."""
        if self.images is None:
            return
        try:
            in_use = False
            made = await self.images.made()
            needed = self._registry.images_in_use()
            unneeded = [image for image in made if image.id not in needed]
            unneeded.sort(key=lambda image: self._wanted(image.id, image.created), reverse=True)
            taken = 0
            for image in unneeded:
                taken += image.size
                # However large it is, the latest one is what a push is just going to use
                fits = taken <= self._most or image is unneeded[0]
                if not (fits and self._lately(self._wanted(image.id, image.created))):
                    in_use |= not await self.images.remove(image.id)
        except Problem as problem:
            _log.warning("action=images-not-collected detail=%r", problem.detail)
            in_use = True
        self._again = min(_AGAIN_AT_MOST, 2 * self._again) if in_use else _AGAIN
        if in_use and self.fleet is not None and not self._waiting:
            self._waiting = True
            self.fleet.spawn(self._look_again(), "collect images again")

    async def _look_again(self) -> None:
        """Collect the images whose last containers were just going."""
        await asyncio.sleep(self._again / 2)
        self._waiting = False
        await self.collect_images()

    def _needed(self, digest: str) -> bool:
        mounted = self.fleet.layers_in_use() if self.fleet is not None else set()
        return digest in self._registry.layers_in_use() | mounted

    def _wanted(self, key: str, created: float) -> float:
        """Return when a push wanted a layer or an image last, as far as that is known; 0 for never."""
        # A push may have outlived the service that it had asked
        former = created if created < self._began else 0.0
        return self._asked.get(key, former)

    def _lately(self, when: float) -> bool:
        return self._clock() - when < _SPARED


def needed_by(revision: Revision) -> list[str]:
    """Return the layers and the image that a revision is made of."""
    image = revision.image.id if revision.image is not None else None
    return [key for key in (revision.code, revision.dependencies, image) if key is not None]
