"""Attacks from within a shell, by its terminal: on who opened it, on other shells, on the host."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support import service as support
from tests.support.attacks import HELLO, TRY, kinds
from tests.support.service import Service
from tests.support.shells import TERMINAL, run, shell

PYTHON = "/usr/bin/python3"


@pytest_asyncio.fixture(params=support.modes(), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with support.running(request.param) as running:
        await running.deploy("hello", HELLO)
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def at_terminal(service: Service, source: str) -> Any:
    """Run Python at a terminal, and return its `result`."""
    output, _, ended = await run(
        service,
        "hello",
        PYTHON,
        "-c",
        f"{TRY}\n{source}\nimport json\nprint(json.dumps(result))",
        terminal=TERMINAL,
    )
    assert ended.code == 0, output
    return json.loads(output.splitlines()[-1])


async def test_a_terminal_can_not_be_typed_into_by_what_runs_at_it(service: Service) -> None:
    source = """
import fcntl
result = [attempt(fcntl.ioctl, 0, request, b"x") for request in (0x5412, 0x541c)]  # TIOCSTI, TIOCLINUX
"""
    assert await at_terminal(service, source) == ["EPERM", "EPERM"]


async def test_no_descriptor_of_a_shell_leads_to_the_host(service: Service) -> None:
    source = "result = [links(), *(attempt(links, p) for p in os.listdir('/proc') if p.isdigit())]"
    own, *others = await at_terminal(service, source)
    assert kinds(own) <= {"/dev/pts/0", *(k for k in kinds(own) if k.startswith("/proc/"))}
    ours = {"/dev/null", "/dev/pts/0", "/dev/pts/ptmx", "/dev/ptmx", "pipe", "socket", "anon_inode"}
    for links in others:
        assert links == "EACCES" or kinds(eval(links)) <= {*ours, *kinds(own)}


async def test_only_its_own_terminal_is_there(service: Service) -> None:
    source = """
result = [sorted(os.listdir("/dev/pts")), os.ttyname(0), os.stat("/dev/pts/0").st_dev, os.stat(0).st_dev,
          attempt(os.mknod, "/tmp/tty", 0o20666, os.makedev(136, 0)), attempt(os.open, "/dev/console", os.O_RDWR)]
"""
    look = "stat -c %d /dev/pts/0; read line"
    async with shell(service, "hello", "sh", "-c", look, terminal=TERMINAL) as other:
        device = await other.until("\r\n")
        names, name, ours, same, made, console = await at_terminal(service, source)
        assert (names, name) == (["0", "ptmx"], "/dev/pts/0")
        assert ours == same != int(device)
        assert (made, console) == ("EPERM", "ENOENT")


async def test_terminals_are_bounded(service: Service) -> None:
    source = """
opened = []
def hoard():
    while len(opened) < 100:
        opened.append(os.openpty())
result = [attempt(hoard), len(opened)]
"""
    assert await at_terminal(service, source) == ["ENOSPC", 15]


async def test_no_privilege_is_left_to_a_shell(service: Service) -> None:
    source = """
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
result = [int(status[n], 16) for n in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
result += [status["NoNewPrivs"], status["Seccomp"], attempt(os.listdir, "/proc/1/root/root"), os.getsid(0) == os.getpid()]
"""
    result = await at_terminal(service, source)
    assert result[:7] == [0, 0, 0, 0, 0, "1", "2"]
    assert result[7] in ("EACCES", "ENOENT")
    assert result[8]


async def test_what_gets_at_the_first_process_gains_nothing(service: Service) -> None:
    source = """
import signal
def write():
    open("/proc/1/mem", "wb").close()
result = [attempt(write), attempt(os.kill, 1, signal.SIGKILL), attempt(os.kill, 1, signal.SIGTERM), os.getppid()]
"""
    memory, *_, parent = await at_terminal(service, source)  # and it lives to tell
    assert memory == "EACCES"
    assert parent == 1
