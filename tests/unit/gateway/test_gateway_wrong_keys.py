"""Wrong keys at speed: a burst is let through, then one a second, each address by itself."""

import pytest

from gateway.wrong_keys import WrongKeys
from pilotlight.problems import Problem


def allowed(wrong: WrongKeys, address: str, now: float) -> bool:
    try:
        wrong.tried(address, now)
    except Problem:
        return False
    return True


def test_ten_at_once_then_one_a_second() -> None:
    wrong = WrongKeys()
    assert sum(allowed(wrong, "192.0.2.1", 5.0) for _ in range(50)) == 10
    assert [allowed(wrong, "192.0.2.1", 5.0 + step / 2) for step in range(1, 7)] == [False, True] * 3
    assert sum(allowed(wrong, "192.0.2.1", 1000.0) for _ in range(50)) == 10


def test_trying_on_does_not_put_the_next_chance_off() -> None:
    wrong = WrongKeys()
    results = [allowed(wrong, "192.0.2.1", tenth / 10) for tenth in range(200)]
    assert 28 <= sum(results) <= 30


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2", True),
        ("unknown", "unknown", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    wrong = WrongKeys()
    assert sum(allowed(wrong, one, 0.0) for _ in range(20)) == 10
    assert allowed(wrong, other, 0.0) is not same


def test_the_table_is_bounded_and_forgets_the_oldest() -> None:
    wrong = WrongKeys()
    for number in range(20_000):
        assert allowed(wrong, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
    assert len(wrong._buckets) == 4096
