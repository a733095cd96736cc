"""Measuring in turn: A B C A B C …, so that whatever happens to the machine happens to all."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Measured:
    """One measurement, and what it consists of, in one unit."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Something to measure again and again. `measure` returns what counts, and does not count the rest."""

    name: str
    measure: Callable[[], Measured]


class Progress:
    """How far a run is, on stderr: one line that changes on a terminal, else a line now and then."""

    def __init__(self, title: str, total: int | None) -> None:
        """`total` is None where it is not known how many steps there will be."""
        self._title = title
        self._total = total
        self._done = 0
        self._live = sys.stderr.isatty()
        self._next = 0.0

    def step(self, now_at: str) -> None:
        """Tell that one more is done."""
        self._done += 1
        last = self._total is not None and self._done >= self._total
        if not last and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (0.1 if self._live else 10.0)
        of = "" if self._total is None else f" of {self._total}"
        text = f"{self._title}: {self._done}{of} ({now_at})"
        if self._live:
            print(f"\r\x1b[K{'' if last else text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def interleave(title: str, cases: Sequence[Case], rounds: int) -> dict[str, list[Measured]]:
    """Measure each case once a round; a first round, which warms all up, does not count."""
    found: dict[str, list[Measured]] = {case.name: [] for case in cases}
    progress = Progress(title, (rounds + 1) * len(cases))
    for number in range(rounds + 1):
        for case in cases:
            measured = case.measure()
            if number:
                found[case.name].append(measured)
            progress.step(case.name)
    return found


def values(measured: Sequence[Measured]) -> list[float]:
    """Return the values alone."""
    return [each.value for each in measured]


def parts(measured: Sequence[Measured]) -> dict[str, float]:
    """Return the median of each part."""
    names = dict.fromkeys(name for each in measured for name in each.parts)
    return {name: median(each.parts.get(name, 0.0) for each in measured) for name in names}
