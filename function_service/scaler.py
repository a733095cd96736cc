"""Which instances to start or end when nobody asks: decides, and does nothing itself."""

from collections.abc import Iterable
from dataclasses import dataclass

from function_service.instance import Instance, State
from function_service.policies import Decision, Layer

LEAD = 2.0  # seconds by which a pre-warmed instance is started too early rather than too late


@dataclass(frozen=True)
class Goal:
    """What the scaler must know of a live function."""

    revision: str
    minimum: int
    decision: Decision  # of the keep-alive policy
    idle: float | None  # seconds since its last call ended; None where it was not called yet
    evicted: bool = False  # the policy needs its memory now, whoever holds its instances


@dataclass(frozen=True)
class Actions:
    """What to do: how many instances to start by function, which to end, and which to take back first."""

    start: dict[str, int]
    end: tuple[Instance, ...]
    recall: tuple[Instance, ...] = ()


def decide(goals: dict[str, Goal], instances: Iterable[Instance], now: float) -> Actions:
    """Keep the minimum of each function, end what has been idle for too long, and pre-warm.

    The instance used last stands for the function, so its timetable runs from the function's last call: one
    that was pre-warmed has had none itself. The others go by their own idle time.
    `now` is on the steady clock, as what instances were used last; `goals` by function name.
    """
    current: dict[str, list[Instance]] = {name: [] for name in goals}
    end: list[Instance] = []
    recall: list[Instance] = []
    for instance in instances:
        goal = goals.get(instance.function)
        if goal is not None and goal.revision == instance.revision.id:
            if instance.state not in (State.DRAINING, State.ENDED):
                current[instance.function].append(instance)
        elif instance.state is State.IDLE:
            end.append(instance)
    start = {}
    for name, goal in goals.items():
        there = sorted(current[name], key=lambda i: i.last_used)
        if len(there) < goal.minimum:
            start[name] = goal.minimum - len(there)
        elif not there and goal.idle is not None and goal.decision.next_start(goal.idle) <= goal.idle + LEAD:
            start[name] = 1
        latest = there[-1] if there else None
        idle = [i for i in there if i.state is State.IDLE]
        spare = max(0, len(there) - goal.minimum)
        end += [i for i in idle if _is_over(goal, i, now, latest=i is latest)][:spare]
        if goal.evicted:
            recall += [i for i in there if i.state is State.LEASED][:spare]
    return Actions(start, tuple(end), tuple(recall))


def _is_over(goal: Goal, instance: Instance, now: float, *, latest: bool) -> bool:
    own = now - instance.last_used
    if not latest or goal.idle is None:
        return own >= goal.decision.hold
    # The report of a call that has just ended may still be under way; one that was pre-warmed had none
    idle = min(goal.idle, own) if State.LEASED in instance.history else goal.idle
    return goal.decision.at(idle) is not Layer.CODE and goal.decision.next_start(idle) > idle + LEAD
