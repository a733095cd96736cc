"""Which machine a function is at home on: all its instances are there, so that its limits hold for the whole.

A function service takes a function for itself before it starts the first instance: a claim in the store that
it renews while there are instances, and gives up when there are none any more. Once it has died, its claims
lapse, and whoever is asked next takes the function. What several services of a platform know of each other is
here, too. On a platform of one machine there is none of this.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from function_service.contract import Machines
from pilotlight.clock import steady
from pilotlight.machines import Machine, elsewhere, machine_of
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Conflict, Store, Write

_log = logging.getLogger(__name__)

LEASE: Final = (
    6.0  # seconds that a claim lasts; instances of a dead service get no new calls for longer either
)
_RENEW_EVERY: Final = 2.0  # seconds
_HOMES, _KNOWN, _BUILDER = "machines/homes", "machines/known", "machines/builder"
_ONLY: Final = "now"  # the key of the builder
_MOST: Final = 1000  # machines, and claims that are renewed in one step


class Homes:
    """The functions that are at home here, and the machines that there are."""

    def __init__(
        self, store: Store, here: Machine, *, clock: Callable[[], float] = steady, lease: float = LEASE
    ) -> None:
        """`clock` tells seconds that never step, `lease` is how long a claim lasts."""
        self._store = store
        self._here = here
        self._clock = clock
        self._lease = lease
        self._claims: dict[str, int] = {}  # function → version of its claim
        self._sure: dict[str, float] = {}  # function → until when nobody else can have it
        self._closed = False
        self._lost: set[str] = set()  # functions that others have, and of which instances still drain here
        self.present: Callable[[], set[str]] = set  # functions that have instances here
        self.on_lost: Callable[[str], None] = _nothing  # told of a function that another machine has now
        self.on_machines: Callable[[Machines], None] = _nothing  # told of the others when they change
        self.machines = Machines(())

    async def meet(self) -> None:
        """Make this machine known to the others, and them to us. Raises Problem."""
        if self._closed:
            return
        here = Write(space=_KNOWN, key=self._here.id, value=self._here.address.encode(), ttl=self._lease)
        await self._store.write([here])
        known = await self._store.scan(_KNOWN, limit=_MOST)
        others = tuple(entry.value.decode() for entry in known if entry.key != self._here.id)
        found = await self._store.get(_BUILDER, _ONLY)
        builder = self._here if found is None else msgspec.msgpack.decode(found.value, type=Machine)
        machines = Machines(others, "" if builder.id == self._here.id else builder.address)
        if machines != self.machines:
            self.machines = machines
            self.on_machines(machines)

    async def close(self) -> None:
        """Give everything up that is claimed. What can't be told lapses by itself."""
        self._closed = True
        try:
            await self._give_up(list(self._claims))
            await self._store.write([Write(space=_KNOWN, key=self._here.id, value=None)])
        except Problem as problem:
            _log.warning("action=leave-failed detail=%r", problem.detail)

    async def take(self, function: str) -> None:
        """Have a function at home here. Raises Problem: `machines.elsewhere`, or where the store is away."""
        while self._sure.get(function, 0.0) <= self._clock():
            asked = self._clock()
            try:
                await self._claim(function, ABSENT)
            except Conflict:
                found = await self._store.get(_HOMES, function)
                if found is None:
                    continue  # it has just lapsed
                owner = msgspec.msgpack.decode(found.value, type=Machine)
                if owner.id != self._here.id:
                    self._forget(function)
                    raise elsewhere(function, owner.address) from None
                try:  # a former service of this machine's had it, or an answer was lost
                    await self._claim(function, found.version)
                except Conflict:
                    continue
            self._sure[function] = asked + self._lease
            self._lost.discard(function)

    async def find(self, function: str) -> None:
        """Raise `machines.elsewhere` where a function is at home on another machine."""
        found = await self._store.get(_HOMES, function)
        if found is not None:
            owner = msgspec.msgpack.decode(found.value, type=Machine)
            if owner.id != self._here.id:
                raise elsewhere(function, owner.address)

    async def _claim(self, function: str, expect: int) -> None:
        (self._claims[function],) = await self._store.write([self._write(function, expect)])

    def _write(self, function: str, expect: int) -> Write:
        value = msgspec.msgpack.encode(self._here)
        return Write(space=_HOMES, key=function, value=value, expect=expect, ttl=self._lease)

    def _forget(self, function: str) -> None:
        self._claims.pop(function, None)
        self._sure.pop(function, None)

    async def _give_up(self, functions: list[str]) -> None:
        claims = [(function, self._claims[function]) for function in functions]
        for function in functions:
            self._forget(function)  # first, so that whoever starts an instance meanwhile claims anew
        for function, version in claims:
            try:
                await self._store.write([Write(space=_HOMES, key=function, value=None, expect=version)])
            except Conflict:
                _log.info("action=give-up-late function=%s", function)

    async def run(self) -> None:
        """Keep claims, and what is known of other machines, until cancelled."""
        while True:
            await asyncio.sleep(_RENEW_EVERY)
            try:
                await self.meet()
                await self.renew()
            except Problem as problem:
                _log.warning("action=renew-failed detail=%r", problem.detail)

    async def settle(self) -> None:
        """Have the repositories on this machine, for good. Raises Problem `conflict` where they are not."""
        write = Write(space=_BUILDER, key=_ONLY, value=msgspec.msgpack.encode(self._here), expect=ABSENT)
        try:
            await self._store.write([write])
        except Conflict:
            found = await self._store.get(_BUILDER, _ONLY)
            builder = None if found is None else msgspec.msgpack.decode(found.value, type=Machine)
            if builder is None or builder.id != self._here.id:
                where = "another machine" if builder is None else builder.address
                raise Problem("conflict", f"The repositories lie on {where}: pushes go there.") from None
            if builder.address != self._here.address:
                await self._store.write([msgspec.structs.replace(write, expect=None)])

    async def renew(self) -> None:
        """Renew the claims of functions that have instances, and give up the others. Raises Problem."""
        present = self.present()
        await self._give_up([function for function in self._claims if function not in present])
        wanted = list(self._claims.items())
        for start in range(0, len(wanted), _MOST):
            part = wanted[start : start + _MOST]
            asked = self._clock()
            while part:
                try:
                    versions = await self._store.write([self._write(*claim) for claim in part])
                except Conflict as conflict:
                    await self._renew_lapsed(part.pop(conflict.index)[0])
                    continue
                for (function, former), version in zip(part, versions, strict=True):
                    if self._claims.get(function) == former:
                        self._claims[function] = version
                        self._sure[function] = asked + self._lease
                break
        self._lost &= present
        for function in present - self._claims.keys() - self._lost:  # what has outlived a former service
            await self._renew_lapsed(function)

    async def _renew_lapsed(self, function: str) -> None:
        """Claim a function again of which there are instances, or let go of them."""
        self._forget(function)
        try:
            await self.take(function)
        except Problem as problem:
            if (machine := machine_of(problem)) is None:
                raise
            _log.warning("action=lost function=%s to=%s", function, machine)
            self._lost.add(function)
            self.on_lost(function)


def _nothing(_: object) -> None:
    """Do nothing."""
