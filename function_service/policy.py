"""Keep-alive policies: from a function's history to how long an idle instance of it stays.

Pure: no clock, no I/O. A policy gets the gaps between calls, and returns seconds. `choose` picks one
for a function; its `keep_alive` in the manifest overrides it.
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

_EDGES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 300.0, 450.0, 600.0)  # seconds


@dataclass
class History:
    """How long a function lay idle between calls: a histogram of gaps in seconds, older ones fading."""

    counts: list[float] = field(default_factory=lambda: [0.0] * (len(_EDGES) + 1))
    last_call: float | None = None  # seconds since the epoch

    def record(self, started: float) -> None:
        """Take a call into account that came at a moment, in seconds since the epoch."""
        if self.last_call is not None:
            gap = max(0.0, started - self.last_call)
            self.counts = [count * 0.99 for count in self.counts]
            self.counts[bisect_left(_EDGES, gap)] += 1.0
        self.last_call = max(started, self.last_call or started)

    @property
    def weight(self) -> float:
        """How many gaps are known, older ones counting less."""
        return sum(self.counts)


class Policy(Protocol):
    """A keep-alive policy."""

    def keep(self, history: History) -> float:
        """Return for how many seconds an instance stays that has nothing to do."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same time always, as most platforms do."""

    seconds: float

    def keep(self, history: History) -> float:  # noqa: ARG002
        """Return that time."""
        return self.seconds


@dataclass(frozen=True)
class Adaptive:
    """As long as it takes to catch 95 % of the gaps seen so far, within bounds.

    After the hybrid histogram of Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020), in its
    simplest form: one histogram, a percentile, and a default until enough is known. A function that is
    mostly idle for longer than the upper bound is not worth waiting for, and gets the lower one.
    """

    lowest: float = 10.0
    highest: float = 600.0
    unknown: float = 60.0
    enough: float = 5.0

    def keep(self, history: History) -> float:
        """Return the time for this history."""
        if history.weight < self.enough:
            return self.unknown
        sums = list(accumulate(history.counts))
        if sums[-2] < 0.5 * sums[-1]:
            return self.lowest
        place = bisect_left(sums, 0.95 * sums[-1])
        edge = _EDGES[place] if place < len(_EDGES) else self.highest
        return min(self.highest, max(self.lowest, 1.2 * edge))


def choose(keep_alive: float | None) -> Policy:
    """Return the policy for what a manifest says: a number of seconds, or None for "auto"."""
    return Adaptive() if keep_alive is None else Fixed(keep_alive)
