"""A service and its successors, with a stand-in for the program: it serves at once, or ends where it is broken."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cli.supervisor import Service

PROGRAM = """#!{python} -IS
import os, signal, sys
from pathlib import Path
with Path({started!r}).open("a") as file:
    file.write(f"{{os.getpid()}}\\n")
if Path({broken!r}).exists():
    raise SystemExit(1)
os.write(int(sys.argv[sys.argv.index("--lifeline") + 1]), b"R")
signal.pause()
"""


class Program:
    """The program that is on the disk."""

    def __init__(self, folder: Path) -> None:
        self._started, self.broken, self.path = folder / "started", folder / "broken", folder / "program"
        self.path.write_text(
            PROGRAM.format(python=sys.executable, started=str(self._started), broken=str(self.broken))
        )
        self.path.chmod(0o755)

    @property
    def latest(self) -> int:
        """The process that was started last."""
        return int(self._started.read_text().split()[-1])


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    program = Program(tmp_path)
    monkeypatch.setattr(sys, "executable", str(program.path))
    return program


@pytest.fixture
async def service(program: Program) -> AsyncIterator[Service]:
    service = Service("gateway", {}, {})
    running = asyncio.create_task(service.run())
    await service.ready.wait()
    yield service
    await service.stop()
    await running


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def test_one_that_is_succeeded_ends_once_its_successor_serves(
    service: Service, program: Program
) -> None:
    former = program.latest
    await service.succeed(20)
    await until(lambda: not lives(former))
    assert lives(program.latest)


async def test_it_goes_on_where_its_successor_does_not_serve_and_ends_when_one_does_later(
    service: Service, program: Program
) -> None:
    former = program.latest
    program.broken.touch()
    with pytest.raises(TimeoutError):
        await service.succeed(0.2)
    with pytest.raises(TimeoutError):
        await service.succeed(0.2)
    assert lives(former)
    program.broken.unlink()
    await until(lambda: not lives(former))
    assert lives(program.latest)


async def test_a_death_is_told_also_after_a_succession_that_found_the_process_dead(
    service: Service, program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        os.kill(program.latest, signal.SIGKILL)
        await until(lambda: "killed by SIGKILL" in caplog.text)
        await service.succeed(20)
        os.kill(program.latest, signal.SIGKILL)
        await until(lambda: caplog.text.count("killed by SIGKILL") == 2)


async def test_where_no_process_can_be_started_it_is_tried_again(
    service: Service, program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    former = program.latest
    away = program.path.rename(program.path.with_name("away"))
    os.kill(former, signal.SIGKILL)
    await until(lambda: "No such file" in caplog.text)
    away.rename(program.path)
    await until(lambda: program.latest != former)
