"""Replays a trace through a keep-alive policy, in simulated time.

A function counts as one instance, however many calls overlap, as in the papers. A call is warm when the code
is held at that moment or another call is under way, else it is cold, whatever lower layer was held. Wasted is
memory of code that is held while no call is under way. Blank sandboxes, which lower layers are, count for no
policy: all functions of a runtime share the few that the platform keeps, whichever policy it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from function_service.policies import Decision, Layer, Policy

if TYPE_CHECKING:
    from benchmarks.traces import Trace


@dataclass(frozen=True)
class Outcome:
    """What a policy did with a trace."""

    calls: int
    cold: int
    prepared: int  # of the cold ones, those that found the runtime held
    percentages: tuple[float, ...]  # of cold starts, by function, ascending
    wasted: float  # MB·s
    held: float  # functions whose code was held while they were idle, on average

    @property
    def total(self) -> float:
        """Percentage of calls that were cold."""
        return 100 * self.cold / max(1, self.calls)

    @property
    def mean(self) -> float:
        """Return the percentage of cold starts of the average function."""
        return sum(self.percentages) / max(1, len(self.percentages))

    def percentile(self, share: float) -> float:
        """Return the percentage of cold starts that so large a share of the functions does not exceed."""
        last = len(self.percentages) - 1
        return self.percentages[round(share * last)] if last >= 0 else 0.0


def replay(trace: Trace, policy: Policy) -> Outcome:
    """Replay a trace; every call is told to the policy before the next decision, and none earlier."""
    count = len(trace.names)
    histories = [policy.track(str(number), size) for number, size in enumerate(trace.memory)]
    decisions: list[Decision | None] = [None] * count
    idle_since = [0.0] * count
    calls, cold = [0] * count, [0] * count
    prepared, wasted, seconds = 0, 0.0, 0.0
    code = Layer.CODE

    def pay(number: int, decision: Decision, idle: float) -> None:
        nonlocal wasted, seconds
        whole = decision.held(idle)[Layer.CODE - 1]
        wasted += whole * trace.memory[number]
        seconds += whole

    for time, number, duration in zip(trace.times, trace.functions, trace.durations, strict=True):
        calls[number] += 1
        decision = decisions[number]
        idle = time - idle_since[number]
        if decision is None:
            cold[number] += 1
        elif idle > 0:
            pay(number, decision, idle)
            if (layer := decision.at(idle)) is not code:
                cold[number] += 1
                prepared += layer is Layer.RUNTIME
        ended = time + duration
        history = histories[number]
        history.record(time, ended)
        decisions[number] = history.decide(time)
        if decision is None or ended > idle_since[number]:
            idle_since[number] = ended
        for name in policy.evict(time):
            dropped = int(name)
            if (former := decisions[dropped]) is not None:
                pay(dropped, former, time - idle_since[dropped])
                decisions[dropped] = None
    for number, decision in enumerate(decisions):
        if decision is not None and trace.length > idle_since[number]:
            pay(number, decision, trace.length - idle_since[number])
    shares = sorted(100 * c / n for c, n in zip(cold, calls, strict=True) if n)
    return Outcome(sum(calls), sum(cold), prepared, tuple(shares), wasted, seconds / max(1.0, trace.length))
