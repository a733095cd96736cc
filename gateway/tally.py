"""What one gateway has counted, as it can be kept, added to that of others, and told to Prometheus. Pure."""

from collections.abc import Container, Iterable

from msgspec import Struct
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The upper bounds of a histogram's buckets, in seconds. One more takes the rest."""


class Tally(Struct):
    """Counts, and what is under way now."""

    calls: list[tuple[str, int, str, int]] = []  # function, status, start, how many
    latency: list[tuple[str, str, list[int], float]] = []  # function, start, by bucket, seconds in all
    refusals: dict[str, int] = {}  # by kind
    dropped: int = 0  # usage reports
    waiting: dict[str, int] = {}  # by function
    leases: dict[str, tuple[int, int]] = {}  # by function: leases, calls under way

    def counted(self) -> "Tally":
        """Return it without what was under way: what a successor of the process begins with."""
        return Tally(self.calls, self.latency, self.refusals, self.dropped)


def total(tallies: Iterable[Tally], live: Container[str] | None) -> Tally:
    """Add tallies, without functions that are not `live`, unless that is None."""
    calls: dict[tuple[str, int, str], int] = {}
    latency: dict[tuple[str, str], tuple[list[int], float]] = {}
    refusals: dict[str, int] = {}
    waiting: dict[str, int] = {}
    leases: dict[str, tuple[int, int]] = {}
    dropped = 0
    for tally in tallies:
        for function, status, start, count in tally.calls:
            calls[function, status, start] = calls.get((function, status, start), 0) + count
        for function, start, buckets, seconds in tally.latency:
            before, spent = latency.get((function, start), ([0] * len(buckets), 0.0))
            latency[function, start] = (
                [a + b for a, b in zip(before, buckets, strict=True)],
                spent + seconds,
            )
        for kind, count in tally.refusals.items():
            refusals[kind] = refusals.get(kind, 0) + count
        for function, count in tally.waiting.items():
            waiting[function] = waiting.get(function, 0) + count
        for function, (held, busy) in tally.leases.items():
            more = leases.get(function, (0, 0))
            leases[function] = (held + more[0], busy + more[1])
        dropped += tally.dropped
    return Tally(
        [(*key, count) for key, count in calls.items() if live is None or key[0] in live],
        [(*key, *each) for key, each in latency.items() if live is None or key[0] in live],
        refusals,
        dropped,
        waiting,
        leases,
    )


def metrics(tally: Tally) -> Iterable[Metric]:
    """Yield all metrics of the gateway."""
    calls = CounterMetricFamily(
        "pilotlight_calls", "Calls that were answered", labels=["function", "status", "start"]
    )
    for function, status, start, count in tally.calls:
        calls.add_metric([function, str(status), start], count)
    yield calls
    latency = HistogramMetricFamily(
        "pilotlight_call_duration_seconds",
        "From the arrival of a call to the end of its answer",
        labels=["function", "start"],
    )
    for function, start, counts, seconds in tally.latency:
        buckets: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*BOUNDS, float("inf")), counts, strict=True):
            running += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), running))
        latency.add_metric([function, start], buckets, seconds)
    yield latency
    refusals = CounterMetricFamily("pilotlight_refusals", "Problem documents by kind", labels=["kind"])
    for kind, count in tally.refusals.items():
        refusals.add_metric([kind], count)
    yield refusals
    queue = GaugeMetricFamily("pilotlight_queue_length", "Calls that wait for a slot", labels=["function"])
    for function, waiting in tally.waiting.items():
        queue.add_metric([function], waiting)
    yield queue
    leases = GaugeMetricFamily("pilotlight_leases", "Leases that are held", labels=["function"])
    running_calls = GaugeMetricFamily(
        "pilotlight_calls_running", "Calls that are under way on an instance", labels=["function"]
    )
    for function, (held, busy) in tally.leases.items():
        leases.add_metric([function], held)
        running_calls.add_metric([function], busy)
    yield leases
    yield running_calls
    yield CounterMetricFamily(
        "pilotlight_usage_reports_dropped",
        "Calls that the function service was not told of, because it did not answer for long",
        value=tally.dropped,
    )
