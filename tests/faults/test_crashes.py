"""What is left when processes are killed, starts are broken off, or many come and go: nothing."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from function_service.contract import Exit, Job, Mount, Output
from pilotlight.problems import Problem
from tests.support import service as support
from tests.support.attacks import deploy_probes, deploy_snapshot, folder
from tests.support.groups import control_groups
from tests.support.service import Service

SLOW = {"handler.py": "import time\ntime.sleep(30)\ndef handle(request):\n    return 'late'\n"}


@pytest.fixture(params=support.modes())
def user(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest_asyncio.fixture(params=support.modes(), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with support.running(request.param) as running:
        await deploy_probes(running)
        yield running


@dataclass(frozen=True)
class Traces:
    """What a service has made outside of its data folder, and its sockets within."""

    processes: frozenset[int]  # it, and all below it
    groups: frozenset[Path]
    sockets: frozenset[str]
    mounts: int  # in this process's namespace, of its folder


def processes_below(pid: int) -> set[int]:
    """Return a process and all that descend from it."""
    found, added = {pid}, True
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    while added:
        added = {child for child, parent in parents.items() if parent in found} - found  # type: ignore[assignment]
        found |= added  # type: ignore[arg-type]
    return found


def traces(service: Service) -> Traces:
    root, label = str(service.data.root), service.data.label
    groups = [path for path in control_groups("*") if label in path.parts]
    return Traces(
        frozenset(processes_below(service.process.pid)),
        frozenset(groups),
        frozenset(path.name for path in service.data.instances.iterdir()),
        sum(root in line for line in Path("/proc/self/mountinfo").read_text().splitlines()),
    )


def alive(processes: frozenset[int]) -> set[int]:
    """Return those that still run; a zombie whose parent is to come round to it does not."""
    running = set()
    for pid in processes:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                running.add(pid)
    return running


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "kill -TERM"])
async def test_a_service_that_ends_takes_everything_with_it(user: int, number: int, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    _open_way_to(root)
    async with support.running(user, root) as service:
        await deploy_probes(service)
        await deploy_snapshot(service, "restored")
        for name in ("probe", "native", "restored"):
            lease = await service.acquire(name)
            await support.request(lease, "import subprocess\nsubprocess.Popen(['sleep', '7600'])\nresult = 1")
        build = folder(service, "left")
        command = ("/bin/sh", "-c", "echo x > /build/made; echo begun; sleep 7601")
        job = Job(runtime="native", command=command, mounts=(Mount(str(build), "/build", writable=True),))
        stream = service.client.builds.run(job)
        assert await anext(stream) == Output("begun")
        before = traces(service)
        assert len(before.processes) > 8
        assert before.sockets
        assert before.mounts == 0
        service.process.send_signal(number)
        await asyncio.wait_for(service.process.wait(), 60)
        await until(lambda: not alive(before.processes))
        with pytest.raises(Problem):
            await anext(stream)
        after = traces(service)
        if number == signal.SIGTERM:
            assert (after.groups, after.sockets) == (frozenset(), frozenset())
            assert service.process.returncode == 0
    async with support.running(user, root) as service:
        # What could not be removed by a dead process is removed by the next one
        fresh = traces(service)
        assert not (fresh.sockets & before.sockets)
        assert not ({g.name for g in fresh.groups} & {g.name for g in before.groups} - {service.data.label})
        owner = service.data.builds.stat().st_uid
        assert {p.lstat().st_uid for p in (build, *build.rglob("*"))} == {owner}
        assert await service.ask("probe", "result = 1") == (200, "1")
    assert not control_groups(f"{service.data.label}*")


def _open_way_to(root: Path) -> None:
    for path in (root, *root.parents):
        if path.is_relative_to("/tmp/pytest-of-root") and os.geteuid() == 0:
            path.chmod(0o755)


async def test_a_term_during_starts_ends_in_time_and_leaves_nothing(user: int, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    _open_way_to(root)
    async with support.running(user, root) as service:
        await service.deploy("slow", SLOW, timeout=60.0, max_instances=10, min_instances=2)
        calls = [asyncio.create_task(service.acquire("slow", 60.0)) for _ in range(5)]
        await until(lambda: len(list(service.data.instances.iterdir())) >= 5)
        before = traces(service)
        service.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await service.process.wait() == 0
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, Problem) for answer in answers)
        assert not alive(before.processes)
        after = traces(service)
        assert (after.groups, after.sockets) == (frozenset(), frozenset())


@pytest.mark.asyncio(loop_scope="module")
async def test_when_a_zygote_is_killed_its_instances_end_and_the_next_start_works(service: Service) -> None:
    leases = [await service.acquire("probe") for _ in range(3)]
    for zygote in _zygotes(service):
        os.kill(zygote, signal.SIGKILL)
    for lease in leases:
        kind, detail, _ = await service.client.invocations.diagnose(lease.id)
        assert (kind, "signal 9" in detail) == ("crashed", True)
    calls = [service.ask("probe", "result = 2") for _ in range(5)]
    assert await asyncio.gather(*calls) == [(200, "2")] * 5
    assert await service.ask("native", "result = 3") == (200, "3")
    names = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in _zygotes(service)]
    assert len(names) == len(set(names)), "two zygotes of one interpreter"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("moment", [0.0, 0.002, 0.01, 0.03])
async def test_starts_under_way_when_their_zygote_is_killed_are_made_again(
    service: Service, moment: float
) -> None:
    starts = [asyncio.create_task(service.acquire("probe")) for _ in range(6)]
    await asyncio.sleep(moment)
    for zygote in _zygotes(service):
        os.kill(zygote, signal.SIGKILL)
    leases = await asyncio.gather(*starts)  # none is refused
    for lease in leases:
        await service.client.invocations.stop(lease.id, "it is over")
    assert await service.ask("probe", "result = 6") == (200, "6")


def _zygotes(service: Service) -> list[int]:
    """Return the processes 1 of the zygotes' namespaces: the grandchildren of the service."""
    below = processes_below(service.process.pid)
    found = []
    for pid in below:
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            parent = int(stat.rpartition(")")[2].split()[1])
            if (
                stat.split("(")[1].startswith("zygote)")
                and Path(f"/proc/{parent}/comm").read_text() == "zygote-parent\n"
            ):
                found.append(pid)
    return found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["probe", "native"])
async def test_an_instance_that_is_killed_while_it_is_leased_is_diagnosed_and_gone(
    service: Service, name: str
) -> None:
    lease = await service.acquire(name)
    process = _first_process(service, lease.socket)
    os.kill(process, signal.SIGKILL)
    kind, detail, _ = await service.client.invocations.diagnose(lease.id)
    assert (kind, "signal 9" in detail) == ("crashed", True)
    assert not Path(lease.socket).exists()
    assert all(i.id != lease.instance for i in await service.client.control.instances(None))
    assert await service.ask(name, "result = 4") == (200, "4")


def _first_process(service: Service, path: str) -> int:
    """Return the process 1 of the sandbox that holds a listening socket."""
    (inode,) = (n.split()[6] for n in Path("/proc/net/unix").read_text().splitlines() if n.endswith(path))
    for pid in processes_below(service.process.pid):
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                if str(link.readlink()) == f"socket:[{inode}]" and pid != service.process.pid:
                    return pid
    raise AssertionError("nobody listens")


@dataclass(frozen=True)
class Size:
    """How much a service holds."""

    descriptors: int
    processes: int
    groups: int
    sockets: int
    zygote_kb: int


def size(service: Service) -> Size:
    found = traces(service)
    memory = 0
    for pid in _zygotes(service):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Dirty:", "Private_Clean:")):
                memory += int(line.split()[1])
    descriptors = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
    return Size(descriptors, len(alive(found.processes)), len(found.groups), len(found.sockets), memory)


async def at_rest(service: Service) -> Size:
    """Return the size with no instance and no snapshot, once the pool is full again."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(Problem):  # an instance still answers
                await service.client.control.empty("snapshot")
                break
        last, same = size(service), 0
        while same < 13:  # for longer than the pool waits after it could not make a sandbox
            await asyncio.sleep(0.1)
            now = size(service)
            same = same + 1 if (now.descriptors, now.processes) == (last.descriptors, last.processes) else 0
            last = now
    return last


def assert_nothing_is_left(before: Size, after: Size) -> None:
    assert after.descriptors <= before.descriptors
    assert (after.processes, after.groups, after.sockets) == (before.processes, before.groups, before.sockets)
    assert after.zygote_kb < before.zygote_kb + 2048


@pytest.mark.asyncio(loop_scope="module")
async def test_after_many_starts_and_stops_everything_is_as_it_was(service: Service) -> None:
    async def once(name: str) -> None:
        lease = await service.acquire(name)
        await service.client.invocations.stop(lease.id, "again")

    for name in ("probe", "native"):
        await once(name)
    before = await at_rest(service)
    for _ in range(50):
        await asyncio.gather(*(once(name) for name in ("probe", "probe", "probe", "native")))
    assert_nothing_is_left(before, await at_rest(service))


@pytest.mark.asyncio(loop_scope="module")
async def test_twenty_starts_that_are_broken_off_at_once_leave_nothing(service: Service) -> None:
    await service.deploy("breaking", {"handler.py": support.PROBE}, max_instances=50, keep_alive=0.0)
    await service.deploy("breaking-slow", SLOW, max_instances=50, keep_alive=0.0, timeout=2.0)
    before = await at_rest(service)
    for name in ("breaking", "breaking-slow"):
        for wait in (0.0, 0.005, 0.05):
            calls = [asyncio.create_task(service.acquire(name, 2.0)) for _ in range(20)]
            await asyncio.sleep(wait)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    for name in ("breaking", "breaking-slow"):
        await service.client.control.delete_function(name)
    async with asyncio.timeout(60):
        # What is started already is started to its end, or to its deadline, though nobody waits for it
        while size(service).processes > before.processes:
            await asyncio.sleep(0.1)
    assert_nothing_is_left(before, await at_rest(service))
    assert await service.ask("probe", "result = 5") == (200, "5")


@pytest.mark.asyncio(loop_scope="module")
async def test_many_builds_leave_nothing(service: Service) -> None:
    before = await at_rest(service)
    for number in range(10):
        build = folder(service, f"many-{number}")
        mounts = (Mount(str(build), "/build", writable=True),)
        command = ("/bin/sh", "-c", "echo x > /build/x" if number % 2 else "exit 1")
        items = [
            i async for i in service.client.builds.run(Job(runtime="native", command=command, mounts=mounts))
        ]
        assert items[-1] == Exit(1 - number % 2)
    assert_nothing_is_left(before, await at_rest(service))
