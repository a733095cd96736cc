"""One instance, and the states it goes through."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from function_service.contract import Revision, Stages
from function_service.engines.base import End, Sandbox
from pilotlight.rpc import Peer

_LAST_LINES = 20


class State(StrEnum):
    """Where an instance is in its life."""

    STARTING = "starting"  # its code is being loaded
    IDLE = "idle"  # ready, and nobody holds a lease
    LEASED = "leased"  # a gateway may send calls
    DRAINING = "draining"  # leased, but recalled: it ends when it is released
    ENDED = "ended"  # dead, or being killed


_TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.STARTING: frozenset({State.IDLE, State.ENDED}),
    State.IDLE: frozenset({State.LEASED, State.ENDED}),
    State.LEASED: frozenset({State.IDLE, State.DRAINING, State.ENDED}),
    State.DRAINING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}


@dataclass(eq=False)
class Instance:
    """A sandbox with a revision's code in it. Its lease, if any, has the same id."""

    sandbox: Sandbox
    revision: Revision
    created: float  # seconds since the epoch
    stages: Stages
    last_used: float  # on the steady clock (pilotlight/clock.py)
    holder: Peer | None = None  # the gateway that has the lease
    reason: str = ""  # why it was ended
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))  # what it printed last
    history: list[State] = field(default_factory=lambda: [State.STARTING])
    collector: asyncio.Task[None] | None = None  # reads what it prints; ends with it
    ending: asyncio.Task[None] | None = None  # kills it, from the moment it is ended

    @property
    def id(self) -> str:
        """Its name."""
        return self.sandbox.id

    @property
    def state(self) -> State:
        """Where it is now."""
        return self.history[-1]

    @property
    def function(self) -> str:
        """The function's name."""
        return self.revision.config.name

    def become(self, state: State) -> None:
        """Go on to a state. Raises RuntimeError, with the history, for a step that can't be."""
        if state not in _TRANSITIONS[self.state]:
            way = " → ".join(self.history)
            raise RuntimeError(f"instance {self.id} can't become {state}: it went {way}")
        self.history.append(state)
        del self.history[1:-8]

    async def last_words(self, wait: float) -> list[str]:
        """Return the last lines that it printed; when it is dead, after they have been read."""
        if self.collector is not None:
            await asyncio.wait([self.collector], timeout=wait)
        return list(self.tail)

    @property
    def can_serve(self) -> bool:
        """Whether a gateway may be given a lease."""
        return self.state is State.IDLE

    @property
    def held(self) -> bool:
        """Whether a gateway has it."""
        return self.state in (State.LEASED, State.DRAINING)


def explain(end: End, memory: int) -> tuple[str, str]:
    """Return (problem kind, detail) for a process that ended on its own. `memory` is its limit in bytes."""
    limit = f"{memory >> 20} MB"
    if end.out_of_memory:
        peak = f" (it had reached {end.memory_peak >> 20} MB)" if end.memory_peak else ""
        return "out-of-memory", (
            f"The function was killed because it needed more than its memory limit of {limit}{peak}. "
            "Use less, or raise `memory` in pilotlight.toml."
        )
    if end.signal is not None:
        return "crashed", f"The function's process was killed by signal {end.signal}."
    if end.code is None:
        return "crashed", "The function's process ended, and how is not known: its service was restarted."
    if end.code > 128:
        return "crashed", f"The function's process was killed by signal {end.code - 128}."
    return "crashed", f"The function's process exited with code {end.code}."
