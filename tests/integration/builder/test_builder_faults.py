"""Pushes that break off, come twice at once, or outlive the builder; and what the git remote refuses."""

import asyncio
import contextlib
import gzip
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import toy
import yarl
from toy import FakeBuilds, Platform, said, tcp_front

from builder.limits import Limits
from builder.pushes import Pushes
from builder.recovery import catch_up
from builder.repository import Repositories
from function_service.contract import Builds
from pilotlight.datafolder import DataFolder
from pilotlight.rpc import Server
from tests.support.attacks import processes_with


class Gate:
    """A build step that waits until the test lets it go: build.sh announces itself and reads a pipe."""

    def __init__(self, folder: Path) -> None:
        self.started, self.go = folder / "started", folder / "go"
        os.mkfifo(self.started)
        os.mkfifo(self.go)

    @property
    def script(self) -> str:
        return f"echo waiting\necho x > {self.started}\nread line < {self.go}\necho on\n"

    async def reached(self) -> None:
        async with asyncio.timeout(10):
            await asyncio.to_thread(self.started.read_text)

    async def open(self) -> None:
        await asyncio.to_thread(self.go.write_text, "x\n")


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


async def until(condition) -> None:
    """Wait for a state that nothing announces to us."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_lines_reach_the_pusher_while_the_build_runs(platform, gate):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x", "build.sh": gate.script})
    push = await work.start("push", work.url, "main")
    await gate.reached()
    seen = b""
    async with asyncio.timeout(10):
        while b"waiting" not in seen:
            seen += await push.stdout.read(1000)
    await gate.open()
    rest, _ = await push.communicate()
    assert push.returncode == 0
    assert "    on" in said((seen + rest).decode())


async def test_a_pusher_who_goes_away_ends_the_build_and_leaves_nothing(platform, gate):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x", "build.sh": gate.script})
    push = await work.start("push", work.url, "main")
    await gate.reached()
    os.killpg(push.pid, signal.SIGKILL)
    await push.wait()
    await until(lambda: platform.builds.running == 0 and not platform.repositories())
    await until(lambda: not platform.leftovers())
    assert platform.builds.prepared == {}


async def test_a_second_push_waits_its_turn_and_is_refused_when_the_branch_has_moved(platform, gate):
    one = await platform.work("hello")
    await one.commit({"handler.toy": "x"})
    await one.push()
    two = await platform.work("hello", "other")
    await two.git("pull", "-q", two.url, "main")
    await one.commit({"build.sh": gate.script})
    first = await one.start("push", one.url, "main")
    await gate.reached()
    await two.commit({"handler.toy": "y"})
    second = await two.start("push", two.url, "main")
    seen = b""
    async with asyncio.timeout(10):
        while b"waiting for its end" not in seen:
            seen += await second.stdout.read(1000)
    await gate.open()
    output, _ = await first.communicate()
    assert first.returncode == 0, output
    rest, _ = await second.communicate()
    assert second.returncode == 1
    assert said((seen + rest).decode()) == [
        "Another push to 'hello' is under way; waiting for its end.",
        (
            "The branch 'main' has moved meanwhile: another push came first. Fetch it, see what it changed, "
            "and push again."
        ),
        "The push is rejected, and nothing was changed: what ran before still runs.",
    ]
    assert platform.builds.live["hello"][0] == await one.git("rev-parse", "HEAD")


async def test_two_first_pushes_at_once_leave_one_winner(platform):
    works = [await platform.work("hello", f"w{number}") for number in range(2)]
    for number, work in enumerate(works):
        await work.commit({"handler.toy": str(number)})
    results = await asyncio.gather(*(work.push() for work in works))
    assert sorted(code for code, _ in results) == [0, 1]
    winner = next(work for work, (code, _) in zip(works, results, strict=True) if code == 0)
    assert platform.builds.live["hello"][0] == await winner.git("rev-parse", "HEAD")


async def test_stopping_the_builder_refuses_the_push_with_a_word(platform, gate):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x", "build.sh": gate.script})
    push = await work.start("push", work.url, "main")
    await gate.reached()
    platform.stopping.set()
    output, _ = await push.communicate()
    assert push.returncode == 1
    assert said(output.decode())[-1] == (
        "Pilotlight is being stopped. Nothing was changed; push again when it is back."
    )
    await until(lambda: platform.repositories() == [])


class TestBounds:
    @pytest.fixture
    def limits(self):
        return replace(Limits(), file=1000, tree=3000, files=5, pack=200_000, turn=0.2, lines=3, line=20)

    async def test_a_huge_file_is_refused(self, platform):
        work = await platform.work("hello")
        await work.commit({"handler.toy": "x", "big.bin": b"x" * 1001})
        _, lines = await work.push()
        assert lines[1] == "'big.bin' is larger than 1000 bytes, as large as a file may be. Leave it out."

    async def test_a_huge_tree_is_refused(self, platform):
        work = await platform.work("hello")
        await work.commit({"handler.toy": "x", **{f"f{n}": b"x" * 1000 for n in range(4)}})
        _, lines = await work.push()
        assert lines[1] == (
            "The files of the commit are 4001 bytes together, and may be 3000 bytes. Leave out what can be "
            "made from the rest (dependencies, build results)."
        )

    async def test_too_many_files_are_refused(self, platform):
        work = await platform.work("hello")
        await work.commit({f"f{n}": "x" for n in range(6)})
        _, lines = await work.push()
        assert lines[1] == (
            "The commit has more than 5 files. Leave out what can be made from the rest (dependencies, "
            "build results)."
        )

    async def test_a_huge_pack_is_refused_by_git(self, platform):
        work = await platform.work("hello")
        await work.commit({"handler.toy": "x", "big.bin": os.urandom(4_000_000)})
        code, lines = await work.push()
        assert code == 1
        assert "pack exceeds maximum allowed size" in "\n".join(lines)
        assert platform.repositories() == []

    async def test_what_a_step_prints_is_bounded(self, platform):
        work = await platform.work("hello")
        await work.commit({"handler.toy": "x", "build.sh": "seq 1 5\n"})
        _, lines = await work.push()
        at = lines.index("  Run build.sh")
        assert lines[at + 1 : at + 5] == ["    1", "    2", "    3", "    … and more, which is not shown"]

    async def test_a_turn_is_not_waited_for_without_end(self, platform, gate):
        work = await platform.work("hello")
        await work.commit({"handler.toy": "x", "build.sh": gate.script})
        push = await work.start("push", work.url, "main")
        await gate.reached()
        code, lines = await work.push("main:idea")
        assert code == 1
        assert lines[1] == "The other push did not end within 0 s. Push again later."
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(platform.data.socket("builder")))
        ) as s:
            answer = await s.delete("http://builder/repositories/hello")
            assert answer.status == 409
        await gate.open()
        await push.communicate()


async def test_a_clone_gives_back_what_was_pushed(platform, tmp_path):
    work = await platform.work("hello")
    commit = await work.commit({"handler.toy": "x" * 10_000})
    await work.push()
    await work.git("clone", "-q", work.url, str(tmp_path / "clone"))
    clone = toy.Work(tmp_path / "clone", work.url)
    assert await clone.git("rev-parse", "HEAD") == commit


async def test_a_large_push_is_streamed(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x", "big.bin": os.urandom(8 << 20)})
    await work.git("config", "http.postBuffer", "65536")  # makes git send it chunked, after a probe
    code, lines = await work.push()
    assert code == 0, lines


async def test_the_fetch_of_an_unknown_app_says_so(platform):
    work = await platform.work("nobody")
    code, output = await work.try_git("ls-remote", work.url)
    assert code == 128
    assert "remote: There is no app 'nobody' here. The first push makes it." in output


async def test_a_bad_name_says_which_are_good(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x"})
    work.url = f"{platform.address}/git/Hello_.git"
    _, output = await work.try_git("push", work.url, "main")
    assert (
        "remote: 'Hello_' can't name an app. Use lower-case letters, digits and inner dashes, a letter first, "
        "at most 63 characters."
    ) in output


@pytest.fixture
async def http(platform):
    async with aiohttp.ClientSession(platform.address) as session:
        yield session


@pytest.mark.parametrize(
    ("call", "status", "kind"),
    [
        ("GET /git/hello.git/info/refs", 403, "forbidden"),
        ("GET /git/hello.git/info/refs?service=git-upload-archive", 403, "forbidden"),
        ("GET /git/hello.git/info/refs?service=git-upload-pack", 404, "not-found"),
        ("POST /git/hello.git/git-upload-pack", 404, "not-found"),
        ("GET /git/hello.git/HEAD", 404, "not-found"),
        ("GET /git/hello.git/objects/info/packs", 404, "not-found"),
        ("GET /git/..%2fx.git/info/refs?service=git-upload-pack", 400, "invalid-request"),
        ("PUT /git/hello.git/info/refs", 405, "method-not-allowed"),
        ("DELETE /repositories/hello", 404, "not-found"),
        ("DELETE /repositories/.hooks", 400, "invalid-request"),
    ],
)
async def test_what_is_not_served_is_answered_by_a_problem(platform, http, call, status, kind):
    method, path = call.split()
    answer = await http.request(method, yarl.URL(platform.address + path, encoded=True))
    assert answer.status == status
    assert answer.headers["Pilotlight-Error"] == kind
    assert answer.content_type == "application/problem+json"
    assert (await answer.json(content_type=None))["detail"]


async def test_a_compressed_request_is_understood(platform, http):
    work = await platform.work("hello")
    commit = await work.commit({"handler.toy": "x"})
    await work.push()
    want = f"want {commit}\n".encode()
    body = b"%04x" % (len(want) + 4) + want + b"0000" + b"0009done\n"
    answer = await http.post(
        "/git/hello.git/git-upload-pack",
        data=gzip.compress(body),
        headers={"Content-Type": "application/x-git-upload-pack-request", "Content-Encoding": "gzip"},
    )
    assert answer.status == 200
    assert b"PACK" in await answer.read()


async def test_urls_are_those_of_the_gateway_that_was_called(platform, http):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x"})
    await work.git("config", "--add", "http.extraHeader", "X-Forwarded-Host: faas.example.org")
    await work.git("config", "--add", "http.extraHeader", "X-Forwarded-Proto: https")
    _, lines = await work.push()
    assert lines[-1] == "  hello  https://faas.example.org/function/hello (with a key)"


async def test_a_deleted_repository_is_gone_and_can_be_pushed_anew(platform, http):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x"})
    await work.push()
    assert (await http.delete("/repositories/hello")).status == 204
    assert platform.repositories() == []
    assert (await work.push())[0] == 0


async def test_a_commit_that_hides_a_git_folder_is_refused(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x", "sub/a": "x"})
    tree = await work.git("rev-parse", "HEAD:sub")
    made = subprocess.run(
        ["git", "mktree"],
        cwd=work.folder,
        input=f"040000 tree {tree}\t.GIT\n".encode(),
        capture_output=True,
        check=True,
    )
    commit = await work.git("commit-tree", "-m", "x", made.stdout.decode().strip())
    code, lines = await work.push(f"{commit}:refs/heads/main")
    assert code == 1
    assert "hasDotgit" in "\n".join(lines)
    assert platform.repositories() == []


@contextlib.asynccontextmanager
async def builder_process(data: DataFolder, *arguments: str):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        toy.__file__,
        str(data.root),
        *arguments,
        env={"PYTHONPATH": str(Path(toy.__file__).parents[3]), "PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        cwd="/",  # another user may not be able to be where the tests are run
    )
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"ready\n"
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(10):
                await process.wait()


@pytest.fixture
async def service(tmp_path):
    data = DataFolder(tmp_path / "data")
    data.prepare()
    fake = FakeBuilds(data)
    server = Server(data.socket("function-service"), {Builds: fake})
    await server.start()
    yield Platform(data, fake, 0, tmp_path)
    await server.close()


async def test_a_builder_killed_during_a_build_leaves_nothing_after_its_restart(service, gate):
    async with (
        builder_process(service.data) as process,
        tcp_front(service.data.socket("builder")) as service.port,
    ):
        work = await service.work("hello")
        await work.commit({"handler.toy": "x", "build.sh": gate.script})
        push = await work.start("push", work.url, "main")
        await gate.reached()
        process.kill()
        await process.wait()
        await push.communicate()
        assert push.returncode != 0
        await until(lambda: service.builds.running == 0)
        async with builder_process(service.data):
            await until(lambda: service.repositories() == [])
            assert service.leftovers() == []
            await work.commit({"build.sh": None})
            code, lines = await work.push()
            assert code == 0, lines


async def test_a_builder_killed_during_an_upload_takes_its_git_along(service):
    def gits() -> list[str]:
        return processes_with(str(service.data.repositories).encode(), "environ")

    async with (
        builder_process(service.data) as process,
        tcp_front(service.data.socket("builder")) as service.port,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(
            b"POST /git/gone.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
            b"Content-Type: application/x-git-receive-pack-request\r\n\r\n0000"
        )
        await writer.drain()
        await until(gits)
        process.kill()
        await process.wait()
        await until(lambda: not gits())
        writer.close()


async def test_a_ref_that_moved_before_the_builder_died_goes_live_at_its_restart(service):
    async with (
        builder_process(service.data) as process,
        tcp_front(service.data.socket("builder")) as service.port,
    ):
        work = await service.work("hello")
        commit = await work.commit({"handler.toy": "x"})
        held, release = asyncio.Event(), asyncio.Event()
        service.builds.hold = (held, release)
        push = await work.start("push", work.url, "main")
        async with asyncio.timeout(10):
            await held.wait()
        process.kill()
        await process.wait()
        await push.communicate()
        service.builds.hold = None
        assert service.builds.live == {}
        async with builder_process(service.data):
            await until(lambda: service.builds.live.get("hello", ("",))[0] == commit)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_the_builder_and_its_hooks_work_as_an_unprivileged_user(service):
    for folder in (service.data.repositories, service.data.builds, service.data.run):
        os.chown(folder, 64321, 64321)
    for parent in [service.data.root, *service.data.root.parents]:
        if parent != Path("/") and not stat.S_IMODE(parent.stat().st_mode) & 0o001:
            parent.chmod(0o711)
    service.data.socket("function-service").chmod(0o666)
    async with (
        builder_process(service.data, "64321"),
        tcp_front(service.data.socket("builder")) as service.port,
    ):
        work = await service.work("hello")
        await work.commit({"handler.toy": "x"})
        code, lines = await work.push()
        assert code == 0, lines
        assert lines[-2] == "Live now:"


async def test_a_builder_that_catches_up_leaves_the_repository_of_a_push_alone(tmp_path):
    data = DataFolder(tmp_path / "data")
    data.prepare()
    repositories = Repositories(data.repositories, Limits())
    await repositories.prepare()
    pushes = Pushes(repositories, None, None)  # no hook asks anything here
    async with pushes.open("hello", "http://127.0.0.1"):
        await catch_up(repositories, pushes, FakeBuilds(data))
        assert repositories.apps() == ["hello"]
    assert repositories.apps() == []
    await repositories.create("hello")  # as a builder that was killed leaves it
    async with pushes.reading("hello"):  # the next push has asked for the refs already
        await catch_up(repositories, pushes, FakeBuilds(data))
        assert repositories.apps() == ["hello"]
    assert repositories.apps() == []
    await repositories.create("hello")
    await catch_up(repositories, pushes, FakeBuilds(data))
    assert repositories.apps() == []
