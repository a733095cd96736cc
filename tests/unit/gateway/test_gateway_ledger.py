"""Gateways that share a port: the metrics that one tells are those of all, and no sum goes down."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gateway.ledger import Ledger
from gateway.meter import Meter


def meter(folder: Path, number: int, gateways: int = 2, live: set[str] | None = None) -> Meter:
    ledger = Ledger(folder, number, gateways)
    return Meter(lambda: {"f": number}, lambda: {"f": (1, number)}, lambda: live, ledger)


def value(told: Meter, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(told)
    return registry.get_sample_value(name, labels)


def calls(told: Meter) -> float | None:
    return value(told, "pilotlight_calls_total", function="f", status="200", start="warm")


def test_whichever_is_asked_tells_the_sum(tmp_path: Path) -> None:
    one, other = meter(tmp_path, 1), meter(tmp_path, 2)
    for each, count in ((one, 3), (other, 4)):
        for _ in range(count):
            each.call("f", 200, "warm", 0.002)
        each.refusal("forbidden")
        each.write()
    for each in (one, other):
        assert calls(each) == 7
        histogram = "pilotlight_call_duration_seconds"
        assert value(each, f"{histogram}_count", function="f", start="warm") == 7
        assert value(each, f"{histogram}_sum", function="f", start="warm") == pytest.approx(0.014)
        assert value(each, f"{histogram}_bucket", function="f", start="warm", le="0.0025") == 7
        assert value(each, "pilotlight_refusals_total", kind="forbidden") == 2
        assert value(each, "pilotlight_queue_length", function="f") == 3
        assert value(each, "pilotlight_leases", function="f") == 2
        assert value(each, "pilotlight_calls_running", function="f") == 3


def test_what_one_has_told_the_other_tells_at_once(tmp_path: Path) -> None:
    one, other = meter(tmp_path, 1), meter(tmp_path, 2)
    one.call("f", 200, "warm", 0.1)
    assert calls(one) == 1
    assert calls(other) == 1


def test_a_successor_goes_on_from_what_was_told(tmp_path: Path) -> None:
    one, other = meter(tmp_path, 1), meter(tmp_path, 2)
    one.call("f", 200, "warm", 0.1)
    assert calls(one) == 1
    del one  # killed
    assert calls(other) == 1
    successor = meter(tmp_path, 1)
    assert calls(successor) == 1
    successor.call("f", 200, "warm", 0.1)
    assert calls(successor) == 2
    assert calls(other) == 2


def test_functions_that_are_gone_are_told_by_nobody(tmp_path: Path) -> None:
    one, other = meter(tmp_path, 1), meter(tmp_path, 2, live=set())
    one.call("f", 200, "warm", 0.1)
    one.write()
    assert calls(other) is None


def test_one_that_is_alone_writes_nothing(tmp_path: Path) -> None:
    alone = meter(tmp_path, 1, gateways=1)
    alone.call("f", 200, "warm", 0.1)
    assert calls(alone) == 1
    assert list(tmp_path.iterdir()) == []
