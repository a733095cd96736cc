"""What this service counts, for /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The counters of one baas process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pilotlight_data_requests",
            "Requests to the data API",
            ["method", "status"],
            registry=self.registry,
        )
        self.duration = Histogram(
            "pilotlight_data_seconds",
            "Time to answer a request to the data API",
            ["method"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=self.registry,
        )
        self.feeds = Gauge(
            "pilotlight_data_feeds",
            "Feeds of changes that are being read",
            registry=self.registry,
        )
        self.relayed = Counter(
            "pilotlight_relayed_calls",
            "Calls from functions to functions",
            ["status"],
            registry=self.registry,
        )
        self.egress = Counter(
            "pilotlight_egress_connections",
            "Connections that functions asked for, by outcome",
            ["outcome"],
            registry=self.registry,
        )
        self.listeners = Gauge(
            "pilotlight_granted_listeners",
            "Listeners inside of sandboxes that are served",
            ["kind"],
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
