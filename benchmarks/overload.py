"""`pilotlight bench overload`: ten times the calls that can be answered, what becomes of them and of others.

The peak is that of callers who wait for their answers, from as many connections as make it highest. The flood
offers ten times of that, and does not wait. Both come from a process of their own, on the same processors as
the platform; what a load takes of them is told, and left out of one of the ratios.
"""

import argparse
import os
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import flood, load, options, platform, report, stats
from benchmarks.flood import Closed, Flooded, Seen
from benchmarks.functions import COMPUTING, HELLO, WAITING, manifest, together
from benchmarks.load import Client
from benchmarks.platform import Platform
from benchmarks.report import Figure, Plot, Series
from benchmarks.rounds import Progress

if TYPE_CHECKING:
    from concurrent.futures import Future

_ROUNDS = 5
_SECONDS = 5.0  # longer than what counts as a burst, and than what one leaves in the queue
_QUICK_SECONDS = 0.5
_TIMES = 10  # the peak
_RISING = (1, 2, 4, 8, 16)  # connections
_TIMEOUT = 4.0  # seconds, of both functions
_WAITING_INSTANCES = 8
_EVERY = 0.02  # seconds between two calls of who looks on
_CALM = 5  # calls in a row that are as they were before the flood
_AFTER = 3.0  # seconds that recovery is looked for
_GUESTS = 2  # connections of the neighbour's callers


@dataclass
class _Shape:
    """A function that is flooded, and what was found."""

    name: str
    what: str
    connections: int = 1
    peaks: list[float] = field(default_factory=list)  # calls a second
    peaks_left: list[float] = field(default_factory=list)  # and for each processor second that was left
    answered: list[float] = field(default_factory=list)
    answered_left: list[float] = field(default_factory=list)
    offered: list[float] = field(default_factory=list)  # times the peak
    in_time: list[float] = field(default_factory=list)  # of those that were not refused
    served: list[list[float]] = field(default_factory=list)  # ms, by round
    refused: list[list[float]] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)  # ms

    @property
    def path(self) -> str:
        """Where it is called."""
        return f"/function/{self.name}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the flags."""
    options.add(parser, rounds=_ROUNDS)
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"how long a flood lasts (default {_SECONDS:g})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure peak and flood, and the neighbour alone and beside them, in turn. Raises Problem."""
    run = options.Run("overload", arguments)
    seconds = arguments.seconds or (_QUICK_SECONDS if arguments.quick else _SECONDS)
    count = options.rounds(arguments)
    shapes = [
        _Shape("computing", "5 ms of processor time each"),
        _Shape("waiting", f"20 ms of waiting each, {_WAITING_INSTANCES} instances"),
    ]
    with platform.running() as target, load.client() as crowd, load.client() as guest:
        lines = f'cpu = 1.0\ntimeout = "{_TIMEOUT:g}s"\nmax_instances = '
        target.push(
            "flooded",
            together(
                {
                    "computing": (COMPUTING, f"{lines}{_processors()}\n"),
                    "waiting": (WAITING, f"{lines}{_WAITING_INSTANCES}\n"),
                }
            ),
        )
        target.push("neighbour", {**HELLO["python"], **manifest("neighbour")})
        for shape in shapes:
            _rise(target, crowd, shape, seconds, quick=arguments.quick)
            progress = Progress(f"{shape.name}, flooded", count + 1)
            for number in range(count + 1):
                _round(target, crowd, guest, shape, seconds, counts=number > 0)
                progress.step(f"from {shape.connections} connections")
            run.show(f"{_TIMES} times too many calls: {shape.what}", _figures(run, shape))
            run.plots.append(_plot(shape))
        run.show(
            "A neighbour while another function computes",
            _neighbour(run, target, crowd, guest, shapes[0], seconds, count),
        )
    run.notes.append(
        f"Calls have {_TIMEOUT:g} s. In time are answers with status 200 within that, of all calls that were "
        "not refused with 429. The load runs on the same processors; left is what it did not use of them."
    )
    return run.finish()


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _rise(target: Platform, crowd: Client, shape: _Shape, seconds: float, *, quick: bool) -> None:
    """Find from how many connections a function answers most."""
    sizes = _RISING[:3] if quick else _RISING
    crowd.saturate(target.address, shape.path, sizes[-1], seconds)  # starts all instances
    best = 0
    for connections in sizes:
        found = len(crowd.saturate(target.address, shape.path, connections, seconds))
        if found > best:
            best, shape.connections = found, connections


def _round(
    target: Platform, crowd: Client, guest: Client, shape: _Shape, seconds: float, *, counts: bool
) -> None:
    before = guest.begin(flood.watch, target.address, shape.path, _EVERY, seconds).result()
    usual = 2 * stats.percentile([each.took for each in before], 0.95)
    peak = crowd.begin(flood.closed, target.address, shape.path, shape.connections, seconds).result()
    rate = _TIMES * len(peak.times) / seconds
    flooding = crowd.begin(flood.flood, target.address, shape.path, rate, seconds)
    looking = guest.begin(flood.watch, target.address, shape.path, _EVERY, seconds + min(_AFTER, 2 * seconds))
    flooded, seen = flooding.result(), looking.result()
    if counts:
        _note(shape, peak, flooded, seconds)
        shape.recovery.append(_recovery(seen, flooded.ended, usual) * 1000)


def _note(shape: _Shape, peak: Closed, flooded: Flooded, seconds: float) -> None:
    whole = _processors() * seconds
    shape.peaks.append(len(peak.times) / seconds)
    shape.peaks_left.append(len(peak.times) / (whole - peak.processor))
    shape.answered.append(flooded.in_time / seconds)
    shape.answered_left.append(flooded.in_time / (whole - flooded.processor))
    shape.offered.append(flooded.sent / len(peak.times))
    wanted = len(flooded.served) + sum(flooded.others.values())
    shape.in_time.append(sum(took <= _TIMEOUT for took in flooded.served) / max(wanted, 1))
    shape.served.append([took * 1000 for took in flooded.served] or [0.0])
    shape.refused.append([took * 1000 for took in flooded.refused] or [0.0])


def _recovery(seen: list[Seen], ended: float, usual: float) -> float:
    """Return the seconds from the flood's end until calls are answered as quickly as before it."""
    after = [each for each in seen if each.at >= ended]
    for first in range(len(after) - _CALM + 1):
        if all(each.status == 200 and each.took <= usual for each in after[first : first + _CALM]):
            return after[first].at + after[first].took - ended
    return max(each.at for each in seen) - ended


def _figures(run: options.Run, shape: _Shape) -> list[Figure]:
    chance, name = run.chance, shape.name
    figures = []
    for kind, peaks, answered in (
        ("answered", shape.peaks, shape.answered),
        ("answered, by processor time left", shape.peaks_left, shape.answered_left),
    ):
        beside = f"{name}: {kind}, at its peak"
        figures += [
            report.figure(
                f"{name}: {kind}, flooded",
                "1/s",
                answered,
                chance=chance,
                better="higher",
                baseline=(beside, peaks),
            ),
            report.figure(beside, "1/s", peaks, chance=chance, better="higher"),
        ]
    return [
        *figures,
        report.figure(f"{name}: offered", "× peak", shape.offered, chance=chance, better="higher"),  # noqa: RUF001
        report.figure(f"{name}: in time", "share", shape.in_time, chance=chance, better="higher"),
        report.of_slices(f"{name}: until it was answered", "ms", shape.served, chance=chance),
        report.of_slices(f"{name}: until it was refused", "ms", shape.refused, chance=chance),
        report.figure(f"{name}: recovery", "ms", shape.recovery, chance=chance),
    ]


def _neighbour(
    run: options.Run,
    target: Platform,
    crowd: Client,
    guest: Client,
    shape: _Shape,
    seconds: float,
    count: int,
) -> list[Figure]:
    """Look at a function alone, beside one that is busy, and beside the same one flooded."""
    rate = _TIMES * median(shape.peaks)
    others: Future[Closed] | Future[Flooded] | None
    names = ("alone", "beside a busy function", "beside a flooded one")
    took: dict[str, list[list[float]]] = {name: [] for name in names}
    per_second: dict[str, list[float]] = {name: [] for name in names}
    path = "/function/neighbour"
    progress = Progress("neighbour", (count + 1) * len(names))
    for number in range(count + 1):
        for name in names:
            both = 2 * seconds
            if name == names[1]:
                others = crowd.begin(flood.closed, target.address, shape.path, shape.connections, both)
            elif name == names[2]:
                others = crowd.begin(flood.flood, target.address, shape.path, rate, both)
            else:
                others = None
            seen = guest.begin(flood.watch, target.address, path, _EVERY / 4, seconds).result()
            calls = len(guest.saturate(target.address, path, _GUESTS, seconds))
            if others is not None:
                others.result()
            if failed := [each.status for each in seen if each.status != 200]:
                raise RuntimeError(f"{len(failed)} of the neighbour's calls failed, one with {failed[0]}")
            progress.step(name)
            if number:
                took[name].append([each.took * 1000 for each in seen])
                per_second[name].append(calls / seconds)
    latency, throughput = "neighbour's call", "neighbour's calls"
    figures = []
    for name, beside in ((names[0], None), (names[1], names[0]), (names[2], names[1])):
        baseline = None if beside is None else (f"{latency}, {beside}", took[beside])
        figures.append(
            report.of_slices(f"{latency}, {name}", "ms", took[name], chance=run.chance, baseline=baseline)
        )
    for name, beside in ((names[0], None), (names[1], names[0]), (names[2], names[1])):
        figures.append(
            report.figure(
                f"{throughput}, {name}",
                "1/s",
                per_second[name],
                chance=run.chance,
                better="higher",
                baseline=None if beside is None else (f"{throughput}, {beside}", per_second[beside]),
            )
        )
    return figures


def _plot(shape: _Shape) -> Plot:
    shares = [number / 200 for number in range(1, 200)]
    kinds = {"answered": shape.served, "refused": shape.refused}
    return Plot(
        name=f"overload-{shape.name}",
        title=f"{_TIMES} times too many calls ({shape.what}): share that was told by then",
        kind="lines",
        x="ms",
        y="share",
        logarithmic=True,
        series=[
            Series(kind, [stats.percentile([v for each in rounds for v in each], s) for s in shares], shares)
            for kind, rounds in kinds.items()
        ],
    )
