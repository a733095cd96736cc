"""What the function service counts, for Prometheus."""

from collections import Counter

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from function_service.contract import Layer, Stages, Usage
from function_service.fleet import Fleet

_STAGE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)  # seconds
_STEP_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)  # seconds


class Metrics:
    """Counts what happens; how things stand is read from the fleet and the layers when asked."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._registry = CollectorRegistry()
        self._stages = Histogram(
            "pilotlight_cold_start_stage_seconds",
            "What each stage of a cold start took; 0 where it came out of a cache.",
            ["stage", "runtime"],
            buckets=_STAGE_BUCKETS,
            registry=self._registry,
        )
        self._lookups = PrometheusCounter(
            "pilotlight_layer_cache_lookups",
            "Layers that a build asked for, by whether they were there.",
            ["result"],
            registry=self._registry,
        )
        self._takes = PrometheusCounter(
            "pilotlight_pool_takes",
            "Sandboxes that starts asked for, by kind, and whether one waited.",
            ["kind", "result"],
            registry=self._registry,
        )
        self._steps = Histogram(
            "pilotlight_build_step_seconds",
            "Steps of builds, by how they ended.",
            ["result"],
            buckets=_STEP_BUCKETS,
            registry=self._registry,
        )

    def started(self, runtime: str, stages: Stages) -> None:
        """Take a cold start into account."""
        for stage in ("container", "runtime", "code"):
            self._stages.labels(stage, runtime).observe(getattr(stages, stage) / 1000)

    def took(self, kind: str, hit: bool) -> None:
        """Count what a start found in the pool."""
        self._takes.labels(kind, "hit" if hit else "miss").inc()

    def looked_up(self, *, found: bool) -> None:
        """Count a look into the layer cache."""
        self._lookups.labels("hit" if found else "miss").inc()

    def built(self, seconds: float, *, succeeded: bool) -> None:
        """Take a step of a build into account."""
        self._steps.labels("succeeded" if succeeded else "failed").observe(seconds)

    def call(self, call: Usage) -> None:
        """Count a call."""
        self._calls[call.function] += 1

    def calls_of(self, function: str) -> int:
        """Return how many calls of a function have ended since the service started."""
        return self._calls[function]

    def forget(self, function: str) -> None:
        """Drop the counts of a function that is deleted."""
        del self._calls[function]

    def text(self, fleet: Fleet, layers: list[Layer]) -> str:
        """Return everything in Prometheus' text format."""
        present = CollectorRegistry()
        present.register(_Present(fleet, layers))
        return generate_latest(self._registry).decode() + generate_latest(present).decode()


class _Present:
    def __init__(self, fleet: Fleet, layers: list[Layer]) -> None:
        self._fleet = fleet
        self._layers = layers

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
        size = GaugeMetricFamily("pilotlight_layer_cache_bytes", "Layers on the disk.", labels=["kind"])
        bytes_of: Counter[str] = Counter()
        for layer in self._layers:
            bytes_of[layer.kind] += layer.size
        for kind, count in bytes_of.items():
            size.add_metric([kind], count)
        return [instances, starts, failures, size]
