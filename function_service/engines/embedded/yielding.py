"""Sandboxes that meet their CPU limit let all others go first, as long as the machine has time left over.

The limit stops a control group for the rest of each tenth of a second. When the next one begins, the
scheduler takes it for somebody who has waited, and lets it run for milliseconds before others that wake up
meanwhile: a call of 0.5 ms takes 5 then. A group that is idle (cpu.idle, Linux 5.15; SCHED_IDLE in sched(7))
gets what others leave, and makes none of them wait. So a sandbox that has met its limit is made idle, until
it has not met it for a while; it still gets all of its time, as there is some left over. Once there is none,
nobody is idle, and the scheduler shares out what there is.

What this was measured to do is in docs/RELIABILITY.md.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

TICK: Final = 0.05
"""Seconds between two looks, half of the period of a CPU limit; twice that while nobody meets one."""

HOLD: Final = 1.0
"""Seconds without its limit met, after which a group goes first again."""

_AT_ONCE: Final = 8  # groups that are looked at in a tick, so that many cost no more than that
_QUIET: Final = 0.01  # seconds of processor time in a tick, used by all that runs, below which nobody looks
_FULL: Final = 0.05  # of the machine's time; where less was left over, there is none


class Group(Protocol):
    """What is asked of a control group (see cgroup.Group)."""

    def limit_met(self) -> int:
        """Return how often its processes were stopped because they had used their CPU time."""
        ...

    def give_way(self) -> None:
        """Run only while nobody beside this group wants to."""
        ...

    def give_way_no_more(self) -> None:
        """Run like others again."""
        ...


class _Watched:
    def __init__(self, group: Group, function: str) -> None:
        self.group = group
        self.function = function
        self.met = group.limit_met()  # how often its limit was met
        self.since = 0.0  # when it was met last
        self.yields = False


class Yielding:
    """Looks after the groups of functions, and the one above them all, beside which the platform runs."""

    def __init__(self, above: Group, left_over: Callable[[], tuple[float, float]] | None = None) -> None:
        """`left_over` returns the moment, and for how many seconds processors had nothing to do by then.

        The moment is one of `time.monotonic`, the seconds are the sum of all processors.
        """
        self._above = above
        self._left_over = left_over or _left_over
        self._watched: dict[Group, _Watched] = {}
        self._round: list[_Watched] = []  # who is to be looked at before anybody is for the second time
        self._met: dict[str, float] = {}  # function → when one of its groups met its limit last
        self._some = asyncio.Event()

    def watch(self, group: Group, function: str) -> None:
        """Begin to look after a group, whose limit is set. What its function did before counts for it."""
        watched = self._watched[group] = _Watched(group, function)
        watched.since = self._met.get(function, 0.0)
        if watched.since:
            self._set(watched, yields=True)
        else:
            group.give_way_no_more()  # a service that was killed may have left it so
        self._some.set()

    def forget(self, group: Group) -> None:
        """Look after it no more: it is about to be removed."""
        watched = self._watched.pop(group, None)
        if watched is not None and watched.yields:
            self._tell_above()
        if not self._watched:
            self._some.clear()

    async def run(self) -> None:
        """Look after them until cancelled."""
        self._above.give_way_no_more()  # a former run may have left it so
        processors = os.cpu_count() or 1
        # Two ticks back, as those who meet their limit use nothing in one half of its period
        looks = deque([self._left_over()], maxlen=3)
        while True:
            await self._some.wait()
            await asyncio.sleep(TICK if self._met else 2 * TICK)
            looks.append(self._left_over())
            (before, idle_before), (now, idle) = looks[0], looks[-1]
            there = (now - before) * processors
            used = there - (idle - idle_before)
            if used > there * (1 - _FULL):
                self._met.clear()
                for each in self._watched.values():
                    self._set(each, yields=False)
            elif self._met or used > _QUIET:
                self._look(now)

    def _look(self, now: float) -> None:
        if not self._round:
            self._round = list(self._watched.values())
        some, self._round = self._round[:_AT_ONCE], self._round[_AT_ONCE:]
        self._met = {function: at for function, at in self._met.items() if now - at < HOLD}
        for each in {*some, *(each for each in self._watched.values() if each.yields)}:
            if each.group not in self._watched:
                continue
            met = each.group.limit_met()
            if met > each.met:
                each.met, each.since = met, now
                self._met[each.function] = now
            self._set(each, yields=now - each.since < HOLD)

    def _set(self, each: _Watched, *, yields: bool) -> None:
        if each.yields == yields:
            return
        each.yields = yields
        if yields:
            each.group.give_way()
        else:
            each.group.give_way_no_more()
        self._tell_above()

    def _tell_above(self) -> None:
        if any(each.yields for each in self._watched.values()):
            self._above.give_way()
        else:
            self._above.give_way_no_more()


def _left_over() -> tuple[float, float]:
    with open("/proc/uptime") as file:  # noqa: PTH123  twenty times a second
        return time.monotonic(), float(file.read().split()[1])  # proc(5)
