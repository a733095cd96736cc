"""The hybrid histogram policy of Azure Functions.

Source: Shahrad et al., "Serverless in the Wild: Characterizing and Optimizing the Serverless Workload at a
Large Cloud Provider", USENIX ATC 2020, section 4.2. With the parameters of the paper: bins of one minute up
to four hours, the 5th percentile as head (rounded down) and the 99th as tail (rounded up), a margin of 10 %,
and a histogram counts as representative when the coefficient of variation of its bins is at least 2.

- More idle times out of bounds than in: a forecast, with a margin of 15 %. The paper fits an ARIMA model; we
  take the mean of the last few idle times, which is ARIMA(0, 0, 0) on a short window, and needs no library.
- Histogram not representative: nothing is unloaded for the whole range, four hours.
- Else: unload, load again before the head, keep until the tail. A head of 0 unloads nothing.
"""

import math
from collections import deque
from dataclasses import dataclass

from function_service.policies.base import Decision

_BIN = 60.0  # seconds


@dataclass(frozen=True)
class HybridHistogram:
    """The policy, with the parameters of the paper."""

    bins: int = 240
    head: float = 0.05
    tail: float = 0.99
    margin: float = 0.10
    representative: float = 2.0  # coefficient of variation of the bins
    out_of_bounds: float = 0.5  # share of idle times beyond which the forecast is used
    forecast_margin: float = 0.15
    forecast_window: int = 8  # idle times

    @property
    def demotes(self) -> bool:
        """The source knows no layers."""
        return False

    def track(self, function: str, size: float) -> "HistogramHistory":  # noqa: ARG002
        """Begin a history."""
        return HistogramHistory(self)

    def forget(self, function: str) -> None:
        """Do nothing: histories are independent of each other."""

    def evict(self, now: float) -> list[str]:  # noqa: ARG002
        """Name none."""
        return []


class HistogramHistory:
    """The idle times of one function, in bins of one minute."""

    def __init__(self, policy: HybridHistogram) -> None:
        self._policy = policy
        self._bins = [0] * policy.bins
        self._inside = 0
        self._outside = 0
        self._squares = 0  # sum of the squares of the bins, for their variation
        self._recent: deque[float] = deque(maxlen=policy.forecast_window)  # seconds
        self._ended: float | None = None
        self._decision: Decision | None = None

    def record(self, started: float, ended: float) -> None:
        """Count the idle time before this call; one that came during another had none."""
        if self._ended is not None:
            self._count(max(0.0, started - self._ended))
        self._ended = ended if self._ended is None else max(self._ended, ended)

    def _count(self, idle: float) -> None:
        place = int(idle // _BIN)
        if place < self._policy.bins:
            self._squares += 2 * self._bins[place] + 1
            self._bins[place] += 1
            self._inside += 1
        else:
            self._outside += 1
        self._recent.append(idle)
        self._decision = None

    @property
    def variation(self) -> float:
        """The coefficient of variation of the bins; 0 while they are empty."""
        if not self._inside:
            return 0.0
        mean = self._inside / self._policy.bins
        return math.sqrt(max(0.0, self._squares / self._policy.bins - mean * mean)) / mean

    def decide(self, now: float) -> Decision:  # noqa: ARG002
        """Return the windows for this history."""
        if self._decision is None:
            self._decision = self._windows()
        return self._decision

    def _windows(self) -> Decision:
        policy = self._policy
        if self._outside > policy.out_of_bounds * (self._inside + self._outside):
            expected = sum(self._recent) / len(self._recent)
            margin = policy.forecast_margin
            return Decision.window(expected * (1 - margin), expected * (1 + margin))
        if self.variation < policy.representative:
            return Decision.window(0.0, policy.bins * _BIN)
        begin = self._percentile(policy.head) * _BIN * (1 - policy.margin)
        end = (self._percentile(policy.tail) + 1) * _BIN * (1 + policy.margin)
        return Decision.window(begin, end)

    def _percentile(self, share: float) -> int:
        """Return the bin in which that share of the idle times within bounds is reached."""
        wanted = share * self._inside
        total = 0
        for place, count in enumerate(self._bins):
            total += count
            if count and total >= wanted:
                return place
        return self._policy.bins - 1
