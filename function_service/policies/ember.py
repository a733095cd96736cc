"""Ember, our own policy: every second of idleness must earn its memory.

What is held while a function is idle is decided for each moment of the idle time on its own. Holding it from
moment a to b costs its memory for as long as the function is still idle then; it gains a warm start when the
next call falls between a and b. It is held where

    (chance that the next call comes in [a, b)) * (worth of a warm start)
    ---------------------------------------------------------------------  >=  price
             memory * (time that is expected to pass idle in [a, b))

For a known distribution this is the optimum: the ski-rental problem with known odds (Karlin, Manasse, McGeoch
& Owicki, "Competitive randomized algorithms for non-uniform problems", SODA 1990), taken moment by moment
because here one can rent again. The left side is the hazard rate of the idle time by MB. So one rule gives
short keep-alives after bursts, long ones where calls are spread, early ends and pre-warming where calls are
periodic, and nothing for what is never called again.

- The distribution is a histogram of idle times on a logarithmic scale, smoothed the more the less is known,
  with old idle times fading. A bin whose idle times lie close together, such as a timer's, is held only for
  that sliver of it. What a function has not shown yet is taken from what all functions showed at its age.
- The price is common to all functions: the Lagrange multiplier of one budget, so memory goes where it avoids
  most cold starts. It is steered so that all functions together waste a share (`thrift`) of what keeping each
  for ten minutes would have wasted, which is known from the same idle times.
- Layers demote by the same rule: a lower one takes less memory and saves a part of a cold start, so it is
  held down to a lower hazard. Tiers of what is kept are SOCK's idea (Oakes et al., USENIX ATC 2018). The
  budget is of code alone: all functions of a runtime share a few blank sandboxes, however many want one.

The histogram with pre-warming is due to Shahrad et al. (USENIX ATC 2020), memory by value and size to
Fuerst & Sharma (ASPLOS 2021).
"""

import math
from bisect import bisect
from dataclasses import dataclass
from functools import cache, cached_property

from function_service.policies.base import Decision, Layer, Step

_PER_OCTAVE = 4  # bins for each doubling of the idle time
_BINS = 17 * _PER_OCTAVE  # from 1 s to 36 hours
_EDGES = (0.0, *(2 ** (place / _PER_OCTAVE) for place in range(_BINS)))  # seconds
_SHARP = 2.5  # idle times in a bin, from which on their spread tells something
_BASELINE = 600.0  # seconds of the keep-alive whose waste is the yardstick
_PERIOD = 60.0  # seconds between two looks at the price
_PATIENCE, _FIRMNESS = 0.05, 4.0  # how the price answers to waste in the long run, and at once
_FIRST_PRICE = 1.5e-4
_MEMORY = 0.998  # what of the evidence for the price is left after such a period
_TINY = 1e-9
_SLACK = 1.0  # seconds that a sliver is wider on both sides than its spread


@dataclass(frozen=True)
class Tier:
    """A layer held instead of the code: its memory in MB, and which part of a cold start it saves."""

    layer: Layer
    size: float
    saves: float


_TIERS = (Tier(Layer.RUNTIME, 1.0, 0.5), Tier(Layer.CONTAINER, 0.3, 0.2))


@dataclass
class Ember:
    """The policy. One object serves all functions of a platform, because they share one price."""

    thrift: float = 0.94  # of what ten minutes would waste
    prior: float = 3.0  # how many idle times the experience with other functions is worth
    half_life: float = 500.0  # idle times of a function after which one counts half
    tiers: tuple[Tier, ...] = _TIERS

    @property
    def demotes(self) -> bool:
        """Whether lower layers are held, too."""
        return bool(self.tiers)

    def __post_init__(self) -> None:
        self._level = self.price = _FIRST_PRICE
        self._common = [1.0 / (1 + max(0, place - 40)) for place in range(_BINS)]
        self._common_sum = sum(self._common)
        self.expected = [weight / self._common_sum for weight in self._common]
        self._spent = 0.0
        self._allowed = 0.0
        self._next_look = -math.inf
        self._mean_size = 0.0
        self._tracked = 0

    @cached_property
    def growth(self) -> float:
        """By how much each idle time counts more than the one before it."""
        return float(2 ** (1 / self.half_life))

    def track(self, function: str, size: float) -> "EmberHistory":  # noqa: ARG002
        """Begin a history."""
        self._tracked += 1
        self._mean_size += (size - self._mean_size) / self._tracked
        return EmberHistory(self, max(size, 1e-6))

    def forget(self, function: str) -> None:
        """Do nothing: what it taught about others stays true."""

    def evict(self, now: float) -> list[str]:  # noqa: ARG002
        """Name none: the price does it."""
        return []

    @property
    def mean_size(self) -> float:
        """The memory of an average function, in MB."""
        return self._mean_size

    def learn(self, place: int, weight: float) -> None:
        """Take into account where an idle time of some function fell."""
        self._common[place] += weight
        self._common_sum += weight

    def settle(self, idle: float, size: float, decision: Decision, now: float) -> None:
        """Book what an idle time cost, and what it would have cost with ten minutes. Adapt the price."""
        self._spent += decision.held(idle)[Layer.CODE - 1] * size
        self._allowed += min(idle, _BASELINE) * size * self.thrift
        if now >= self._next_look:
            self._next_look = now + _PERIOD
            excess = (self._spent + 1.0) / (self._allowed + 1.0)
            self._level *= min(1.1, max(0.9, excess**_PATIENCE))
            self.price = self._level * min(4.0, max(0.25, excess**_FIRMNESS))
            self._spent *= _MEMORY
            self._allowed *= _MEMORY
            self.expected = [weight / self._common_sum for weight in self._common]


class EmberHistory:
    """The idle times of one function: by bin a weight, a mean and a sum of squared deviations."""

    __slots__ = (
        "_bins",
        "_decision",
        "_ended",
        "_fresh_until",
        "_increment",
        "_known",
        "_layers",
        "_policy",
        "_price",
        "_rates",
        "_total",
        "size",
    )

    def __init__(self, policy: Ember, size: float) -> None:
        self._policy = policy
        self._rates, self._layers = _ladder(size, policy.tiers)
        self.size = size
        self._bins: dict[int, list[float]] = {}
        self._total = 0.0  # weight of all bins
        self._increment = 1.0  # weight of the next idle time
        self._known = 0  # idle times
        self._ended: float | None = None
        self._decision: Decision | None = None
        self._fresh_until = 0  # idle times known when the decision is made anew
        self._price = 0.0  # for which it was made

    def record(self, started: float, ended: float) -> None:
        """Learn from the idle time before this call; one that came during another had none."""
        if self._ended is None:
            self._ended = ended
            return
        idle = started - self._ended
        if idle > 0:
            self._policy.settle(idle, self.size, self.decide(started), started)
            self._learn(idle)
        self._ended = max(self._ended, ended)

    def _learn(self, idle: float) -> None:
        place = min(_BINS - 1, int(_PER_OCTAVE * math.log2(idle)) + 1) if idle >= 1 else 0
        weight = self._increment
        self._increment *= self._policy.growth
        self._total += weight
        self._known += 1
        entry = self._bins.get(place)
        if entry is None:
            self._bins[place] = [weight, idle, 0.0]
        else:
            entry[0] += weight
            off = idle - entry[1]
            entry[1] += off * weight / entry[0]
            entry[2] += weight * off * (idle - entry[1])
        self._policy.learn(place, 1.0 / self._known)
        if self._increment > 1e12:
            self._rescale()

    def _rescale(self) -> None:
        for entry in self._bins.values():
            entry[0] /= self._increment
            entry[2] /= self._increment
        self._total /= self._increment
        self._increment = 1.0

    def decide(self, now: float) -> Decision:  # noqa: ARG002
        """Return what to hold, at the present price; worked out anew when that or the history changed."""
        price = self._policy.price
        if self._decision is None or self._known >= self._fresh_until or not 0.9 < price / self._price < 1.1:
            self._decision = self._timetable(price)
            self._price = price
            self._fresh_until = self._known + 1 + self._known // 12
        return self._decision

    def _timetable(self, price: float) -> Decision:
        policy = self._policy
        everything = self._total / self._increment + policy.prior
        # What the chance of a warm start is worth, in MB·s of an average function
        worth = policy.mean_size / price
        steps: list[Step] = []
        layer = None
        left = 1.0  # chance that the function is still idle when a piece begins
        for begin, end, weight in self._pieces():
            chance = weight / everything
            rate = chance * worth / ((end - begin) * (left - chance / 2 + _TINY))
            best = self._layers[bisect(self._rates, rate)]
            if best is not layer:
                layer = best
                steps.append(Step(begin, best))
            left -= chance
        if layer is not Layer.NOTHING:
            steps.append(Step(_EDGES[_BINS], Layer.NOTHING))
        return Decision(tuple(steps))

    def _pieces(self) -> list[tuple[float, float, float]]:
        """Return (begin, end, weight) of the pieces of the idle time, slivers apart from the rest.

        Weights are in present idle times, and add up to those known and the prior.
        """
        policy = self._policy
        weights = [policy.prior * chance for chance in policy.expected]
        slivers: dict[int, tuple[float, float, float]] = {}
        kernel = _kernel(self._known)
        reach = len(kernel) - 1
        for place, (weight, mean, squares) in self._bins.items():
            present = weight / self._increment
            low, high = _EDGES[place], _EDGES[place + 1]
            spread = 2.5 * math.sqrt(max(0.0, squares / weight)) + _SLACK
            if present >= _SHARP and spread < 0.25 * (high - low):
                slivers[place] = max(low, mean - spread), min(high, mean + spread), present
                continue
            for other in range(max(0, place - reach), min(_BINS, place + reach + 1)):
                weights[other] += present * kernel[abs(other - place)]
        pieces = []
        for place, weight in enumerate(weights):
            low, high = _EDGES[place], _EDGES[place + 1]
            if place not in slivers:
                pieces.append((low, high, weight))
                continue
            begin, end, present = slivers[place]
            rest = weight / (high - low)
            if begin > low:
                pieces.append((low, begin, rest * (begin - low)))
            pieces.append((begin, end, present + rest * (end - begin)))
            if end < high:
                pieces.append((end, high, rest * (high - end)))
        return pieces


def _ladder(size: float, tiers: tuple[Tier, ...]) -> tuple[list[float], list[Layer]]:
    """Return which layer pays best by the rate of calls: up to the first rate the first layer, and so on.

    In a plot of what each layer saves over its memory these are the corners of the upper hull.
    """
    offers = [(0.0, 0.0, Layer.NOTHING), (size, 1.0, Layer.CODE)]
    offers += [(tier.size, tier.saves, tier.layer) for tier in tiers if tier.size < size and tier.saves < 1]
    rates: list[float] = []
    hull: list[tuple[float, float, Layer]] = []
    for offer in sorted(offers):
        while hull:
            rate = (offer[0] - hull[-1][0]) / max(_TINY, offer[1] - hull[-1][1])
            if not rates or rate > rates[-1]:
                rates.append(rate)
                break
            rates.pop()
            hull.pop()
        hull.append(offer)
    return rates, [layer for _, _, layer in hull]


@cache
def _wide(reach: int) -> tuple[float, ...]:
    """Return the right half of a triangle over so many bins to both sides, whose sum is 1."""
    whole = (reach + 1) ** 2
    return tuple((reach + 1 - off) / whole for off in range(reach + 1))


def _kernel(known: int) -> tuple[float, ...]:
    """Return how one idle time is spread over the bins around: the less is known, the wider."""
    return _wide(max(1, round(6 / (1 + known) ** 0.2)))
