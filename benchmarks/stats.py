"""Medians, percentiles, and how sure we may be of them. Pure; sources of chance are passed in.

The confidence intervals are those of the percentile bootstrap. The median of a resample of n values is the
order statistic of n uniform numbers, looked up among the sorted values; the middle order statistics of n
uniform numbers are drawn directly (Beta distribution), so a resample costs nothing, however many values.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
_DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A value, and the interval in which it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    def overlaps(self, other: "Estimate") -> bool:
        """Tell whether the two may be the same."""
        return self.low <= other.high and other.low <= self.high


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share (0 to 1) of the values lie, between neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Sequence[float], chance: random.Random) -> Estimate:
    """Return the median with its interval."""
    return _estimate(statistics.median(values), _medians(values, chance))


def ratio(values: Sequence[float], baseline: Sequence[float], chance: random.Random) -> Estimate:
    """Return the ratio of two medians with its interval."""
    value = _divided(statistics.median(values), statistics.median(baseline))
    draws = map(_divided, _medians(values, chance), _medians(baseline, chance))
    return _estimate(value, list(draws))


def _divided(value: float, by: float) -> float:
    return value / by if by else float("inf")


def _estimate(value: float, draws: Sequence[float]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    return Estimate(value, min(value, percentile(draws, tail)), max(value, percentile(draws, 1 - tail)))


def _medians(values: Sequence[float], chance: random.Random) -> list[float]:
    """Draw the medians of resamples."""
    ordered = sorted(values)
    count = len(ordered)
    draws = []
    for _ in range(_DRAWS):
        if count % 2:
            middle = (count + 1) // 2
            draws.append(_at(ordered, chance.betavariate(middle, middle)))
            continue
        middle = count // 2
        lower = chance.betavariate(middle, middle + 1)
        # The least of the uniform numbers that lie above it
        upper = lower + (1 - lower) * (1 - chance.random() ** (1 / middle))
        draws.append((_at(ordered, lower) + _at(ordered, upper)) / 2)
    return draws


def _at(ordered: Sequence[float], quantile: float) -> float:
    return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]
