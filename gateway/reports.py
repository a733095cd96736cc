"""Tells the function service about calls that have ended, in batches."""

import asyncio
import logging

from function_service.contract import Invocations, Usage
from gateway.meter import Meter
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)
_INTERVAL = 1.0  # seconds
_WITHIN = 5.0  # seconds
_MOST = 50_000  # calls that are kept while the function service does not answer


class Reports:
    """Collects calls that ended. It keeps a bounded number; the metrics tell how many were dropped."""

    def __init__(self, invocations: Invocations, meter: Meter) -> None:
        self._invocations = invocations
        self._meter = meter
        self._ended: list[Usage] = []

    def add(self, usage: Usage) -> None:
        """Note a call that ended."""
        if len(self._ended) < _MOST:
            self._ended.append(usage)
        else:
            self._meter.reports_dropped += 1

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            await self.flush()

    async def flush(self) -> None:
        """Report what has been collected. It is kept for the next time where that fails."""
        batch, self._ended = self._ended, []
        if not batch:
            return
        try:
            async with asyncio.timeout(_WITHIN):
                await self._invocations.report(batch)
        except (Problem, TimeoutError) as error:
            _log.warning("action=report-failed calls=%d error=%r", len(batch), error)
            kept = (batch + self._ended)[:_MOST]
            self._meter.reports_dropped += len(batch) + len(self._ended) - len(kept)
            self._ended = kept
