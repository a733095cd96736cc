"""What the gateway counts, cheap enough for every call, and how Prometheus reads it."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway import tally
from gateway.ledger import Ledger
from gateway.tally import BOUNDS, Tally

_INTERVAL = 1.0  # seconds between two times that the counts are written for the other gateways


class _Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0


class Meter(Collector):
    """Counts calls. prometheus-client's own counters take locks and would be felt in each warm call."""

    def __init__(
        self,
        queues: Callable[[], dict[str, int]],
        leases: Callable[[], dict[str, tuple[int, int]]],
        live: Callable[[], Container[str] | None],
        ledger: Ledger,
    ) -> None:
        """`live` returns the functions that there are, or None where that is not known."""
        self._live = live
        self._queues = queues
        self._leases = leases
        self._ledger = ledger
        former = ledger.former()
        self._calls: dict[tuple[str, int, str], int] = {(f, s, how): n for f, s, how, n in former.calls}
        self._latency: dict[tuple[str, str], _Histogram] = {}
        for function, start, counts, seconds in former.latency:
            histogram = self._latency[function, start] = _Histogram()
            histogram.counts, histogram.total = counts, seconds
        self._refusals = dict(former.refusals)
        self.reports_dropped = former.dropped

    def call(self, function: str, status: int, start: str, seconds: float) -> None:
        """Count a call that was answered; `start` is cold, warm, or none where no instance was reached."""
        key = (function, status, start)
        self._calls[key] = self._calls.get(key, 0) + 1
        histogram = self._latency.get((function, start))
        if histogram is None:
            histogram = self._latency[function, start] = _Histogram()
        histogram.counts[bisect_left(BOUNDS, seconds)] += 1
        histogram.total += seconds

    def refusal(self, kind: str) -> None:
        """Count a problem document."""
        self._refusals[kind] = self._refusals.get(kind, 0) + 1

    def write(self) -> Tally:
        """Write down what has been counted, and return it."""
        if (live := self._live()) is not None:  # forget functions that are gone
            self._calls = {key: count for key, count in self._calls.items() if key[0] in live}
            self._latency = {key: each for key, each in self._latency.items() if key[0] in live}
        own = Tally(
            [(*key, count) for key, count in self._calls.items()],
            [(*key, each.counts, each.total) for key, each in self._latency.items()],
            self._refusals,
            self.reports_dropped,
            self._queues(),
            self._leases(),
        )
        self._ledger.write(own)
        return own

    async def run(self) -> None:
        """Write down what has been counted, again and again until cancelled, if anybody reads it."""
        while self._ledger.shared:
            self.write()
            await asyncio.sleep(_INTERVAL)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of all gateways that share the port."""
        return tally.metrics(tally.total([self.write(), *self._ledger.others()], self._live()))
