"""What is held of each live function while nobody calls it: its history, its policy, and what they decide.

The platform's policy decides for all functions, but for those whose manifest names a duration; for these it
still decides how long a blank sandbox of their runtime waits. `scaler.py` turns decisions into actions.
"""

import math
from dataclasses import dataclass

from function_service.contract import Revision
from function_service.policies import Decision, Fixed, History, Layer, Policy
from function_service.scaler import LEAD, Goal

_NEVER_CALLED = Decision.window(0.0, 60.0)  # for an instance that was started and then not needed


@dataclass
class _Function:
    history: History
    since: float  # when its last call ended, or when it became known
    called: bool = False
    evicted: bool = False
    wake: float = math.inf  # when an instance is to be pre-warmed next


class Keeper:
    """The histories of the live functions. All moments are in seconds since the epoch."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._functions: dict[str, _Function] = {}

    def live(self, revisions: list[Revision], now: float) -> None:
        """Forget functions that are live no more, and begin with new ones."""
        for name in self._functions.keys() - {r.config.name for r in revisions}:
            del self._functions[name]
            self._policy.forget(name)
        for revision in revisions:
            self._of(revision, now)

    def _of(self, revision: Revision, now: float) -> _Function:
        """Return what is known of a function. It may have become live this moment."""
        name = revision.config.name
        if name not in self._functions:
            history = self._policy.track(name, revision.config.memory / (1 << 20))
            self._functions[name] = _Function(history, now)
        return self._functions[name]

    def record(self, function: str, started: float, ended: float) -> None:
        """Take a call into account that has ended. One of a deleted function tells nothing."""
        if (known := self._functions.get(function)) is None:
            return
        known.history.record(started, ended)
        known.since = max(known.since, ended)
        known.called, known.evicted = True, False
        known.wake = known.since + known.history.decide(ended).next_start(0.0)

    def _decision(self, revision: Revision, now: float) -> Decision:
        """Return what is held of the code."""
        if revision.config.keep_alive is not None:
            return Fixed(revision.config.keep_alive).decide(now)
        known = self._of(revision, now)
        if known.evicted:
            return Decision.window(0.0, 0.0)
        return known.history.decide(now) if known.called else _NEVER_CALLED

    def hold(self, revision: Revision, now: float) -> float:
        """Return for how many seconds after its last call an instance stays."""
        return self._decision(revision, now).hold

    def goals(self, revisions: list[Revision], running: set[str], now: float) -> dict[str, Goal]:
        """Return what the scaler must know, by function, of those where there may be something to do.

        These are the ones with instances (`running`), with a minimum, and those to be pre-warmed. With a
        thousand functions that nobody calls there is next to nothing to do.
        """
        for name in self._policy.evict(now):
            self._functions[name].evicted = True
        goals = {}
        for revision in revisions:
            name, minimum = revision.config.name, revision.config.min_instances
            known = self._of(revision, now)
            if name not in running and not minimum and now + LEAD < known.wake:
                continue
            decision = self._decision(revision, now)
            idle = max(0.0, now - known.since) if known.called else None
            goals[name] = Goal(revision.id, minimum, decision, idle, known.evicted)
            if now > known.wake:
                known.wake = known.since + decision.next_start(now - known.since)
        return goals

    def runtimes(self, revisions: list[Revision], now: float) -> set[str]:
        """Return the runtimes of which blank sandboxes shall wait.

        A policy that knows no layers leaves that to the platform, which keeps them for all live functions.
        """
        return {r.config.runtime for r in revisions if not self._policy.demotes or self._holds(r, now)}

    def _holds(self, revision: Revision, now: float) -> bool:
        known = self._of(revision, now)
        return known.history.decide(now).at(max(0.0, now - known.since)) >= Layer.RUNTIME
