"""Having processes forked: what comes for one who waits no more is not kept."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from function_service.engines.embedded import messages
from function_service.engines.embedded.channel import Channel
from function_service.engines.embedded.nursery import Forker


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("turns", range(6))
async def test_a_start_that_is_broken_off_leaves_no_descriptor_and_no_process(turns: int) -> None:
    """In whichever turn of the loop that is, also in the one in which the process has just been forked."""
    mine, theirs = messages.pair()
    forker = Forker("a zygote", lambda: None)
    with theirs:
        channel = Channel(mine)
        forker.follow(channel)
        ended: list[int | None] = []
        before = descriptors()
        start = asyncio.create_task(forker.fork({"fork": "one"}, [], ended.append))
        await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                __import__("time").sleep(30)
            os._exit(0)
        pidfd = os.pidfd_open(child)
        messages.send(theirs, {"forked": "one"}, [pidfd])
        os.close(pidfd)
        for _ in range(turns):
            await asyncio.sleep(0)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        if start.cancelled():
            async with asyncio.timeout(10):
                while os.waitpid(child, os.WNOHANG) == (
                    0,
                    0,
                ):  # it is killed, at the latest when it is told of
                    await asyncio.sleep(0.01)
        else:  # it was quicker than whoever broke it off
            os.kill(child, 9)
            os.waitpid(child, 0)
            os.close(start.result())
        assert descriptors() == before
        channel.close()
    await forker.unfollow()
