"""What is held of each live function while nobody calls it: its history, its policy, and what they decide.

The platform's policy decides for all functions, but for those whose manifest names a duration; for these it
still decides how long a blank sandbox of their runtime waits. `scaler.py` turns decisions into actions.
"""

import math
from dataclasses import dataclass

from function_service import interpreters
from function_service.contract import Revision
from function_service.policies import Decision, Fixed, History, Layer, Policy
from function_service.scaler import LEAD, Goal

_SNAPSHOT = 900.0  # seconds without a call that a snapshot stays under a policy which knows no layers
_NEVER_CALLED = Decision.window(0.0, 60.0)  # for an instance that was started and then not needed


@dataclass
class _Function:
    history: History
    since: float  # when its last call ended, or when it became known
    called: bool = False
    evicted: bool = False
    wake: float = math.inf  # when an instance is to be pre-warmed next


class Keeper:
    """The histories of the live functions. All moments are of one clock that does not step."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._revisions: dict[str, Revision] = {}  # the live ones
        self._minimums: set[str] = set()  # functions of which some instances always run
        self._functions: dict[str, _Function] = {}  # in the order of their last calls
        self._waking: set[str] = set()  # functions that are to be pre-warmed some time

    def live(self, revisions: list[Revision], now: float) -> None:
        """Take the live revisions over: forget functions that are no more, and begin with new ones."""
        self._revisions = {revision.config.name: revision for revision in revisions}
        self._minimums = {name for name, r in self._revisions.items() if r.config.min_instances}
        for name in self._functions.keys() - self._revisions.keys():
            del self._functions[name]
            self._waking.discard(name)
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
        self._functions[function] = self._functions.pop(function)  # to the end
        known.history.record(started, ended)
        # The first one may have ended before the function became known, such as before a restart
        known.since = max(known.since, ended) if known.called else ended
        known.called, known.evicted = True, False
        self._wake(function, known, known.since + known.history.decide(ended).next_start(0.0))

    def _wake(self, function: str, known: _Function, at: float) -> None:
        known.wake = at
        if at == math.inf:
            self._waking.discard(function)
        else:
            self._waking.add(function)

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

    def goals(self, running: set[str], now: float) -> dict[str, Goal]:
        """Return what the scaler must know, by function, of those where there may be something to do.

        These are the ones with instances (`running`), with a minimum, and those to be pre-warmed. With a
        thousand functions that nobody calls there is nothing to do, and none of them is even looked at.
        """
        for name in self._policy.evict(now):
            self._functions[name].evicted = True
        due = {name for name in self._waking if self._functions[name].wake <= now + LEAD}
        names = due | self._minimums | (running & self._revisions.keys())
        return {name: self._goal(self._revisions[name], now) for name in names}

    def goal(self, function: str, now: float) -> dict[str, Goal]:
        """Return the same for one function alone; nothing where it is not live."""
        revision = self._revisions.get(function)
        return {} if revision is None else {function: self._goal(revision, now)}

    def _goal(self, revision: Revision, now: float) -> Goal:
        known = self._of(revision, now)
        decision = self._decision(revision, now)
        if now > known.wake:
            self._wake(revision.config.name, known, known.since + decision.next_start(now - known.since))
        idle = max(0.0, now - known.since) if known.called else None
        return Goal(revision.id, revision.config.min_instances, decision, idle, known.evicted)

    def runtimes(self, now: float) -> set[str]:
        """Return the keys of the interpreters (see Interpreter) of which blank sandboxes shall wait.

        A policy that knows no layers leaves that to the platform, which keeps them for all live functions.
        One function that is worth a sandbox is enough for all of its runtime, and the one called last is the
        likeliest, so others are not looked at as a rule.
        """
        if not self._policy.demotes:
            return {interpreters.key(revision) for revision in self._revisions.values()}
        held: set[str] = set()
        for name in reversed(self._functions):
            revision = self._revisions.get(name)
            if (
                revision
                and interpreters.key(revision) not in held
                and self._holds(self._functions[name], now)
            ):
                held.add(interpreters.key(revision))
        return held

    def _holds(self, known: _Function, now: float) -> bool:
        return known.history.decide(now).at(max(0.0, now - known.since)) >= Layer.RUNTIME

    def is_worth_a_snapshot(self, function: str, used: float, now: float) -> bool:
        """Tell whether a snapshot of a function shall stay; `used` is when an instance was last made of it.

        It stands between the code and the runtime, so it stays while the policy holds either, now or later. A
        policy that knows no layers says nothing about the time after the code; a snapshot then stays a while.
        """
        known = self._functions.get(function)
        if known is None:
            return False
        idle = max(0.0, now - max(known.since, used))  # the call that it was used for may still be under way
        if not self._policy.demotes:
            return idle < _SNAPSHOT or known.history.decide(now).ahead(idle) is Layer.CODE
        return known.history.decide(now).ahead(idle) >= Layer.RUNTIME
