"""A dockerd that is slow, gone and back, and what a killed function service has left in it.

Between the service and the real dockerd stands a door that can be shut, so that nobody else's containers suffer.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pilotlight import trees
from pilotlight.problems import Problem
from tests.support import service as support
from tests.support.service import DOCKER, Service

HELLO = {"handler.py": "def handle(request):\n    return 'hello'\n"}
pytestmark = support.dockerd_needed()


class Door:
    """The way to dockerd. While it is `silent`, what comes in gets no answer; while it is shut, nobody
    comes in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.silent = False
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._enter, self.path)

    async def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        self.path.unlink(missing_ok=True)
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(support.DOCKERD)
        ways = ((reader, inner_writer), (inner_reader, writer))
        tasks = [asyncio.create_task(self._pass(*way)) for way in ways]
        self._passing.update(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._passing.difference_update(tasks)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                while self.silent:
                    await asyncio.sleep(0.05)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest_asyncio.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    door = Door(tmp_path / "dockerd.sock")
    await door.open()
    yield door
    await door.shut()


async def start_many(service: Service, function: str, wait: float) -> None:
    """Start more instances than wait in the pool."""
    for _ in range(16):
        await service.acquire(function, wait)


async def test_calls_go_on_without_dockerd_and_starts_are_refused_until_it_is_back(door: Door) -> None:
    async with support.running(DOCKER, environment={"DOCKER_HOST": f"unix://{door.path}"}) as service:
        await service.deploy("warm", HELLO)
        lease = await service.acquire("warm", 60.0)
        await door.shut()
        assert await support.request(lease) == (200, "hello")
        with pytest.raises(Problem) as caught:
            await start_many(service, "warm", 60.0)  # those that waited in the pool still get their code
        assert (caught.value.kind, "dockerd" in caught.value.detail) == ("no-capacity", True)
        assert caught.value.retry_after
        await service.client.invocations.stop(lease.id, "it ends without dockerd, too")
        await door.open()
        assert (await service.acquire("warm", 60.0)).cold
    assert service.containers() == set()


async def test_a_dockerd_that_does_not_answer_holds_up_nobody_beyond_the_deadline(door: Door) -> None:
    async with support.running(DOCKER, environment={"DOCKER_HOST": f"unix://{door.path}"}) as service:
        await service.deploy("patient", HELLO)
        lease = await service.acquire("patient", 60.0)
        door.silent = True
        began = asyncio.get_running_loop().time()
        with pytest.raises(Problem) as caught:
            await start_many(service, "patient", 2.0)
        assert caught.value.kind == "no-capacity"
        assert await support.request(lease) == (200, "hello")
        assert asyncio.get_running_loop().time() - began < 60
        door.silent = False
        assert (await service.acquire("patient", 60.0)).cold


async def test_what_a_killed_service_has_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    try:
        async with support.running(DOCKER, folder) as service:
            await service.deploy("left", HELLO)
            await service.acquire("left", 60.0)
            left = service.containers()
            assert left
            service.process.kill()
            await service.process.wait()
        assert service.containers() >= left
        async with support.running(DOCKER, folder) as service:
            assert not service.containers() & left
            assert await service.ask("left") == (200, "hello")
        assert service.containers() == set()
        assert list(service.data.instances.iterdir()) == []
    finally:
        trees.remove(folder)


async def test_without_dockerd_the_start_says_what_is_missing(tmp_path: Path) -> None:
    command = ("-m", "cli.main", "function-service", "--engine", "docker", "--data", str(tmp_path / "data"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        cwd=support.ROOT,
        env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/nowhere.sock"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode not in (0, None)
    assert f"{tmp_path}/nowhere.sock does not answer: No such file or directory" in errors.decode()
