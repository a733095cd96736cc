"""Functions that take all they can get, or do not want to end: they get their limit, and others their answer."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from function_service.contract import Lease
from function_service.engines.embedded import cgroup
from pilotlight.problems import Problem
from tests.support import service as support
from tests.support.attacks import TRY, appeared, deploy_probes, deploy_snapshot, kept, processes_with
from tests.support.service import Service


@pytest_asyncio.fixture(params=support.engines(), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with support.running(request.param) as running:
        await deploy_probes(running)
        await deploy_snapshot(running, "restored")
        await running.deploy("neighbour", {"handler.py": support.PROBE})
        yield running


@pytest.fixture(params=["probe", "native", "restored"])
def python(request: pytest.FixtureRequest) -> str:
    """A function that runs Python: forked from a zygote, a program of its own, forked from a snapshot."""
    return str(request.param)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def leased(service: Service, name: str, source: str) -> tuple[Lease, Any]:
    """Run source in an instance that stays leased; return the lease and the result."""
    lease = await service.acquire(name)
    status, text = await support.request(lease, source)
    assert status == 200, text
    return lease, json.loads(text)


async def test_threads_are_bounded(service: Service, python: str) -> None:
    if not await kept(service, "limit of processes and threads"):
        return
    source = """
import threading
held, count = threading.Event(), 0
try:
    while count < 5000:
        threading.Thread(target=held.wait, daemon=True).start()
        count += 1
except RuntimeError as error:
    result = [count, str(error)]
held.set()
"""
    lease, (count, error) = await leased(service, python, source)
    assert (count < 200, error) == (True, "can't start new thread")
    assert await service.ask("neighbour", "result = 1") == (200, "1")
    await service.client.invocations.stop(lease.id, "the test is over")


async def test_descriptors_are_bounded(service: Service, python: str) -> None:
    source = f"""{TRY}
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = []
def hoard():
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
result = [attempt(hoard), len(held)]
for descriptor in held:
    os.close(descriptor)
"""
    lease, (error, count) = await leased(service, python, source)
    assert error == "EMFILE"
    assert count < 4096
    assert await service.ask("neighbour", "result = 2") == (200, "2")
    await service.client.invocations.stop(lease.id, "the test is over")


async def test_descriptors_that_are_on_their_way_hold_up_no_start_of_others(
    service: Service, python: str
) -> None:
    """They count for a user, and where functions share one, for those of all functions (unix(7), ETOOMANYREFS)."""
    source = f"""{TRY}
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
pairs = []
def flood():
    while True:
        pairs.append(socket.socketpair())
        for _ in range(20):
            socket.send_fds(pairs[-1][0], [b"!"], [0] * 250)
result = [attempt(flood), len(pairs)]
sys.modules["held"] = pairs  # longer than this call
"""
    lease, (error, count) = await leased(service, python, source)
    assert (error, count > 0) == ("ETOOMANYREFS", True)
    await service.deploy("newcomer", {"handler.py": support.PROBE}, egress=("example.org:443",))
    assert await service.ask("newcomer", "result = 3") == (200, "3")
    await deploy_snapshot(service, "copied")
    assert await service.ask("copied", "result = 4") == (200, "4")
    held = "import sys\nresult = len(sys.modules['held'])"
    assert json.loads((await support.request(lease, held))[1]) == count
    for name in ("newcomer", "copied"):
        await service.client.control.delete_function(name)
    await service.client.invocations.stop(lease.id, "the test is over")


async def test_a_memory_bomb_ends_only_the_function(service: Service, python: str) -> None:
    if not await kept(service, "memory limit of each function"):
        return
    lease = await service.acquire(python)
    with pytest.raises(EOFError):
        await support.request(lease, "held = []\nwhile True: held.append(bytearray(b'x' * (8 << 20)))")
    kind, detail, _ = await service.client.invocations.diagnose(lease.id)
    assert kind == "out-of-memory", detail
    assert await service.ask("neighbour", "result = 3") == (200, "3")


async def test_files_that_are_read_count_towards_the_memory_and_make_room_for_others(
    service: Service,
) -> None:
    """The page cache is the function's own: it can neither fill the machine with it nor die of it."""
    if not await kept(service, "memory limit of each function"):
        return
    await service.deploy("reading", {"handler.py": support.PROBE}, memory=64 << 20)
    source = """
import os
read = 0
for folder, _, names in os.walk("/usr"):
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                while read < (192 << 20) and (piece := file.read(1 << 20)):
                    read += len(piece)
        except OSError:
            pass
result = read
"""
    lease, read = await leased(service, "reading", source)
    assert read >= 192 << 20
    (instance,) = await service.client.control.instances("reading")
    assert instance.memory is not None
    assert instance.memory <= 64 << 20
    await service.client.invocations.stop(lease.id, "the test is over")


async def test_a_cpu_hog_gets_its_share_however_many_processes_it_has(service: Service) -> None:
    if not await kept(service, "CPU limit of each function"):
        return
    await service.deploy("hog", {"handler.py": support.PROBE}, cpu=0.1)
    source = """
import os, time
deadline = time.monotonic() + 2
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        while time.monotonic() < deadline: pass
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
times = os.times()
result = times.children_user + times.children_system
"""
    lease, used = await leased(service, "hog", source)
    # 0.2 s is its share; unlimited it would be 4 s on two free cores, and 1 s where it got but a quarter
    assert used < 0.6
    assert await service.ask("neighbour", "result = 4") == (200, "4")
    await service.client.invocations.stop(lease.id, "the test is over")


async def test_who_meets_its_cpu_limit_gives_way_to_all_others(service: Service) -> None:
    """Docker's groups are not ours, and may be written anew by systemd."""
    if not service.forks or not await kept(service, "CPU limit of each function"):
        return
    await service.deploy("greedy", {"handler.py": support.PROBE}, cpu=0.1)
    lease = await service.acquire("greedy")
    idle = [
        cgroup.find(service.data.label).folders["cpu"] / folder / "cpu.idle"
        for folder in (lease.instance, ".")
    ]
    assert [file.read_text() for file in idle] == ["0\n", "0\n"]
    calling = asyncio.create_task(support.request(lease, "while True: pass"))
    async with asyncio.timeout(60):  # only a machine with time left over asks it to
        while [file.read_text() for file in idle] != ["1\n", "1\n"]:
            await asyncio.sleep(0.02)
    await service.client.invocations.stop(lease.id, "the test is over")
    with pytest.raises(EOFError):
        await calling
    async with asyncio.timeout(10):
        while idle[1].read_text() != "0\n":
            await asyncio.sleep(0.02)


async def test_what_ignores_signals_and_has_left_its_session_ends_with_its_instance(
    service: Service, python: str
) -> None:
    """Daemons, twice forked; deaf to every signal that can be ignored, and one that is stopped."""
    source = """
import os, signal, time
ready, done = os.pipe()
for deaf in (True, False):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 32) if deaf else ():
                if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_IGN)
            os.set_inheritable(done, False)
            os.execv("/bin/sh", ["sh", "-c", "kill -STOP $$; sleep 7656" if not deaf else "exec sleep 7656"])
        os._exit(0)
    os.wait()
os.close(done)
os.read(ready, 1)  # ends when both are what they will be
try:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
except ValueError:
    pass  # the native probe answers in another thread
result = True
"""
    lease, _ = await leased(service, python, source)
    await appeared(b"sleep\x007656\x00", 1)
    await appeared(b"sleep 7656\x00", 1)
    await service.client.invocations.stop(lease.id, "it does not want to end")
    assert processes_with(b"sleep\x007656\x00", "cmdline") == []
    assert processes_with(b"sleep 7656\x00", "cmdline") == []


_HANGS_IN_A_SNAPSHOT = """
import time
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
if int(status["CapEff"], 16):  # the one that forking takes: this import is a snapshot's
    while True:
        time.sleep(60)
"""


async def test_an_import_that_never_ends_in_a_snapshot_costs_nothing_but_the_snapshot(
    service: Service,
) -> None:
    if not service.forks:
        return  # there are no snapshots
    await deploy_snapshot(service, "hanging", _HANGS_IN_A_SNAPSHOT + support.PROBE, timeout=2.0)
    (status,) = [f for f in await service.client.control.functions() if f.name == "hanging"]
    assert not status.snapshot
    assert status.snapshot_refusal == "its import had not ended after 2.0 s"
    for name in ("hanging", "neighbour"):
        assert await service.ask(name, "result = 5") == (200, "5")


@pytest.mark.parametrize("runtime", ["python", "native"])
async def test_an_import_that_never_ends_is_ended_with_all_that_it_started(
    service: Service, runtime: str
) -> None:
    start = "import subprocess, time\nsubprocess.Popen(['sleep', '7657'], start_new_session=True)\n"
    if runtime == "python":
        files, config = {"handler.py": f"{start}while True: time.sleep(60)\n"}, {}
    else:
        files = {"server": "#!/bin/sh\nsetsid sleep 7657 &\nexec sleep 7657\n"}
        config = {"runtime": "native", "handler": "server"}
    revision = await service.prepare("endless", files, timeout=service.short_start, **config)
    with pytest.raises(Problem) as caught:
        await service.client.builds.verify(revision)
    assert caught.value.kind in ("timeout", "init-failed")
    assert processes_with(b"sleep\x007657\x00", "cmdline") == []
    with contextlib.suppress(Problem):  # nothing of it is there
        await service.client.control.delete_function("endless")
