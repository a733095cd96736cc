"""What a benchmark found: figures beside their baselines, and what to draw of them. Written as JSON."""

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from benchmarks import stats
from benchmarks.machine import Machine
from benchmarks.stats import Estimate
from pilotlight.problems import Problem

Better = Literal["lower", "higher"]
_KEPT = 400  # values of a figure that are kept, evenly chosen from the sorted ones


class Figure(Struct, frozen=True, kw_only=True):
    """One thing that was measured several times. `ratio` is that of its median to its baseline's."""

    name: str
    unit: str
    better: Better
    count: int
    median: Estimate
    p95: float
    p99: float
    baseline: str | None = None  # the name of a figure of the same run
    ratio: Estimate | None = None
    parts: dict[str, float] = {}  # medians of what it consists of, in the same unit
    values: list[float] = []


class Series(Struct, frozen=True):
    """Points of one colour; `x` are numbers, or names in a plot of bars."""

    name: str
    x: Sequence[float | str]
    y: list[float]


class Plot(Struct, frozen=True, kw_only=True):
    """Something to draw: `bars` lie above each other by name and add up; `lines` join points."""

    name: str  # of its file, without the ending
    title: str
    kind: Literal["bars", "lines", "steps"]
    x: str  # what the axis shows, with the unit
    y: str
    series: list[Series]
    logarithmic: bool = False


class Report(Struct, frozen=True, kw_only=True):
    """One run of one benchmark."""

    benchmark: str
    command: str
    started: str  # ISO 8601, UTC
    seconds: float
    quick: bool
    machine: Machine
    load_after: tuple[float, float, float]
    figures: list[Figure]
    notes: list[str]
    plots: list[Plot]


def figure(
    name: str,
    unit: str,
    values: Sequence[float],
    *,
    chance: random.Random,
    better: Better = "lower",
    baseline: tuple[str, Sequence[float]] | None = None,
    parts: Mapping[str, float] | None = None,
) -> Figure:
    """Make a figure out of values; `baseline` is the name and the values of what it is compared with."""
    tail = (0.95, 0.99) if better == "lower" else (0.05, 0.01)  # the bad end
    return Figure(
        name=name,
        unit=unit,
        better=better,
        count=len(values),
        median=stats.median(values, chance),
        p95=stats.percentile(values, tail[0]),
        p99=stats.percentile(values, tail[1]),
        baseline=baseline[0] if baseline else None,
        ratio=stats.ratio(values, baseline[1], chance) if baseline else None,
        parts=dict(parts or {}),
        values=_thinned(values),
    )


def of_slices(
    name: str,
    unit: str,
    slices: Sequence[Sequence[float]],
    *,
    chance: random.Random,
    baseline: tuple[str, Sequence[Sequence[float]]] | None = None,
) -> Figure:
    """Make a figure out of slices of many values each, such as the calls of one second.

    What differs is one slice from another, not one call from the next, so the intervals are those of the
    medians of the slices; p95 and p99 are of all values.
    """
    middles = [statistics.median(values) for values in slices]
    beside = (baseline[0], [statistics.median(values) for values in baseline[1]]) if baseline else None
    whole = [value for values in slices for value in values]
    return msgspec.structs.replace(
        figure(name, unit, middles, chance=chance, baseline=beside),
        p95=stats.percentile(whole, 0.95),
        p99=stats.percentile(whole, 0.99),
    )


def added(
    name: str,
    unit: str,
    slices: Sequence[Sequence[float]],
    baseline: Sequence[Sequence[float]],
    *,
    chance: random.Random,
) -> Figure:
    """Make a figure of what was added to a baseline, slice by slice: to its median, its p95 and its p99."""
    over = [[value for values in each for value in values] for each in (slices, baseline)]
    pairs = zip(slices, baseline, strict=True)
    more = [statistics.median(values) - statistics.median(others) for values, others in pairs]
    return msgspec.structs.replace(
        figure(name, unit, more, chance=chance),
        p95=stats.percentile(over[0], 0.95) - stats.percentile(over[1], 0.95),
        p99=stats.percentile(over[0], 0.99) - stats.percentile(over[1], 0.99),
    )


def _thinned(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    if len(ordered) > _KEPT:
        ordered = [ordered[round(i * (len(ordered) - 1) / (_KEPT - 1))] for i in range(_KEPT)]
    return [float(f"{value:.6g}") for value in ordered]


def write(report: Report, file: Path) -> None:
    """Write a report as JSON."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def read(file: Path) -> Report:
    """Read a report. Raises Problem for what is none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise Problem("invalid-request", f"{file} is not a report that --json wrote: {error}") from error
