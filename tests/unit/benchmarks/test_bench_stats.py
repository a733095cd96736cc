"""The statistics of the laboratory: what is known of them in closed form, and what must hold for any values."""

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import stats
from benchmarks.stats import Estimate

numbers = st.integers(1, 1_000_000)


def chance() -> random.Random:
    return random.Random(1)


def test_percentiles_lie_between_neighbours_in_proportion():
    assert stats.percentile([3, 1, 2], 0.5) == 2
    assert stats.percentile([0, 10], 0.95) == pytest.approx(9.5)
    assert stats.percentile([7], 0.99) == 7


@settings(max_examples=40)
@given(st.lists(numbers, min_size=1, max_size=40))
def test_the_interval_holds_the_median_and_lies_within_the_values(values):
    found = stats.median(values, chance())
    assert found.value == statistics.median(values)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


def test_equal_values_leave_no_doubt():
    assert stats.median([5.0] * 9, chance()) == Estimate(5.0, 5.0, 5.0)
    assert stats.ratio([5.0] * 9, [2.0] * 4, chance()) == Estimate(2.5, 2.5, 2.5)


@pytest.mark.parametrize("size", [20, 21])
def test_medians_are_resampled_as_by_drawing_with_replacement(size):
    source = random.Random(7)
    values = [source.lognormvariate(0, 1) for _ in range(size)]
    drawn = [statistics.median(source.choices(values, k=size)) for _ in range(4000)]
    found = stats.median(values, chance())
    spread = max(values) - min(values)
    assert found.low == pytest.approx(stats.percentile(drawn, 0.025), abs=0.05 * spread)
    assert found.high == pytest.approx(stats.percentile(drawn, 0.975), abs=0.05 * spread)


def test_the_interval_holds_the_true_median_about_as_often_as_it_says():
    source = random.Random(3)
    held = 0
    for _ in range(200):
        found = stats.median([source.gauss(10, 1) for _ in range(25)], source)
        held += found.low <= 10 <= found.high
    assert held >= 180


def test_more_values_make_the_interval_narrower():
    source = random.Random(5)
    few = [source.gauss(10, 1) for _ in range(20)]
    many = [source.gauss(10, 1) for _ in range(2000)]
    wide, narrow = stats.median(few, chance()), stats.median(many, chance())
    assert narrow.high - narrow.low < (wide.high - wide.low) / 3


def test_a_ratio_to_nothing_is_infinite():
    assert stats.ratio([1.0], [0.0], chance()).value == float("inf")


def test_intervals_overlap_where_they_touch():
    assert Estimate(1, 0, 2).overlaps(Estimate(3, 2, 4))
    assert not Estimate(1, 0, 2).overlaps(Estimate(4, 3, 5))
