"""What the function service counts, for Prometheus."""

from collections import Counter

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from function_service.contract import Usage
from function_service.fleet import Fleet


class Metrics:
    """Counts calls as gateways report them; the rest is read from the fleet when asked."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    def call(self, call: Usage) -> None:
        """Count a call."""
        self._calls[call.function] += 1

    def calls_of(self, function: str) -> int:
        """Return how many calls of a function have ended since the service started."""
        return self._calls[function]

    def forget(self, function: str) -> None:
        """Drop the counts of a function that is deleted."""
        del self._calls[function]

    def text(self, fleet: Fleet) -> str:
        """Return everything in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(_Snapshot(fleet))
        return generate_latest(registry).decode()


class _Snapshot:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> list[Metric]:
        instances = GaugeMetricFamily(
            "pilotlight_instances", "Instances by function and state.", labels=["function", "state"]
        )
        counts = Counter((i.function, str(i.state)) for i in self._fleet.all())
        for (function, state), count in counts.items():
            instances.add_metric([function, state], count)
        starts = CounterMetricFamily("pilotlight_cold_starts", "Instances started.", self._fleet.started)
        failures = CounterMetricFamily(
            "pilotlight_failed_starts", "Instances that failed to start.", self._fleet.failed
        )
        return [instances, starts, failures]
