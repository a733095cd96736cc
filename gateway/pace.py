"""How many calls may wait for a function, by how quickly those before them got their slot. No clock in here.

A queue that is longer than what can be answered in time helps nobody: its calls run out of time one by one,
and so do the new ones behind them, long after a flood has ended. A queue that has just come up is another
thing: a burst, which the next moment may have answered. Read `longest_queue` first.
"""

from collections import deque
from typing import Final

_KNOWN: Final = 8  # slots that must have been handed over before anything is concluded
_BURST: Final = 2.0  # seconds for which a queue may be a burst
_LATEST: Final = 32  # that count, so that a pace which has changed is soon the one that is known


class Pace:
    """The pace of one queue, as long as there is always somebody in it."""

    def __init__(self) -> None:
        self._handed: deque[float] = deque(maxlen=_LATEST)
        self._began = 0.0

    def handed(self, now: float) -> None:
        """Note that a call which had waited got its slot."""
        self._handed.append(now)

    def begin(self, now: float) -> None:
        """Begin anew: nobody waited any more, so times between two slots say nothing about the function."""
        self._handed.clear()
        self._began = now

    def is_burst(self, now: float) -> bool:
        """Tell whether the queue has come up so lately that it may be gone in a moment."""
        return now < self._began + _BURST

    def interval(self, now: float) -> float | None:
        """Return the seconds from one slot to the next, or None as long as that is not known.

        The time since the last one counts as well: a function that has come to a stop slows the pace.
        """
        if len(self._handed) < _KNOWN:
            return None
        return (now - self._handed[0]) / len(self._handed)


def longest_queue(interval: float, *, slots: int, wait: float, timeout: float) -> int:
    """Return how many calls may wait where one gets its slot every `interval` seconds.

    What the last of them will have to wait is to be at most `wait` seconds; or as long as one call takes,
    where that is longer, so that behind each of the `slots` one may wait; but no more than half of the
    timeout, which is for waiting and answering together. With a slot every 5 ms and a wait of a second, 200
    may wait.
    """
    seconds = min(max(wait, interval * slots), timeout / 2)
    return int(seconds / interval) if interval else 1 << 30
