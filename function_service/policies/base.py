"""The seam of the keep-alive policies: what a policy is told, and what it decides.

A decision is a timetable over a function's idle time: from each moment on, which layer of it is held. So
"ten minutes", "end now and come back in 55 minutes" and "demote after 20 seconds" are all said alike.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol


class Layer(IntEnum):
    """How much of a function is held. Each one includes those below."""

    NOTHING = 0
    CONTAINER = 1  # an empty sandbox waits
    RUNTIME = 2  # a blank sandbox waits with the interpreter booted; it has seen no code of the function
    CODE = 3  # an instance waits; the next call is warm


class Step(NamedTuple):
    """From `after` seconds of idleness on, `layer` is held."""

    after: float
    layer: Layer


@dataclass(frozen=True, slots=True)
class Decision:
    """A timetable over the idle time of a function, which begins when its last call has ended.

    The first step is at 0; the others follow in ascending order.
    """

    steps: tuple[Step, ...]

    def at(self, idle: float) -> Layer:
        """Return what is held after so many seconds of idleness."""
        steps = self.steps
        if len(steps) < 3:  # the usual ones, quickly
            return steps[-1].layer if idle >= steps[-1].after else steps[0].layer
        return steps[max(0, bisect_right(steps, idle, key=_after) - 1)].layer

    def ahead(self, idle: float) -> Layer:
        """Return the highest layer that is held after so many seconds of idleness, or later."""
        return max(self.at(idle), *(step.layer for step in self.steps if step.after > idle), Layer.NOTHING)

    def held(self, idle: float) -> tuple[float, float, float]:
        """Return for how many of the first `idle` seconds (container, runtime, code) are held."""
        seconds = [0.0, 0.0, 0.0, 0.0]
        for place, (after, layer) in enumerate(self.steps):
            if after >= idle:
                break
            until = self.steps[place + 1].after if place + 1 < len(self.steps) else idle
            seconds[layer] += min(until, idle) - after
        return seconds[1], seconds[2], seconds[3]

    @property
    def hold(self) -> float:
        """For how many seconds the instance that served the last call stays."""
        for after, layer in self.steps:
            if layer is not Layer.CODE:
                return after
        return math.inf

    def next_start(self, idle: float) -> float:
        """Return at which idle time after this one the code is loaded again; infinity where it is not."""
        for after, layer in self.steps:
            if after > idle and layer is Layer.CODE:
                return after
        return math.inf

    @classmethod
    def of(cls, steps: Iterable[Step]) -> "Decision":
        """Make a decision of steps in ascending order, without those that change nothing."""
        kept: list[Step] = []
        for step in steps:
            if kept and kept[-1].after >= step.after:
                kept.pop()
            if not kept or kept[-1].layer is not step.layer:
                kept.append(step)
        return cls(tuple(kept))

    @classmethod
    def window(cls, begin: float, end: float) -> "Decision":
        """Hold the code between two moments, and nothing before and after."""
        start = [Step(0.0, Layer.NOTHING), Step(begin, Layer.CODE)] if begin > 0 else [Step(0.0, Layer.CODE)]
        return cls((*start, Step(end, Layer.NOTHING)))


def _after(step: Step) -> float:
    return step.after


class History(Protocol):
    """What a policy remembers of one function. Moments are in seconds since the epoch."""

    def record(self, started: float, ended: float) -> None:
        """Take a call into account. Calls may overlap, and come in any order."""
        ...

    def decide(self, now: float) -> Decision:
        """Return what to hold while the function is idle, from what is known at this moment."""
        ...


class Policy(Protocol):
    """A keep-alive policy. It has no clock and does no I/O; it knows only what came before `now`."""

    @property
    def demotes(self) -> bool:
        """Whether its decisions name lower layers than the code; else they say nothing about them."""
        ...

    def track(self, function: str, size: float) -> History:
        """Begin a history of a function whose instance takes `size` MB."""
        ...

    def forget(self, function: str) -> None:
        """Drop a function that is no more."""
        ...

    def evict(self, now: float) -> list[str]:
        """Name the idle functions of which nothing shall be held any more, whatever was decided for them."""
        ...
