"""The keep-alive policies: what each decides, and what none may do."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_service.policies import (
    NAMES,
    Decision,
    Ember,
    Fixed,
    GreedyDual,
    HybridHistogram,
    Layer,
    Step,
    choose,
)

MINUTE, HOUR = 60.0, 3600.0
gaps = st.lists(st.floats(0.01, 40 * HOUR), min_size=1, max_size=60)


def history(policy, idle_times, name="f", size=128.0):
    """Return the history of a function whose calls take 1 s and come after these idle times, and when it ended."""
    found = policy.track(name, size)
    now = 1000.0
    for idle in (0.0, *idle_times):
        now += idle
        found.record(now, now + 1)
        now += 1
    return found, now


def decided(policy, idle_times, **given_):
    found, now = history(policy, idle_times, **given_)
    return found.decide(now)


class TestDecision:
    def test_it_tells_the_layer_at_each_moment(self):
        decision = Decision(
            (Step(0, Layer.CODE), Step(5, Layer.RUNTIME), Step(9, Layer.CODE), Step(11, Layer.NOTHING))
        )
        assert [decision.at(idle) for idle in (0, 4.9, 5, 8.9, 9, 11, 1e9)] == [
            *(Layer.CODE, Layer.CODE, Layer.RUNTIME, Layer.RUNTIME, Layer.CODE, Layer.NOTHING, Layer.NOTHING)
        ]
        assert decision.held(10) == (0, 4, 6)
        assert decision.held(1e9) == (0, 4, 7)
        assert decision.hold == 5
        assert decision.next_start(0) == 9
        assert decision.next_start(9) == float("inf")

    def test_a_window_that_begins_later_holds_nothing_before(self):
        decision = Decision.window(60, 90)
        assert decision.hold == 0
        assert [decision.at(idle) for idle in (0, 59, 60, 89, 90)] == [0, 0, 3, 3, 0]

    @given(st.floats(0, 1e6), st.floats(0.1, 1e5), st.floats(0, 1e6), st.floats(0, 1e6))
    def test_more_idle_time_never_holds_less(self, begin, length, one, other):
        decision = Decision.window(begin, begin + length)
        short, long = sorted((one, other))
        assert decision.held(short) <= decision.held(long)
        assert sum(decision.held(long)) <= length * 1.001


@pytest.mark.parametrize("name", NAMES)
class TestEveryPolicy:
    @given(idle_times=gaps)
    def test_its_timetable_is_in_order_and_starts_at_once(self, name, idle_times):
        steps = decided(choose(name, 1000.0, 0.94), idle_times).steps
        assert steps[0].after == 0
        assert all(one.after < next_.after for one, next_ in pairwise(steps))

    @given(idle_times=gaps)
    def test_the_same_past_gives_the_same_decision(self, name, idle_times):
        assert decided(choose(name, 1000.0, 0.94), idle_times) == decided(
            choose(name, 1000.0, 0.94), idle_times
        )

    @given(idle_times=gaps, later=gaps)
    def test_what_comes_later_does_not_change_what_was_decided(self, name, idle_times, later):
        found, now = history(choose(name, 1000.0, 0.94), idle_times)
        before = found.decide(now)
        again, _ = history(choose(name, 1000.0, 0.94), idle_times)
        taken = again.decide(now)
        for idle in later:
            again.record(now + idle, now + idle + 1)
            now += idle + 1
        assert before == taken

    def test_calls_that_overlap_or_come_late_are_taken(self, name):
        found = choose(name, 1000.0, 0.94).track("f", 128.0)
        for started, ended in ((10, 100), (20, 30), (5, 6), (101, 102)):
            found.record(started, ended)
        assert found.decide(102.0).steps


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="there are ember, fixed, histogram, greedy-dual"):
        choose("eternal", 1.0, 0.94)


def test_fixed_keeps_for_its_time_whatever_comes():
    assert decided(Fixed(300), [1, 5000, 3]) == Decision.window(0, 300)


class TestHistogram:
    def test_a_timer_is_ended_and_loaded_again_before_its_time(self):
        decision = decided(HybridHistogram(), [30 * MINUTE] * 20)
        assert decision == Decision.window(30 * MINUTE * 0.9, 31 * MINUTE * 1.1)

    def test_idle_times_below_a_minute_unload_nothing(self):
        assert decided(HybridHistogram(), [5.0] * 99 + [150.0]) == Decision.window(0.0, MINUTE * 1.1)

    def test_the_tail_is_where_99_percent_have_come(self):
        assert decided(HybridHistogram(), [5.0] * 97 + [150.0] * 3).hold == pytest.approx(3 * MINUTE * 1.1)

    def test_a_flat_histogram_keeps_for_the_whole_range(self):
        idle_times = [(place + 0.5) * MINUTE for place in range(240)]
        assert decided(HybridHistogram(), idle_times) == Decision.window(0.0, 4 * HOUR)

    def test_what_is_mostly_out_of_bounds_is_forecast(self):
        decision = decided(HybridHistogram(), [5 * HOUR] * 10)
        assert decision.steps[1].after == pytest.approx(4.25 * HOUR)
        assert decision.steps[2].after == pytest.approx(5.75 * HOUR)

    def test_nothing_known_keeps_for_the_whole_range(self):
        assert decided(HybridHistogram(), []).hold == 4 * HOUR


class TestGreedyDual:
    def test_all_stays_while_it_fits(self):
        policy = GreedyDual(300)
        for name in ("a", "b"):
            _, now = history(policy, [1], name, 128)
        assert policy.evict(now) == []

    def test_what_is_called_least_and_takes_most_goes_first(self):
        policy = GreedyDual(300)
        history(policy, [1] * 9, "often", 128)
        history(policy, [1] * 2, "small", 16)
        history(policy, [1] * 2, "large", 150)
        history(policy, [1] * 4, "new", 100)
        assert policy.evict(2000.0) == ["large"]  # 3 / 150 is least
        assert policy.evict(2000.0) == []

    def test_a_busy_function_stays_although_it_is_worth_least(self):
        policy = GreedyDual(200)
        busy = policy.track("busy", 150)
        busy.record(0.0, 1e6)
        history(policy, [1] * 9, "idle", 150)
        assert policy.evict(2000.0) == ["idle"]
        assert policy.evict(2000.0) == []

    def test_what_is_not_called_grows_old(self):
        policy = GreedyDual(250)
        history(policy, [1] * 50, "famous", 128)
        gone = []
        for number in range(200):
            _, now = history(policy, [], f"new-{number}", 128)
            gone += policy.evict(now + HOUR)
        assert "famous" in gone

    def test_a_function_that_is_deleted_gives_its_memory_back(self):
        policy = GreedyDual(150)
        history(policy, [1], "a", 128)
        policy.forget("a")
        _, now = history(policy, [1], "b", 128)
        assert policy.evict(now) == []

    def test_a_budget_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="above 0 MB"):
            GreedyDual(0)


class TestEmber:
    def test_a_timer_is_held_only_around_its_time(self):
        found, now = history(Ember(), [30 * MINUTE] * 20)
        found._policy.price = 2e-4  # with one function alone there is memory to spare, and it would fall
        decision = found.decide(now)
        assert decision.at(30 * MINUTE) is Layer.CODE
        assert decision.at(20 * MINUTE) is not Layer.CODE
        assert decision.held(29 * MINUTE)[2] < 60
        assert decision.held(40 * MINUTE)[2] < 426, "no longer than the histogram holds it"

    def test_a_function_that_is_called_all_the_time_stays(self):
        dice = random.Random(1)
        decision = decided(Ember(), [dice.expovariate(1 / 20) for _ in range(200)])
        assert decision.hold > 60

    def test_layers_demote_one_after_the_other(self):
        layers = [step.layer for step in decided(Ember(), [20.0] * 50).steps]
        assert layers[0] is Layer.CODE
        assert Layer.RUNTIME in layers
        assert layers[-1] is Layer.NOTHING

    def test_a_higher_price_never_holds_longer(self):
        dice = random.Random(2)
        found, now = history(Ember(), [dice.lognormvariate(4, 2) for _ in range(80)])
        policy = found._policy
        held = []
        for price in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
            policy.price = price
            held.append(found.decide(now).held(10 * HOUR)[2])
        assert held == sorted(held, reverse=True)
        assert held[0] > held[-1]

    def test_of_two_alike_the_smaller_one_is_kept_longer(self):
        dice = random.Random(3)
        idle_times = [dice.lognormvariate(4, 2) for _ in range(80)]
        policy = Ember()
        small, now = history(policy, idle_times, "small", 32)
        large, _ = history(policy, idle_times, "large", 1024)
        assert small.decide(now).held(HOUR)[2] > large.decide(now).held(HOUR)[2]

    def test_without_lower_layers_it_decides_about_the_code_only(self):
        policy = Ember(tiers=())
        assert not policy.demotes
        assert {step.layer for step in decided(policy, [20.0] * 50).steps} <= {Layer.CODE, Layer.NOTHING}

    def test_very_many_calls_do_not_overflow(self):
        decision = decided(Ember(half_life=5.0), [10.0] * 2000)
        assert decision.at(10) is Layer.CODE
