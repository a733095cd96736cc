"""Calls that were refused because too many wait: a few are told one by one, of a flood only how many.

Each told call costs a line of the log and one on the disk of the function service. A flood would take from
the calls that are answered what it costs to write down that others were not.
"""

import asyncio
import logging
from typing import Final

_log = logging.getLogger(__name__)

_SINGLY: Final = 10  # of each function, in each period
_PERIOD: Final = 1.0  # seconds


class Refusals:
    """Counts by function; sums up at the end of each period in which there were any."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def singly(self, function: str) -> bool:
        """Count a refused call; return whether it is to be told by itself."""
        count = self._counts[function] = self._counts.get(function, 0) + 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PERIOD, self._sum_up)
        return count <= _SINGLY

    def _sum_up(self) -> None:
        self._timer = None
        for function, count in self._counts.items():
            if count > _SINGLY:
                _log.info("action=calls-refused function=%s refused=%d told=%d", function, count, _SINGLY)
        self._counts.clear()

    def close(self) -> None:
        """Sum up what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._sum_up()
