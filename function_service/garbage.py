"""What is collected: logs of functions that are no more, and code layers that no revision needs any more.

A layer that a push has asked for stays a while though no revision is made of it yet: the push may be under
way, or be made again after a failure and find its dependencies. All of these together have a limit, beyond
which those that were asked for longest ago go first; a push that is so slow is told to begin anew.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from function_service.contract import Layer
from function_service.layers.store import LayerStore
from function_service.logs import LogBook
from function_service.registry import Registry
from pilotlight import trees
from pilotlight.clock import steady

if TYPE_CHECKING:
    from function_service.fleet import Fleet

_SPARED: Final = 3600.0  # seconds; twice what a push may take


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
        """`most` is what layers that no revision needs may take together, in bytes."""
        self._registry = registry
        self._layers = layers
        self._logs = logs
        self._most = most
        self._clock = clock
        self._began = clock()
        self._asked: dict[str, float] = {}  # digest → when a push wanted it last
        self.fleet: Fleet | None = None  # whose instances have layers mounted

    def asked(self, digest: str) -> None:
        """Note that a push is going to need a layer."""
        self._asked[digest] = self._clock()

    def settled(self, digests: Iterable[str | None]) -> None:
        """Note that the push has come to its end: revisions are made of these layers now."""
        for digest in digests:
            if digest is not None:
                self._asked.pop(digest, None)

    async def collect(self) -> None:
        """Collect logs and layers."""
        self._logs.delete_others(revision.config.name for revision in self._registry.all_live())
        await self.collect_layers()

    async def collect_layers(self) -> None:
        """Remove the layers that nobody needs."""
        present = [layer for layer in await asyncio.to_thread(self._layers.all) if layer.kind == "code"]
        self._asked = {digest: when for digest, when in self._asked.items() if self._lately(when)}
        unneeded = [layer for layer in present if not self._needed(layer.digest)]
        unneeded.sort(key=self._wanted, reverse=True)
        taken = 0
        for layer in unneeded:
            taken += layer.size
            if self._lately(self._wanted(layer)) and taken <= self._most:
                continue
            if not self._needed(layer.digest):  # asked again: other turns may have come since
                # Withdrawn before anybody else has a turn, so that no revision is prepared with it meanwhile
                withdrawn = self._layers.withdraw(layer.digest)
                await asyncio.to_thread(trees.remove, withdrawn)

    def _needed(self, digest: str) -> bool:
        mounted = self.fleet.layers_in_use() if self.fleet is not None else set()
        return digest in self._registry.layers_in_use() | mounted

    def _wanted(self, layer: Layer) -> float:
        """Return when a push wanted a layer last, as far as that is known; 0 for never."""
        # A push may have outlived the service that it had asked
        former = layer.created if layer.created < self._began else 0.0
        return self._asked.get(layer.digest, former)

    def _lately(self, when: float) -> bool:
        return self._clock() - when < _SPARED
