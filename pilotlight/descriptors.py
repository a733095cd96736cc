"""File descriptors: how many, and waiting for them on the event loop."""

import asyncio
import os
import resource


def allow_many() -> None:
    """Raise the limit of open files as far as it goes: many systems start programs with 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def readable_once(descriptor: int) -> None:
    """Wait until a descriptor, for which nobody else waits, is readable."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await future
    finally:
        loop.remove_reader(descriptor)


async def readable(descriptor: int) -> None:
    """Wait until a descriptor is readable; for a pidfd: until the process has ended (pidfd_open(2))."""
    copy = os.dup(descriptor)  # so that several may wait for the same one
    try:
        await readable_once(copy)
    finally:
        os.close(copy)
