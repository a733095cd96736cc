"""What the documents of one app may take together.

The store knows what they take, and keeps it with each change, whoever makes it and also where they expire. It
is asked once for a portion of what is left, so that most writes need not wait for that. So an app may get
past its limit by what is written at the same moment, and no further.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from baas.plan import space_of
from pilotlight.problems import Problem
from pilotlight.store import Store

_PORTION: Final = 4 << 20  # bytes that may be written until the store is asked again
_VALID: Final = 10.0  # seconds until it is asked again in any case: other processes may write, too
_APPS: Final = 1000  # whose portions are remembered


@dataclass
class _Portion:
    left: int
    until: float


class Quota:
    """Watches over the limit of each app."""

    def __init__(self, store: Store, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`most` is in bytes, as `Store.size` counts them."""
        self._store = store
        self._most = most
        self._clock = clock
        self._portions: dict[str, _Portion] = {}

    async def claim(self, app: str, more: int) -> None:
        """Raise Problem `too-large` where an app may not have so many bytes more."""
        portion = self._portions.get(app)
        if portion is None or portion.left < more or portion.until <= self._clock():
            portion = await self._ask(app, more)
        portion.left -= more

    async def _ask(self, app: str, more: int) -> _Portion:
        size = await self._store.size(space_of(app, ""))
        left = self._most - size
        if more > left:
            self._portions.pop(app, None)
            raise Problem(
                "too-large",
                f"The documents of the app {app!r} take {size} bytes, and may take {self._most}. Delete "
                "some, or let them expire with ?ttl=; --max-documents of the platform raises the limit.",
            )
        if len(self._portions) >= _APPS:
            self._portions.clear()
        portion = self._portions[app] = _Portion(min(left, _PORTION), self._clock() + _VALID)
        return portion
