"""Pre-warming on a real function service, which is told of calls in the past, so that the next is due now."""

import asyncio
import time

import pytest

from function_service.contract import Usage
from tests.support.service import modes, running

PERIOD = 1800.0
DUE = 6.0  # seconds from the report to the next call that the calls before promise
WITHIN = 30.0


@pytest.fixture(params=modes())
async def service(request):
    async with running(request.param) as service:
        yield service


async def test_a_function_that_is_called_at_regular_times_is_started_before_the_next(service):
    revision = await service.deploy("timer", {"handler.py": "def handle(request):\n    return 'tick'\n"})
    last = time.time() - PERIOD + DUE
    usages = [
        Usage("timer", revision.id, "none", "r", last - number * PERIOD, 0.01, 200, cold=True)
        for number in reversed(range(20))
    ]
    await service.client.invocations.report(usages)
    assert await service.client.control.instances("timer") == []
    async with asyncio.timeout(WITHIN):
        while not await service.client.control.instances("timer"):
            await asyncio.sleep(0.05)
    assert time.time() < last + PERIOD
    assert not (await service.acquire("timer")).cold
