"""What the gateway counts, cheap enough for every call, and how Prometheus reads it."""

from bisect import bisect_left
from collections.abc import Callable, Container, Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class _Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.total = 0.0


class Meter(Collector):
    """Counts calls. prometheus-client's own counters take locks and would be felt in each warm call."""

    def __init__(
        self,
        queues: Callable[[], dict[str, int]],
        leases: Callable[[], dict[str, tuple[int, int]]],
        live: Callable[[], Container[str] | None],
    ) -> None:
        """`live` returns the functions that there are, or None where that is not known."""
        self._live = live
        self._queues = queues
        self._leases = leases
        self._calls: dict[tuple[str, int, str], int] = {}
        self._latency: dict[tuple[str, str], _Histogram] = {}
        self._refusals: dict[str, int] = {}
        self.reports_dropped = 0

    def call(self, function: str, status: int, start: str, seconds: float) -> None:
        """Count a call that was answered; `start` is cold, warm, or none where no instance was reached."""
        key = (function, status, start)
        self._calls[key] = self._calls.get(key, 0) + 1
        histogram = self._latency.get((function, start))
        if histogram is None:
            histogram = self._latency[function, start] = _Histogram()
        histogram.counts[bisect_left(_BOUNDS, seconds)] += 1
        histogram.total += seconds

    def refusal(self, kind: str) -> None:
        """Count a problem document."""
        self._refusals[kind] = self._refusals.get(kind, 0) + 1

    def _forget_functions_that_are_gone(self) -> None:
        if (live := self._live()) is not None:
            self._calls = {key: count for key, count in self._calls.items() if key[0] in live}
            self._latency = {key: each for key, each in self._latency.items() if key[0] in live}

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics of the gateway."""
        self._forget_functions_that_are_gone()
        calls = CounterMetricFamily(
            "pilotlight_calls", "Calls that were answered", labels=["function", "status", "start"]
        )
        for (function, status, start), count in self._calls.items():
            calls.add_metric([function, str(status), start], count)
        yield calls
        latency = HistogramMetricFamily(
            "pilotlight_call_duration_seconds",
            "From the arrival of a call to the end of its answer",
            labels=["function", "start"],
        )
        for (function, start), histogram in self._latency.items():
            buckets: list[tuple[str, float]] = []
            running = 0
            for bound, count in zip((*_BOUNDS, float("inf")), histogram.counts, strict=True):
                running += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), running))
            latency.add_metric([function, start], buckets, histogram.total)
        yield latency
        refusals = CounterMetricFamily("pilotlight_refusals", "Problem documents by kind", labels=["kind"])
        for kind, count in self._refusals.items():
            refusals.add_metric([kind], count)
        yield refusals
        queue = GaugeMetricFamily(
            "pilotlight_queue_length", "Calls that wait for a slot", labels=["function"]
        )
        for function, waiting in self._queues().items():
            queue.add_metric([function], waiting)
        yield queue
        leases = GaugeMetricFamily("pilotlight_leases", "Leases that are held", labels=["function"])
        running_calls = GaugeMetricFamily(
            "pilotlight_calls_running", "Calls that are under way on an instance", labels=["function"]
        )
        for function, (held, busy) in self._leases().items():
            leases.add_metric([function], held)
            running_calls.add_metric([function], busy)
        yield leases
        yield running_calls
        yield CounterMetricFamily(
            "pilotlight_usage_reports_dropped",
            "Calls that the function service was not told of, because it did not answer for long",
            value=self.reports_dropped,
        )
