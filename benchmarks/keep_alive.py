"""Keep-alive policies on a trace, in simulated time: `pilotlight bench keep-alive`.

Every trace is replayed (see replay.py) through the very objects that the product uses. What the policies
waste is compared with a fixed keep-alive of ten minutes on the same trace, as the papers do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import options, report, traces
from benchmarks.options import Run
from benchmarks.replay import Outcome, replay
from benchmarks.report import Plot, Series
from cli import output
from function_service.policies import Ember, Fixed, GreedyDual, HybridHistogram, Policy
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.traces import Trace

BASELINE = "fixed 10 min"
_HEADS = ("POLICY", "COLD: ALL", "MEDIAN", "P75", "MEAN", "WASTED", "HELD", "RUNTIME HELD")
_LEGEND = (
    "Cold starts in percent, with first calls: of all calls; by function, the median, the 75th percentile "
    "and the mean. Wasted: memory-time held while idle, over fixed 10 min. Held: instances idle on average. "
    "Runtime held: the percentage of cold starts for which a blank sandbox waited. All: medians."
)
_METRICS: dict[str, tuple[str, Callable[[Outcome], float]]] = {
    "cold, all calls": ("%", lambda outcome: outcome.total),
    "cold, median function": ("%", lambda outcome: outcome.percentile(0.5)),
    "cold, 75th percentile": ("%", lambda outcome: outcome.percentile(0.75)),
    "cold, mean function": ("%", lambda outcome: outcome.mean),
    "instances held idle": ("", lambda outcome: outcome.held),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Take which traces to replay."""
    options.add(parser, rounds=3)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--trace", type=Path, metavar="FILE", help="CSV with time,function,duration,memory")
    source.add_argument(
        "--azure", type=Path, nargs="+", metavar="DAY", help="invocations_per_function_md.anon.d01.csv, d02 …"
    )
    parser.add_argument("--durations", type=Path, metavar="FILE", help="function_durations_percentiles….csv")
    parser.add_argument("--memory", type=Path, metavar="FILE", help="app_memory_percentiles….csv")
    parser.add_argument("--functions", type=int, default=400, help="of a generated trace (default 400)")
    parser.add_argument("--days", type=float, default=3.0, help="of a generated trace (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="of the first generated trace; --rounds are made")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the first trace as CSV")


def run(arguments: argparse.Namespace) -> int:
    """Replay, and tell. Raises Problem for a trace that can't be read."""
    bench = Run("keep-alive", arguments)
    found: dict[str, list[tuple[Outcome, float]]] = {}
    for number, trace in enumerate(_traces(arguments)):
        if number == 0 and arguments.write:
            traces.write_plain(trace, arguments.write)
        calls = (
            f"{len(trace):,} calls of {len(trace.names):,} functions in {trace.length / traces.DAY:.1f} days"
        )
        print(f"trace {number + 1}: {calls}", file=sys.stderr)
        for name, outcome, wasted in compare(trace, quick=arguments.quick):
            found.setdefault(name, []).append((outcome, wasted))
            print(f"  {name}: {outcome.total:.2f} % cold, wasted {wasted:.2f}", file=sys.stderr)
    print(table(found))
    for name, outcomes in found.items():
        shares = [share for _, share in outcomes]
        bench.figures.append(report.figure(f"{name}: memory wasted", "", shares, chance=bench.chance))
        for metric, (unit, value) in _METRICS.items():
            values = [value(outcome) for outcome, _ in outcomes]
            title = f"{name}: {metric}"
            bench.figures.append(report.figure(title, unit, values, chance=bench.chance))
    bench.plots = [_plot(found, metric) for metric in ("cold, 75th percentile", "cold, all calls")]
    bench.notes.append(_LEGEND)
    return bench.finish()


def compare(trace: Trace, *, quick: bool = False) -> Iterator[tuple[str, Outcome, float]]:
    """Replay a trace through every policy; yield name, outcome, and memory wasted over the baseline's."""
    base = replay(trace, Fixed())
    yield BASELINE, base, 1.0
    for name, policy in _policies(base.wasted / max(1.0, trace.length), quick=quick):
        outcome = replay(trace, policy)
        yield name, outcome, outcome.wasted / base.wasted if base.wasted else 0.0


def _policies(budget: float, *, quick: bool) -> Iterator[tuple[str, Policy]]:
    """Yield the policies; `budget` in MB is what the baseline held idle on average."""
    yield "histogram", HybridHistogram()
    yield "greedy-dual", GreedyDual(max(1.0, budget))
    yield "ember", Ember()
    yield "ember, thrift 1.25", Ember(thrift=1.25)
    if quick:
        return
    for minutes in (1, 5, 20, 60):
        yield f"fixed {minutes} min", Fixed(60.0 * minutes)
    yield "histogram, 1 h", HybridHistogram(bins=60)
    yield "greedy-dual, half", GreedyDual(max(1.0, budget / 2))
    for thrift in (0.6, 0.8, 1.0, 1.1):
        yield f"ember, thrift {thrift}", Ember(thrift=thrift)


def table(found: dict[str, list[tuple[Outcome, float]]]) -> str:
    """Lay out the medians over all traces."""
    rows = []
    for name, outcomes in found.items():
        middle = [_median([value(outcome) for outcome, _ in outcomes]) for _, value in _METRICS.values()]
        total, median, upper, mean, held = middle
        wasted = _median([share for _, share in outcomes])
        prepared = _median([100 * o.prepared / max(1, o.cold) for o, _ in outcomes])
        cells = [f"{total:.2f}", f"{median:.1f}", f"{upper:.1f}", f"{mean:.1f}"]
        rows.append([name, *cells, f"{wasted:.2f}", f"{held:.0f}", f"{prepared:.0f}"])
    return output.table(list(_HEADS), rows)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _plot(found: dict[str, list[tuple[Outcome, float]]], metric: str) -> Plot:
    families: dict[str, list[tuple[float, float]]] = {}
    for name, outcomes in found.items():
        wasted = _median([share for _, share in outcomes])
        cold = _median([_METRICS[metric][1](outcome) for outcome, _ in outcomes])
        families.setdefault(name.split(",")[0].split()[0], []).append((wasted, cold))
    series = []
    for family, points in families.items():
        x, y = zip(*sorted(points), strict=True)
        series.append(Series(family, list(x), list(y)))
    return Plot(
        name="keep-alive-" + metric.removeprefix("cold, ").replace(" ", "-"),
        title="Cold starts against wasted memory time",
        kind="lines",
        x="memory wasted, over a fixed keep-alive of 10 min",
        y=f"{metric}, %",
        series=series,
    )


def _traces(arguments: argparse.Namespace) -> Iterator[Trace]:
    try:
        if arguments.trace:
            yield traces.read_plain(arguments.trace)
        elif arguments.azure:
            yield traces.read_azure(arguments.azure, arguments.durations, arguments.memory)
        else:
            functions, days = (60, 0.5) if arguments.quick else (arguments.functions, arguments.days)
            for number in range(1 if arguments.quick else options.rounds(arguments)):
                yield traces.generate(functions, days, arguments.seed + number)
    except (OSError, ValueError) as error:
        raise Problem("invalid-request", f"The trace can't be read: {error}") from error


def main() -> int:
    """Run as `python -m benchmarks.keep_alive`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    configure(parser)
    try:
        return run(parser.parse_args())
    except Problem as problem:
        print(problem.detail, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
