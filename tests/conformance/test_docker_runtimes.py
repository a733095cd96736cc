"""`--docker-runtime`: others that dockerd knows, and what is said of those that can't be used. See test_own_kernel.py too."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import dockers
from tests.support import service as support

HELLO = {"handler.py": "def handle(request):\n    return 'hello'\n"}
# crun itself refuses machines that have both versions of control groups
RUNTIMES = {"another": {"path": "runc"}, "broken": {"path": "/bin/false"}}

pytestmark = support.dockerd_needed()


@pytest.fixture(scope="module")
def dockerd() -> Iterator[str]:
    with dockers.running({"runtimes": RUNTIMES}) as path:
        yield f"unix://{path}"


async def test_one_that_shares_the_kernel_of_this_machine_is_used_as_docker_s_own(dockerd: str) -> None:
    chosen = {"DOCKER_HOST": dockerd, "PILOTLIGHT_DOCKER_RUNTIME": "another"}
    async with support.running(support.DOCKER, environment=chosen) as service:
        await service.deploy("hello", HELLO)
        assert await service.ask("hello") == (200, "hello")
        told = [g.reason for g in await service.client.control.guarantees() if "root file system" in g.name]
    assert told == ["by the runtime another"]


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ("nosuch", "dockerd has no runtime 'nosuch'; it has another, broken, "),
        ("broken", "No container starts with the runtime 'broken'. dockerd at "),
    ],
)
async def test_one_that_can_not_be_used_is_named_at_the_start(
    runtime: str, said: str, dockerd: str, tmp_path: Path
) -> None:
    flags = ("--engine", "docker", "--docker-runtime", runtime, "--data", str(tmp_path / "data"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "function-service", *flags),
        cwd=support.ROOT,
        env={**os.environ, "DOCKER_HOST": dockerd},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode not in (0, None)
    assert said in errors.decode()
