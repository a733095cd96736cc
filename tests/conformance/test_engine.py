"""What every engine promises, tried on real sandboxes: as root, as an ordinary user, on Docker, and on gVisor."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from function_service.contract import Exit, Job, Mount, Output
from pilotlight.problems import Problem
from runtimes.declaration import load_all
from tests.support import service as support
from tests.support.service import Service

HELLO = {"handler.py": "def handle(request):\n    return 'hello'\n"}


@pytest_asyncio.fixture(
    params=support.engines(support.REMAPPED, support.GVISOR), scope="module", loop_scope="module"
)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with support.running(request.param) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_function_answers(service: Service) -> None:
    await service.deploy("hello", HELLO)
    assert await service.ask("hello") == (200, "hello")


async def test_every_interpreter_of_this_machine_can_be_pinned(service: Service) -> None:
    source = "import sys, ctypes, ssl, sqlite3\ndef handle(request):\n    return 'python%d.%d' % sys.version_info[:2]\n"
    names = [name for name in await service.client.builds.runtimes() if name.startswith("python")]
    assert {i.name for i in load_all()["python"].find()} == set(names)
    for name in names:
        await service.deploy("pinned", {"handler.py": source}, runtime=name)
        assert await service.ask("pinned") == (200, name)
        interpreter = next(i for i in load_all()["python"].find() if i.name == name)
        command = (interpreter.executable, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        items = [
            item
            async for item in service.client.builds.run(
                Job(runtime=name, command=command, mounts=(), folder="/tmp")
            )
        ]
        assert items == [Output(name.removeprefix("python")), Exit(0)]


async def test_the_second_call_finds_the_instance_warm(service: Service) -> None:
    await service.deploy("warm", HELLO)
    first = await service.acquire("warm")
    await service.client.invocations.release(first.id)
    second = await service.acquire("warm")
    assert (first.cold, second.cold) == (True, False)
    assert first.instance == second.instance
    await service.client.invocations.release(second.id)


async def test_a_start_tells_how_long_its_stages_took(service: Service) -> None:
    await service.deploy("stages", HELLO)
    lease = await service.acquire("stages")
    assert lease.stages.code > 0
    await service.client.invocations.release(lease.id)


async def test_stopping_an_instance_leaves_no_process_socket_or_lease(service: Service) -> None:
    await service.deploy("stopped", {"handler.py": support.PROBE})
    lease = await service.acquire("stopped")
    child = "import subprocess\nsubprocess.Popen(['sleep', '4711.25'], start_new_session=True)\nresult = 1"
    assert await support.request(lease, child) == (200, "1")

    def lives() -> bool:
        if service.mode == support.GVISOR:  # whose kernel tells nobody of its processes, and ends with them
            return any(lease.instance in name for name in service.containers())
        return bool(_processes("4711.25"))

    async with asyncio.timeout(60):
        while not lives():
            await asyncio.sleep(0.01)
        await service.client.invocations.stop(lease.id, "test")
        while lives() and service.mode == support.GVISOR:  # dockerd removes it a little later
            await asyncio.sleep(0.01)
    assert not lives()
    assert not Path(lease.socket).exists()
    assert not [i for i in await service.client.control.instances("stopped") if i.id == lease.instance]


def _processes(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in command.split(b"\0"):
                found.append(entry.name)
    return found


@pytest.mark.parametrize(
    ("source", "handler", "kind", "words"),
    [
        ("import nosuchmodule\n", "handler:handle", "init-failed", "nosuchmodule"),
        ("x = 1\n", "handler:handle", "init-failed", "handle"),
        ("handle = 7\n", "handler:handle", "init-failed", "handle"),
        ("raise ValueError('no luck')\n", "handler:handle", "init-failed", "no luck"),
        ("def handle(:\n", "handler:handle", "init-failed", "handler.py"),
        ("import os\nos._exit(4)\n", "handler:handle", "init-failed", "code 4"),
        ("import sys\nsys.exit('bye')\n", "handler:handle", "init-failed", ""),
        ("import time\ntime.sleep(60)\n", "handler:handle", "timeout", "loading"),
    ],
)
async def test_a_start_that_fails_says_why(
    service: Service, source: str, handler: str, kind: str, words: str
) -> None:
    timeout = service.short_start
    revision = await service.prepare("failing", {"handler.py": source}, handler=handler, timeout=timeout)
    with pytest.raises(Problem) as caught:
        await service.client.builds.verify(revision)
    assert caught.value.kind == kind
    assert words in caught.value.detail
    assert not await service.client.control.instances(None) or all(
        i.function != "failing" for i in await service.client.control.instances(None)
    )


async def test_what_a_failing_start_printed_comes_with_the_error(service: Service) -> None:
    source = "print('about to fail')\nraise SystemExit(3)\n"
    revision = await service.prepare("printing", {"handler.py": source})
    with pytest.raises(Problem) as caught:
        await service.client.builds.verify(revision)
    assert "about to fail" in caught.value.extra["logs"]


async def test_an_instance_that_exits_in_a_call_is_diagnosed(service: Service) -> None:
    await service.deploy("exiting", {"handler.py": support.PROBE})
    lease = await service.acquire("exiting")
    with pytest.raises(EOFError):
        await support.request(lease, "print('so long')\nos = __import__('os')\nos._exit(5)")
    kind, detail, lines = await service.client.invocations.diagnose(lease.id)
    assert (kind, "code 5" in detail, lines) == ("crashed", True, ["so long"])


async def test_an_instance_that_is_killed_by_a_signal_is_diagnosed(service: Service) -> None:
    await service.deploy("faulting", {"handler.py": support.PROBE})
    lease = await service.acquire("faulting")
    with pytest.raises(EOFError):
        await support.request(lease, "import ctypes\nctypes.string_at(0)")
    kind, detail, _ = await service.client.invocations.diagnose(lease.id)
    assert kind == "crashed"
    assert "signal 11" in detail


async def test_an_instance_that_hangs_up_is_ended_and_diagnosed(service: Service) -> None:
    await service.deploy("hanging", {"handler.py": support.PROBE})
    lease = await service.acquire("hanging")
    kind, detail, _ = await service.client.invocations.diagnose(lease.id)
    assert (kind, "broke off" in detail) == ("crashed", True)
    assert not Path(lease.socket).exists()


async def test_a_function_over_its_memory_limit_is_told_so(service: Service) -> None:
    guarantees = await service.client.control.guarantees()
    limit = next(g for g in guarantees if g.name == "memory limit of each function")
    if not limit.kept:
        assert limit.reason
        assert limit.remedy
        return  # this user has no control groups here, and was told so
    await service.deploy("greedy", {"handler.py": support.PROBE}, memory=64 << 20)
    lease = await service.acquire("greedy")
    with pytest.raises(EOFError):
        await support.request(lease, "result = len(bytearray(200 << 20))")
    kind, detail, _ = await service.client.invocations.diagnose(lease.id)
    assert kind == "out-of-memory"
    assert "64 MB" in detail


async def test_a_native_program_is_reached_through_its_port(service: Service) -> None:
    await service.deploy("native", {"server": _PERL}, runtime="native", handler="server")
    assert await service.ask("native", method="GET") == (200, "hello from perl")


_PERL = """#!/usr/bin/perl
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ENV{PORT}, Listen => 9, ReuseAddr => 1)
    or die $!;
while (my $client = $listener->accept) {
    while (<$client>) { last if /^\\r?\\n$/ }
    print $client "HTTP/1.1 200 OK\\r\\nContent-Length: 15\\r\\nConnection: close\\r\\n\\r\\nhello from perl";
    close $client;
}
"""


async def test_a_native_handler_is_read_as_a_shell_reads_it(service: Service) -> None:
    script = "#!/bin/sh\nprintf '[%s]\\n' \"$@\"\nexit 3\n"
    revision = await service.prepare(
        "quoting", {"my server": script}, runtime="native", handler="""'./my server' --title "two words" x"""
    )
    with pytest.raises(Problem) as caught:
        await service.client.builds.verify(revision)
    assert caught.value.extra["logs"] == ["[--title]", "[two words]", "[x]"]


async def test_a_native_program_that_never_listens_is_told_so(service: Service) -> None:
    files = {"server": "#!/bin/sh\necho I am here\nsleep 60\n"}
    revision = await service.prepare(
        "mute", files, runtime="native", handler="server", timeout=service.short_start
    )
    with pytest.raises(Problem, match="PORT") as caught:
        await service.client.builds.verify(revision)
    assert caught.value.kind == "init-failed"
    assert caught.value.extra["logs"] == ["I am here"]


async def test_a_native_program_that_cannot_run_is_told_so(service: Service) -> None:
    files = {"server": "#!/no/such/interpreter\n"}
    revision = await service.prepare("unrunnable", files, runtime="native", handler="server")
    with pytest.raises(Problem) as caught:
        await service.client.builds.verify(revision)
    assert caught.value.kind == "init-failed"
    assert "server can't be run" in caught.value.extra["logs"][0]


async def test_logs_keep_long_lines_and_much_output_within_bounds(service: Service) -> None:
    await service.deploy("loud", {"handler.py": support.PROBE})
    source = "import sys\nprint('x' * 100_000)\nfor _ in range(30): sys.stdout.write('y' * (1 << 20) + '\\n')\nresult = 1"
    assert await service.ask("loud", source) == (200, "1")
    lines = []
    async with asyncio.timeout(60):
        async for line in service.client.control.logs("loud", 1000, True):
            lines.append(line)
            if "left out" in line.line:
                break
    assert lines[0].truncated
    assert len(lines[0].line) <= 8192
    assert sum(len(line.line) for line in lines) < 1 << 20


async def test_logs_are_followed_live(service: Service) -> None:
    await service.deploy("talking", {"handler.py": support.PROBE})
    following = service.client.control.logs("talking", 0, True)
    first = asyncio.ensure_future(anext(following))
    async with asyncio.timeout(60):
        while not first.done():  # nobody tells from when on it is followed
            await service.ask("talking", "print('live')\nresult = 1")
    assert first.result().line == "live"
    await following.aclose()


async def test_secrets_and_environment_reach_the_function_and_nothing_else_does(service: Service) -> None:
    await service.client.vault.put_secret("TOKEN", "s3cret")
    await service.deploy("env", {"handler.py": support.PROBE}, env={"LEVEL": "info"}, secrets=("TOKEN",))
    env = await service.probe("env", "import os\nresult = dict(os.environ)")
    assert env["LEVEL"] == "info"
    assert env["TOKEN"] == "s3cret"
    assert env["PILOTLIGHT_FUNCTION"] == "env"
    assert env["PILOTLIGHT_DATA_URL"].startswith("http://127.0.0.1:")
    assert set(env) <= {
        *("LEVEL", "TOKEN", "PATH", "HOME", "LANG", "SSL_CERT_FILE", "LC_CTYPE"),
        *(name for name in env if name.startswith("PILOTLIGHT_")),
    }


async def test_a_missing_secret_is_named_with_its_remedy(service: Service) -> None:
    revision = await service.prepare("secretive", HELLO, secrets=("NOPE",))
    with pytest.raises(Problem, match="pilotlight secrets set NOPE"):
        await service.client.builds.verify(revision)


async def test_a_new_revision_takes_over_in_one_step(service: Service) -> None:
    old = await service.deploy("moving", HELLO)
    lease = await service.acquire("moving")
    new = await service.deploy("moving", {"handler.py": "def handle(request):\n    return 'new'\n"})
    assert old.id != new.id
    assert await support.request(lease) == (200, "hello")  # its calls end in peace
    await service.client.invocations.release(lease.id)
    assert await service.ask("moving") == (200, "new")


async def test_rolling_back_brings_the_former_revision_back(service: Service) -> None:
    old = await service.deploy("undone", HELLO)
    await service.deploy("undone", {"handler.py": "def handle(request):\n    return 'worse'\n"})
    assert (await service.client.control.rollback("undone", None)).id == old.id
    assert await service.ask("undone") == (200, "hello")


async def test_min_instances_are_there_before_anybody_calls(service: Service) -> None:
    await service.deploy("ready", HELLO, min_instances=2)
    async with asyncio.timeout(60):
        while len(await service.client.control.instances("ready")) < 2:
            await asyncio.sleep(0.02)
    assert not (await service.acquire("ready")).cold
    await service.client.control.delete_function("ready")


async def test_more_instances_than_allowed_are_refused(service: Service) -> None:
    await service.deploy("few", HELLO, max_instances=1)
    lease = await service.acquire("few")
    with pytest.raises(Problem) as caught:
        await service.acquire("few")
    assert caught.value.kind == "no-capacity"
    await service.client.invocations.release(lease.id)


async def test_idle_instances_end_after_their_keep_alive(service: Service) -> None:
    await service.deploy("short", HELLO, keep_alive=0.0)
    await service.ask("short")
    async with asyncio.timeout(60):
        while await service.client.control.instances("short"):
            await asyncio.sleep(0.02)


async def test_a_job_sees_its_mounts_and_nothing_is_left_of_it(service: Service) -> None:
    source, build = service.data.builds / "a-source", service.data.builds / "a-build"
    for folder in (source, build):
        folder.mkdir()
        service.give(folder)
    (source / "file").write_text("content")
    job = Job(
        runtime="native",
        command=("sh", "-c", "cat /source/file; echo; echo made > /build/made; touch /source/no; exit 3"),
        mounts=(Mount(str(source), "/source"), Mount(str(build), "/build", writable=True)),
    )
    items = [item async for item in service.client.builds.run(job)]
    assert items[0] == Output("content")
    assert items[-1] == Exit(3)
    assert (build / "made").read_text() == "made\n"
    assert not (source / "no").exists()
    said = "Permission denied" if service.mode == support.GVISOR else "Read-only"
    assert any(said in item.line for item in items if isinstance(item, Output))


_SCATTER = "mkdir -p /build/a/b; echo x > /build/a/b/c; ln -s /etc/passwd /build/a/l; echo made"


def _owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize(
    ("rest", "timeout"), [("true", 60.0), ("exit 1", 60.0), ("sleep 60", 0.3), ("kill -9 $$", 60.0)]
)
async def test_what_a_job_made_is_its_owners_when_its_end_is_told(
    service: Service, rest: str, timeout: float
) -> None:
    build = service.data.builds / f"owned-{abs(hash(rest))}"
    build.mkdir()
    service.give(build)
    job = Job(
        runtime="native",
        command=("sh", "-c", f"{_SCATTER}; {rest}"),
        mounts=(Mount(str(build), "/build", writable=True),),
        timeout=timeout,
    )
    async for item in service.client.builds.run(job):
        if isinstance(item, Exit):
            assert _owners(build) == {service.data.builds.stat().st_uid}
    assert (build / "a/b/c").exists()


async def test_what_a_job_made_is_its_owners_as_soon_as_its_stream_is_left(service: Service) -> None:
    build = service.data.builds / "left"
    build.mkdir()
    service.give(build)
    job = Job(
        runtime="native",
        command=("sh", "-c", f"{_SCATTER}; i=0; while :; do i=$((i+1)); echo x > /build/a/$i; done"),
        mounts=(Mount(str(build), "/build", writable=True),),
    )
    stream = service.client.builds.run(job)
    assert await anext(stream) == Output("made")
    await stream.aclose()
    there = sorted(build.rglob("*"))
    assert _owners(build) == {service.data.builds.stat().st_uid}
    assert sorted(build.rglob("*")) == there  # nothing writes any more


async def test_a_job_past_its_deadline_is_killed(service: Service) -> None:
    job = Job(runtime="native", command=("sleep", "60"), mounts=(), folder="/tmp", timeout=0.3)
    items = [item async for item in service.client.builds.run(job)]
    assert isinstance(items[-1], Exit)
    assert "not done after 0.3 s" in items[-1].reason


async def test_a_job_that_fills_the_disk_is_killed(service: Service) -> None:
    build = service.data.builds / "full"
    build.mkdir()
    service.give(build)
    job = Job(
        runtime="native",
        command=("sh", "-c", "while :; do head -c 1000000 /dev/zero >> /build/big; done"),
        mounts=(Mount(str(build), "/build", writable=True),),
        output_limit=8 << 20,
    )
    items = [item async for item in service.client.builds.run(job)]
    assert isinstance(items[-1], Exit)
    assert "more than 8 MB" in items[-1].reason


async def test_metrics_tell_starts_layers_and_builds(service: Service) -> None:
    await service.deploy("measured", HELLO)
    await service.ask("measured")
    job = Job(runtime="native", command=("false",), mounts=(), folder="/tmp")
    assert [item async for item in service.client.builds.run(job)] == [Exit(1)]
    text = await service.client.control.metrics()
    values = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    assert values["pilotlight_cold_start_stage_seconds_count"] >= 1
    assert values["pilotlight_layer_cache_lookups_total"] >= 1
    assert values["pilotlight_layer_cache_bytes"] > 0
    assert values["pilotlight_build_step_seconds_count"] >= 1
    assert values["pilotlight_cold_starts_total"] >= 1


@pytest.mark.parametrize("keep_alive", [0.0, 300.0])
async def test_a_lease_lasts_as_long_as_the_manifest_says(service: Service, keep_alive: float) -> None:
    await service.deploy("lasting", HELLO, keep_alive=keep_alive)
    lease = await service.acquire("lasting")
    assert lease.idle == keep_alive
    await service.client.invocations.stop(lease.id, "test")
