"""What the builder counts, for /metrics."""

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from pilotlight.problems import Problem

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0)  # seconds


class Metrics:
    """The counters of one builder process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._builds = Counter(
            "pilotlight_builds",
            "Commits that were built, by how that ended",
            ["result"],
            registry=self._registry,
        )
        self._duration = Histogram(
            "pilotlight_build_duration_seconds",
            "From the begin of a build to the revisions that can go live, or to its end",
            ["result"],
            buckets=_BUCKETS,
            registry=self._registry,
        )

    @contextlib.contextmanager
    def build(self) -> Iterator[None]:
        """Count what is done within as one build.

        It is `rejected` where it ends by a Problem, and `broken-off` where the pusher goes or time runs out.
        """
        began = time.perf_counter()
        result = "broken-off"
        try:
            yield
            result = "succeeded"
        except Problem:
            result = "rejected"
            raise
        except Exception:
            result = "fault"
            raise
        finally:
            self._builds.labels(result).inc()
            self._duration.labels(result).observe(time.perf_counter() - began)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
