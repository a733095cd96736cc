"""Keep-alive as caching: hold everything until memory is short, then drop what is worth least.

Source: Fuerst & Sharma, "FaasCache: Keeping Serverless Computing Alive with Greedy-Dual Caching", ASPLOS
2021, after Cherkasova's Greedy-Dual-Size-Frequency. The priority of a function is

    clock + frequency * cost / size

with the calls since it was last dropped, the cost of its cold start, and the memory of its instance. The
clock is the priority of what was dropped last, so that what is not called grows old.
"""

import heapq
import math

from function_service.policies.base import Decision, Layer, Step

_FOR_EVER = Decision((Step(0.0, Layer.CODE),))


class GreedyDual:
    """The policy, with a budget of memory in MB for all functions together."""

    @property
    def demotes(self) -> bool:
        """The source knows no layers."""
        return False

    def __init__(self, budget: float) -> None:
        if not (budget > 0 and math.isfinite(budget)):
            raise ValueError(f"a budget must be above 0 MB, not {budget}")
        self._budget = budget
        self._used = 0.0
        self._clock = 0.0
        self._held: dict[str, GreedyDualHistory] = {}
        self._queue: list[tuple[float, int, GreedyDualHistory]] = []  # stale entries are skipped
        self._turn = 0

    def track(self, function: str, size: float) -> "GreedyDualHistory":
        """Begin a history."""
        return GreedyDualHistory(self, function, size)

    def forget(self, function: str) -> None:
        """Give its memory back."""
        if (history := self._held.get(function)) is not None:
            self.drop(history)

    def hold(self, history: "GreedyDualHistory") -> None:
        """Count a function among the held ones, with a new priority."""
        if history.function not in self._held:
            self._held[history.function] = history
            self._used += history.size
        history.priority = self._clock + history.frequency * history.cost / history.size
        self._push(history)

    def _push(self, history: "GreedyDualHistory") -> None:
        self._turn += 1
        history.turn = self._turn
        heapq.heappush(self._queue, (history.priority, self._turn, history))

    def drop(self, history: "GreedyDualHistory") -> None:
        """Count a function among the held ones no more."""
        del self._held[history.function]
        self._used -= history.size
        history.frequency = 0
        history.turn = 0

    def evict(self, now: float) -> list[str]:
        """Name the idle functions with the lowest priorities, until the others fit into the budget."""
        dropped: list[str] = []
        busy: list[GreedyDualHistory] = []
        while self._used > self._budget and self._queue:
            priority, turn, history = heapq.heappop(self._queue)
            if turn != history.turn:
                continue
            if history.ended > now:
                busy.append(history)
                continue
            self._clock = max(self._clock, priority)
            self.drop(history)
            dropped.append(history.function)
        for history in busy:
            self._push(history)
        return dropped


class GreedyDualHistory:
    """How often one function was called since it was last dropped."""

    def __init__(self, policy: GreedyDual, function: str, size: float) -> None:
        self._policy = policy
        self.function = function
        self.size = max(size, 1e-6)
        self.cost = 1.0  # of a cold start; alike for all functions while nothing better is known
        self.frequency = 0
        self.priority = 0.0
        self.turn = 0  # of its present entry in the queue
        self.ended = -math.inf

    def record(self, started: float, ended: float) -> None:  # noqa: ARG002
        """Count a call; the function is held from now on."""
        self.frequency += 1
        self.ended = max(self.ended, ended)
        self._policy.hold(self)

    def decide(self, now: float) -> Decision:  # noqa: ARG002
        """Hold it until memory is short (see `GreedyDual.evict`)."""
        return _FOR_EVER
