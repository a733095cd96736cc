"""Attacks from within builds, and by what a build leaves behind: the service touches it as root."""

import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from function_service.contract import Exit, Job, Mount, Output
from pilotlight.problems import Problem
from tests.support import service as support
from tests.support.attacks import HELLO, TRY, as_root, folder, kinds, processes_with
from tests.support.service import Service


@pytest_asyncio.fixture(params=support.modes(), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with support.running(request.param) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def run(service: Service, script: str, *mounts: Mount, **job: Any) -> tuple[list[str], Exit]:
    """Run a Python script as a build; return what it printed and how it ended."""
    command = ("/usr/bin/python3", "-I", "-c", script)
    settings = {"folder": "/tmp"} | job
    stream = service.client.builds.run(
        Job(runtime=service.python, command=command, mounts=mounts, **settings)
    )
    items = [item async for item in stream]
    assert isinstance(items[-1], Exit)
    return [item.line for item in items if isinstance(item, Output)], items[-1]


async def test_a_build_is_confined_like_a_function(service: Service) -> None:
    source = folder(service, "the-source")
    (source / "file").write_text("x")
    service.give(source)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        script = f"""{TRY}
import json, socket
hosts = [("127.0.0.1", {listener.getsockname()[1]}), ("1.1.1.1", 80)]
print(json.dumps({{
    "read": [attempt(look, p) for p in ("/etc/shadow", "/root", "/home", {str(service.data.root)!r}, "/proc/kcore", "/proc/sys")],
    "write": [attempt(open, p, "w") for p in ("/source/new", "/source/file", "/etc/x", "/function/x", "/usr/x")]
             + [attempt(os.chmod, "/source/file", 0o777), attempt(os.unlink, "/source/file")],
    "link": attempt(os.link, "/source/file", "/tmp/link"),
    "connect": [attempt(socket.create_connection, host) for host in hosts],
    "raw": attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1),
    "links": links(),
    "processes": len([p for p in os.listdir("/proc") if p.isdigit()]),
    "status": {{n: t.strip() for n, t in (l.split(":", 1) for l in open("/proc/self/status").read().splitlines())
               if n.startswith(("Cap", "NoNew", "Seccomp", "Uid"))}},
    "env": dict(os.environ),
}}))
"""
        lines, end = await run(service, script, Mount(str(source), "/source"))
    assert end == Exit(0), lines
    found = json.loads(lines[0])
    assert set(found["read"]) == {"ENOENT"}
    assert set(found["write"]) <= {"EROFS", "EACCES"}
    assert found["link"] == "EXDEV"
    assert found["connect"] == ["ECONNREFUSED", "ENETUNREACH"]
    assert found["raw"] == "EPERM"
    assert kinds(found["links"]) <= {"pipe", "/dev/null", "/proc/2/fd"}
    assert found["processes"] == 2
    status = found["status"]
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "0" not in status["Uid"].split()
    assert set(found["env"]) <= {"PATH", "HOME", "LANG", "LC_CTYPE"}


@pytest.mark.parametrize(
    "step",
    [
        "os.mkdir(str(n))",
        "open(str(n), 'w').close()",
        "os.symlink('x', str(n))",
        "open('f', 'w').write('x' * 65536); os.mkdir('d'); os.chdir('d')",
    ],
    ids=["folders", "empty files", "links", "in the depth"],
)
async def test_a_build_cannot_hide_what_it_writes(service: Service, step: str) -> None:
    build = folder(service, f"hiding-{abs(hash(step))}")
    # A hundred thousand within a look would take all that a /tmp in memory has
    pace = "time.sleep(1e-4)"
    script = f"import os, time\nos.chdir('/build')\nfor n in range(10**9):\n    {step}; {pace}"
    said, end = await run(
        service, script, Mount(str(build), "/build", writable=True), output_limit=4 << 20, timeout=60.0
    )
    assert "more than 4 MB" in end.reason, said


async def test_links_in_what_a_build_made_lead_nowhere(service: Service, tmp_path: Path) -> None:
    """The service gives the folder to the sandbox and back, then seals it: nothing outside may change."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "file").write_text("secret")
    (outside / "file").chmod(0o600)
    victims = [outside, outside / "file", Path("/etc/shadow"), Path("/etc"), Path("/etc/passwd")]
    before = [_state(path) for path in victims]
    build = folder(service, "linking")
    script = f"""
import os
os.chdir("/build")
for number, target in enumerate({[str(v) for v in victims]!r} + ["../../../../../etc/shadow", "/", "..", "."]):
    os.symlink(target, f"link-{{number}}")
os.mkdir("closed")
open("closed/file", "w").write("x")
os.chmod("closed/file", 0o6777)
os.chmod("closed", 0)
os.chmod(".", 0)
"""
    lines, end = await run(service, script, Mount(str(build), "/build", writable=True))
    assert end == Exit(0), lines
    owner = service.data.builds.stat().st_uid
    assert {path.lstat().st_uid for path in (build, *build.rglob("*"))} == {owner}
    assert [_state(path) for path in victims] == before
    await service.client.builds.seal_layer("hostile-links", str(build), "hostile")
    assert [_state(path) for path in victims] == before
    layer = service.data.layers / "hostile-links"
    assert (layer / "link-0").is_symlink()
    assert (layer / "closed/file").stat().st_mode & 0o7777 == 0o755
    assert layer.stat().st_mode & 0o777 == 0o755


def _state(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid, status.st_nlink


async def test_links_in_a_layer_end_within_the_sandbox(service: Service) -> None:
    build = folder(service, "reading")
    (build / "handler.py").write_text(support.PROBE)
    (build / "shadow").symlink_to("/etc/shadow")
    (build / "key").symlink_to(service.data.admin_key)
    service.give(build)
    await service.client.builds.seal_layer("reading-links", str(build), "reading")
    revision = await service.prepare("reading", {"handler.py": support.PROBE})
    revision = msgspec.structs.replace(revision, id="rreading", code="reading-links")
    await service.client.builds.prepare("reading", revision.commit, [revision])
    await service.client.builds.activate("reading", revision.commit)
    source = f"{TRY}\nresult = [attempt(open, p) for p in ('/function/shadow', '/function/key')]"
    assert await service.probe("reading", source) == ["ENOENT", "ENOENT"]


async def test_hard_links_to_files_of_others_are_neither_given_away_nor_sealed(service: Service) -> None:
    if not as_root(service):
        return  # an ordinary user's service can't change what belongs to others
    victim = service.data.root / "victim"
    victim.write_text("secret")
    victim.chmod(0o640)
    before = victim.stat()
    build = folder(service, "hard-linking")
    os.link(victim, build / "link")
    script = "import os\ntry:\n  open('/build/link', 'a')\nexcept OSError as error:\n  print(error.strerror)"
    lines, _ = await run(service, script, Mount(str(build), "/build", writable=True))
    assert lines == ["Permission denied"]
    with pytest.raises(Problem, match="somebody else") as caught:
        await service.client.builds.seal_layer("hard-links", str(build), "hostile")
    assert caught.value.kind == "build-failed"
    assert (victim.stat().st_mode, victim.stat().st_uid) == (before.st_mode, before.st_uid)
    assert not await service.client.builds.has_layer("hard-links")


async def test_folders_outside_of_builds_are_neither_mounted_writable_nor_sealed(
    service: Service, tmp_path: Path
) -> None:
    way_out = service.data.builds / "way-out"
    way_out.symlink_to(tmp_path)
    for path in (tmp_path, way_out, service.data.builds / "..", service.data.builds):
        with pytest.raises(Problem, match="not a folder of a build"):
            await run(service, "pass", Mount(str(path), "/build", writable=True))
        with pytest.raises(Problem, match="not a folder of a build"):
            await service.client.builds.seal_layer("outside", str(path), "x")
    way_out.unlink()


@pytest.mark.parametrize(
    "script",
    ["import os\nos.mkfifo('/build/odd')", "import socket\nsocket.socket(socket.AF_UNIX).bind('/build/odd')"],
    ids=["pipe", "socket"],
)
async def test_what_cannot_be_in_a_layer_is_refused_and_gone(service: Service, script: str) -> None:
    build = folder(service, "odd")
    _, end = await run(service, script, Mount(str(build), "/build", writable=True))
    assert end == Exit(0)
    with pytest.raises(Problem, match="odd is not a file, folder or link"):
        await service.client.builds.seal_layer("odd", str(build), "odd")
    assert not build.exists()
    assert not await service.client.builds.has_layer("odd")
    assert not list(service.data.layers.glob("*.work"))


async def test_a_job_that_cannot_be_set_up_says_why(service: Service) -> None:
    source = folder(service, "nowhere")
    lines, end = await run(service, "pass", Mount(str(source), "/no/such/place"))
    assert end.code != 0
    assert end.reason
    assert any("move_mount" in line for line in lines)


async def test_leaving_the_stream_of_a_build_kills_it(service: Service) -> None:
    build = folder(service, "left")
    command = ("/bin/sh", "-c", "echo begun; sleep 7653; echo done > /build/done")
    mounts = (Mount(str(build), "/build", writable=True),)
    stream = service.client.builds.run(Job(runtime="native", command=command, mounts=mounts))
    assert await anext(stream) == Output("begun")
    await stream.aclose()
    while build.stat().st_uid != service.data.builds.stat().st_uid or _sleeping():
        await service.client.builds.runtimes()  # until the service has come round to it
    assert not (build / "done").exists()


def _sleeping() -> bool:
    return bool(processes_with(b"sleep\x007653\x00", "cmdline"))


async def test_names_and_digests_cannot_lead_elsewhere(service: Service) -> None:
    revision = await service.prepare("naming", HELLO)
    for name in ("../escape", "a/b", "", "A", "x" * 64):
        config = msgspec.structs.replace(revision.config, name=name)
        with pytest.raises(Problem, match="can't be a name"):
            await service.client.builds.prepare(
                "naming", "c", [msgspec.structs.replace(revision, config=config)]
            )
    for digest in ("../../etc", "/etc", "..", ""):
        hostile = msgspec.structs.replace(revision, code=digest)
        for action in (
            service.client.builds.verify(hostile),
            service.client.builds.prepare("naming", "c", [hostile]),
        ):
            with pytest.raises(Problem, match="digest"):
                await action
        with pytest.raises(Problem, match="digest"):
            await service.client.builds.seal_layer(
                digest, str(folder(service, f"naming-{len(digest)}-{digest.count('.')}")), "x"
            )


async def test_what_a_build_leaves_behind_ends_with_it(service: Service) -> None:
    """A daemon of a build step must not see the next step, nor what was made of its folder."""
    script = """
import os
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 64)
            os.execv("/bin/sleep", ["sleep", "7652"])
        os._exit(0)
    os.wait()
"""
    _, end = await run(service, script)
    assert end == Exit(0)
    assert processes_with(b"sleep\x007652\x00", "cmdline") == []
