"""Which instances to start or end when nobody asks: decides, and does nothing itself."""

from collections.abc import Iterable
from dataclasses import dataclass

from function_service.instance import Instance, State


@dataclass(frozen=True)
class Goal:
    """What the scaler must know of a live function."""

    revision: str
    minimum: int
    keep_alive: float  # seconds


@dataclass(frozen=True)
class Actions:
    """What to do: how many instances to start by function, and which to end."""

    start: dict[str, int]
    end: tuple[Instance, ...]


def decide(goals: dict[str, Goal], instances: Iterable[Instance], now: float) -> Actions:
    """Keep the minimum of each function, and end what has been idle for too long.

    `now` is in seconds since the epoch; `goals` by function name.
    """
    current: dict[str, list[Instance]] = {name: [] for name in goals}
    end: list[Instance] = []
    for instance in instances:
        goal = goals.get(instance.function)
        if goal is not None and goal.revision == instance.revision.id:
            if instance.state not in (State.DRAINING, State.ENDED):
                current[instance.function].append(instance)
        elif instance.state is State.IDLE:
            end.append(instance)
    start = {}
    for name, goal in goals.items():
        there = current[name]
        spare = len(there) - goal.minimum
        if spare < 0:
            start[name] = -spare
        idle = sorted((i for i in there if i.state is State.IDLE), key=lambda i: i.last_used)
        end += [i for i in idle[: max(0, spare)] if now - i.last_used >= goal.keep_alive]
    return Actions(start, tuple(end))
