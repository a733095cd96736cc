"""One-shot runs: what surrounds a build command in its sandbox, beyond what every sandbox has."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from function_service.contract import Exit, Job, Output
from function_service.engines.base import Sandbox
from function_service.lines import LineReader

_LOOK = 0.5  # seconds between two looks at how much was written


def proxy_environment(port: int) -> dict[str, str]:
    """Return the variables by which programs find the proxy in their sandbox."""
    url = f"http://127.0.0.1:{port}"
    local = "127.0.0.1,localhost"
    return {
        "HTTPS_PROXY": url,
        "HTTP_PROXY": url,
        "https_proxy": url,
        "http_proxy": url,
        "NO_PROXY": local,
        "no_proxy": local,
    }


def give(folders: list[Path], uid: int) -> None:
    """Give folders, and all that is in them, to a user; no link is followed, whoever sets it meanwhile."""
    for top in folders:
        for _, _, files, descriptor in os.fwalk(top, follow_symlinks=False):
            os.fchown(descriptor, uid, uid)
            for name in files:
                os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)
            for entry in os.scandir(descriptor):
                if entry.is_symlink():  # fwalk counts a link to a folder among the folders
                    os.chown(entry.name, uid, uid, dir_fd=descriptor, follow_symlinks=False)


def size(folders: list[Path]) -> int:
    """Return how many bytes folders take on the disk."""
    total = 0
    for top in folders:
        for folder, _, files in os.walk(top):
            for name in files:
                try:
                    total += (Path(folder) / name).lstat().st_blocks * 512
                except FileNotFoundError:
                    continue  # it was removed meanwhile
    return total


async def follow(
    sandbox: Sandbox, job: Job, writable: list[Path], kill: Callable[[], None]
) -> AsyncGenerator[Output | Exit, None]:
    """Yield what the job prints, and how it ended; it is killed at its deadline and at its limit of size."""
    stopped = ""

    async def watch() -> None:
        nonlocal stopped
        deadline = asyncio.get_running_loop().time() + job.timeout
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(min(_LOOK, job.timeout))
            if await asyncio.to_thread(size, writable) > job.output_limit:
                stopped = f"it wrote more than {job.output_limit >> 20} MB"
                break
        else:
            stopped = f"it was not done after {job.timeout:g} s"
        kill()

    watcher = asyncio.create_task(watch(), name="job watch")
    reader = LineReader(sandbox.output)
    try:
        async for line, truncated in reader.lines():
            yield Output(line + (" […]" if truncated else ""))
        end = await asyncio.shield(sandbox.ended)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        reader.close()
    if end.out_of_memory and not stopped:
        stopped = f"it ran out of memory; the limit of a build is {job.memory >> 20} MB"
    yield Exit(end.code if end.code is not None else 128 + (end.signal or 0), stopped)
