"""One-shot runs: what surrounds a build command in its sandbox, beyond what every sandbox has."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncGenerator, Callable, Container
from pathlib import Path
from typing import Any

from function_service.contract import Exit, Job, Output
from function_service.engines.base import Sandbox
from function_service.engines.embedded.sandbox import EGRESS_PORT
from function_service.lines import LineReader
from pilotlight import trees

_LOOK = 0.5  # seconds between two looks at how much was written
_SPARE = 256 << 20  # bytes that a job must leave free on the disk


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


def message_of(job: Job) -> dict[str, Any]:
    """Return what process 1 of its sandbox is told."""
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **job.env}  # noqa: S108
    if job.egress:
        env |= proxy_environment(EGRESS_PORT)
    command = {"command": list(job.command), "folder": job.folder, "serves": False}
    return {**command, "env": env, "tmp": job.memory // 2}


def give(folders: list[Path], uid: int, *, of: Container[int]) -> None:
    """Give folders, and what in them belongs to one `of` these users, to another user.

    What belongs to anybody else stays theirs: a hard link can lead to any file on this disk. No symbolic
    link is followed, whoever sets it meanwhile.
    """
    for top in folders:
        for folder, _, names in trees.walk(top):
            if os.fstat(folder).st_uid in of:
                os.fchown(folder, uid, uid)
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    held = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                    try:
                        if os.fstat(held).st_uid in of:
                            os.chown(f"/proc/self/fd/{held}", uid, uid)
                    finally:
                        os.close(held)


async def hand_over(folders: list[Path], uid: int, *, of: Container[int]) -> None:
    """Give folders in a thread; whoever is cancelled waits for it all the same, so that two never overlap."""
    giving = asyncio.create_task(asyncio.to_thread(give, folders, uid, of=of), name="hand over")
    try:
        await asyncio.shield(giving)
    finally:
        await asyncio.wait([giving])


def size(folders: list[Path], limit: int) -> int:
    """Return how many bytes folders take on the disk, while they change; stops to count beyond the limit.

    Raises OSError ENAMETOOLONG for folders that are too deep.
    """
    total = 0
    pending = [str(folder) for folder in folders]
    while pending and total <= limit:
        removed = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with removed, os.scandir(pending.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                total += trees.taken(status)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return total


def _too_much(job: Job, writable: list[Path]) -> str:
    """Return why the job must not write on, or nothing."""
    try:
        if size(writable, job.output_limit) > job.output_limit:
            return f"it wrote more than {job.output_limit >> 20} MB"
    except OSError as error:
        return f"what it wrote can't be measured: {error.strerror}"
    # Files that are open but have no name any more can't be counted, only missed
    if any(shutil.disk_usage(folder).free < _SPARE for folder in writable):
        return f"the disk of the data folder has less than {_SPARE >> 20} MB left"
    return ""


async def follow(
    sandbox: Sandbox, reader: LineReader, job: Job, writable: list[Path], kill: Callable[[], None]
) -> AsyncGenerator[Output | Exit, None]:
    """Yield what the job prints, and how it ended; it is killed at its deadline and at its limit of size."""
    stopped = ""

    async def watch() -> None:
        nonlocal stopped
        try:
            async with asyncio.timeout(job.timeout):
                while not stopped:
                    await asyncio.sleep(_LOOK)
                    stopped = await asyncio.to_thread(_too_much, job, writable)
        except TimeoutError:
            stopped = f"it was not done after {job.timeout:g} s"
        kill()

    watcher = asyncio.create_task(watch(), name="job watch")
    try:
        async for line, truncated in reader.lines():
            yield Output(line + (" […]" if truncated else ""))
        end = await asyncio.shield(sandbox.ended)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    if end.out_of_memory and not stopped:
        stopped = f"it ran out of memory; the limit of a build is {job.memory >> 20} MB"
    yield Exit(end.code if end.code is not None else 128 + (end.signal or 0), stopped)
