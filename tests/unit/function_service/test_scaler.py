"""What the scaler starts and ends, and what the keeper tells it."""

import pytest

from function_service import scaler
from function_service.contract import FunctionConfig, Revision
from function_service.instance import Instance, State
from function_service.keeper import Keeper
from function_service.policies import Decision, Ember, Fixed, GreedyDual, HybridHistogram, Layer, Step
from function_service.scaler import Goal
from tests.fakes.sandboxes import sandbox

NOW = 10_000.0
TEN_MINUTES = Decision.window(0, 600)
TIMER = Decision.window(3500, 3700)


def revision(name="f", **config):
    return Revision(
        id=f"{name}-1", app="a", config=FunctionConfig(name=name, runtime="python3.11", handler="h", **config),
        code="c", commit="d", created=0.0,
    )  # fmt: skip


def instance(used: float, *states: State, name="f") -> Instance:
    """Return an instance that was used last so many seconds ago."""
    found = Instance(sandbox(), revision(name), NOW - used, None, NOW - used)
    for state in states or (State.IDLE, State.LEASED, State.IDLE):
        found.become(state)
    return found


def decide(goal, *instances):
    return scaler.decide({"f": goal}, instances, NOW)


def goal(decision=TEN_MINUTES, *, idle: float | None = 0.0, minimum=0, revision="f-1"):
    return Goal(revision, minimum, decision, idle)


def test_an_instance_stays_for_its_time_and_ends_then():
    assert decide(goal(idle=599), instance(599)).end == ()
    assert len(decide(goal(idle=601), instance(601)).end) == 1


def test_instances_beyond_the_latest_go_by_their_own_idle_time():
    surplus, latest = instance(601), instance(5)
    assert decide(goal(idle=5), surplus, latest).end == (surplus,)


def test_the_minimum_stays_and_is_started():
    actions = decide(goal(idle=1e6, minimum=1), instance(1e6))
    assert actions == scaler.Actions({}, ())
    assert decide(goal(idle=1e6, minimum=2), instance(1e6)).start == {"f": 1}


def test_an_instance_is_started_just_before_its_window():
    assert decide(goal(TIMER, idle=3490)).start == {}
    assert decide(goal(TIMER, idle=3499)).start == {"f": 1}


def test_only_the_beginning_of_a_window_starts_an_instance():
    """One that was ended within its window, as by an operator, does not come back at once."""
    assert decide(goal(TIMER, idle=3600)).start == {}


def test_one_is_enough():
    assert decide(goal(TIMER, idle=3499), instance(3, State.IDLE)).start == {}


@pytest.mark.parametrize(("idle", "ends"), [(3499, False), (3600, False), (3701, True)])
def test_a_prewarmed_instance_stays_for_the_window(idle, ends):
    prewarmed = instance(max(1, idle - 3498), State.IDLE)
    assert bool(decide(goal(TIMER, idle=idle), prewarmed).end) is ends


def test_one_whose_call_is_not_reported_yet_goes_by_its_own_time():
    assert decide(goal(idle=5000), instance(3)).end == ()


def test_an_instance_of_another_revision_ends():
    assert len(decide(goal(revision="f-2"), instance(1)).end) == 1


def test_leased_instances_are_left_alone():
    leased = instance(1e6, State.IDLE, State.LEASED)
    assert decide(goal(idle=1e6), leased) == scaler.Actions({}, ())


def test_leased_instances_of_an_evicted_function_are_taken_back_down_to_the_minimum():
    nothing = Decision.window(0, 0)
    leased = [instance(used, State.IDLE, State.LEASED) for used in (9, 5)]
    assert decide(Goal("f-1", 0, nothing, 5.0, evicted=True), *leased).recall == tuple(leased)
    assert decide(Goal("f-1", 1, nothing, 5.0, evicted=True), *leased).recall == tuple(leased[:1])


def keeper(policy, *revisions):
    made = Keeper(policy)
    made.live(list(revisions), NOW)
    return made


def test_a_duration_in_the_manifest_wins_over_the_policy():
    own = revision(keep_alive=7.0)
    assert keeper(Fixed(600), own).hold(own, NOW) == 7


def test_a_function_that_nobody_calls_takes_no_work():
    quiet = keeper(Ember(), revision())
    assert quiet.goals(set(), NOW) == {}
    assert quiet.goals({"f"}, NOW).keys() == {"f"}


def test_a_function_is_looked_at_when_it_is_to_be_prewarmed():
    made, now = keeper(HybridHistogram(), revision()), NOW
    for _ in range(10):
        now += 1800
        made.record("f", now, now)
    assert made.goals(set(), now + 1600) == {}
    found = made.goals(set(), now + 1619)["f"]
    assert scaler.decide({"f": found}, [], now + 1619).start == {"f": 1}


def test_what_is_evicted_is_held_no_more_until_it_is_called():
    functions = [revision("a"), revision("b")]
    made = keeper(GreedyDual(150), *functions)
    made.record("a", NOW, NOW + 1)
    made.record("b", NOW, NOW + 1)
    made.record("b", NOW + 2, NOW + 3)
    goals = made.goals({"a", "b"}, NOW + 4)
    assert (goals["a"].decision.hold, goals["b"].decision.hold) == (0, float("inf"))
    made.record("a", NOW + 5, NOW + 6)
    assert made.hold(functions[0], NOW + 7) == float("inf")


def test_a_function_that_is_deleted_is_forgotten():
    made = keeper(Ember(), revision())
    made.live([], NOW)
    made.record("f", NOW, NOW)
    assert made.goals(set(), NOW) == {}


def test_blank_sandboxes_wait_while_a_function_is_worth_one():
    made = keeper(Ember(), revision())
    assert made.runtimes(NOW) == {"python3.11"}
    assert made.runtimes(NOW + 1e6) == set()


def test_a_policy_without_layers_leaves_blank_sandboxes_waiting():
    assert keeper(Fixed(600), revision()).runtimes(NOW + 1e6) == {"python3.11"}


def test_layers_are_ordered():
    decision = Decision(
        (Step(0, Layer.CODE), Step(1, Layer.RUNTIME), Step(2, Layer.CONTAINER), Step(3, Layer.NOTHING))
    )
    assert [decision.at(idle) for idle in range(4)] == sorted(Layer, reverse=True)
