"""What requests and answers of one app may take in memory at a time: never what others need."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

from pilotlight.problems import Problem

MOST: Final = 64 << 20
"""Bytes of one app: bodies that are coming or worked on, and what was read until its reader has taken it."""


class Room:
    """What all apps take."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def share(self) -> Iterator["Share"]:
        """Have a share for one request, which is given back at the end."""
        share = Share(self._taken)
        try:
            yield share
        finally:
            share.give_back()


class Share:
    """What one request takes."""

    def __init__(self, taken: Counter[str]) -> None:
        self._taken = taken
        self._own: Counter[str] = Counter()

    def take(self, app: str, more: int) -> None:
        """Take so many bytes more. Raises Problem `overloaded` where the app has as many as it may."""
        if self._taken[app] + more > MOST:
            raise Problem(
                "overloaded",
                f"What the app {app!r} sends and reads at a time is more than {MOST >> 20} MB. Do less at "
                "once, send bodies without delay, and take the answers.",
                retry_after=1,
            )
        self._taken[app] += more
        self._own[app] += more

    def give_back(self) -> None:
        """Take nothing any more."""
        while self._own:
            app, taken = self._own.popitem()
            self._taken[app] -= taken
            if not self._taken[app]:
                del self._taken[app]
