"""A runtime, a function service and a pusher for the builder's tests: real git, real processes, no sandbox."""

import asyncio
import concurrent.futures.thread  # noqa: F401  not found any more once another user may not read it
import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from builder.detect import Languages
from builder.limits import Limits
from builder.package_index import PackageIndex
from builder.server import Builder
from function_service.contract import (
    PLATFORM,
    Actor,
    Builds,
    Exit,
    Image,
    ImageBuild,
    Job,
    Output,
    Revision,
)
from pilotlight import sockets
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem
from pilotlight.rpc import Client
from runtimes.declaration import CompileCache, Dependencies, Interpreter, Runtime, Step

INTERPRETER = Interpreter("toy", "1.0", "/bin/sh")


def _dependencies(folder: Path, interpreter: Interpreter) -> Dependencies | None:
    needs = folder / "needs.txt"
    if not needs.is_file():
        return None
    install = 'cd /build && while read -r name; do echo "Fetching $name"; echo 1 > "$name"; done < /source/needs.txt'
    return Dependencies(
        (("needs.txt", needs.read_bytes()),),
        (Step("Install needs.txt", ("/bin/sh", "-c", install), network=True),),
    )


def _assemble(folder: Path, interpreter: Interpreter) -> tuple[Step, ...]:
    steps = (Step("Copy the files", ("/bin/sh", "-c", "cp -a /source/. /build/")),)
    if (folder / "build.sh").is_file():
        steps += (Step("Run build.sh", ("/bin/sh", "-c", "cd /build && sh ./build.sh")),)
    return steps


def _compile_cache(interpreter: Interpreter, handler: str) -> CompileCache | None:
    if not handler.startswith("compiled"):
        return None
    load = f"! grep unloadable /function/{handler} && cat /function/{handler} /dependencies/* > /build/made"
    return CompileCache(Step("Compile ahead", ("/bin/sh", "-c", load)), ".cache")


TOY = Runtime(
    name="toy",
    title="Toy",
    forkable=False,
    shim=None,
    template=Path("/nonexistent"),
    find=lambda: (INTERPRETER,),
    recognise=lambda folder: "handler.toy" if (folder / "handler.toy").is_file() else None,
    check=lambda folder, handler: (
        None if (folder / handler).is_file() else f"there is no file {handler!r}; add it."
    ),
    dependencies=_dependencies,
    assemble=_assemble,
    boot=lambda interpreter: None,
    compile_cache=_compile_cache,
    image_file="Toyfile",
)
GHOST = Runtime(
    name="ghost",
    title="Ghost",
    forkable=False,
    shim=None,
    template=Path("/nonexistent"),
    find=tuple,
    recognise=lambda folder: "handler.ghost" if (folder / "handler.ghost").is_file() else None,
    check=lambda folder, handler: None,
    dependencies=lambda folder, interpreter: None,
    assemble=lambda folder, interpreter: (),
    boot=lambda interpreter: None,
)
LANGUAGES = Languages({"ghost": GHOST, "toy": TOY}, {"ghost": (), "toy": (INTERPRETER,)})
INDEX = PackageIndex({"SSL_CERT_FILE": "/certificates"}, ("pypi.org:443",), ())


class FakeBuilds:
    """What the builder needs of the function service; jobs run unsandboxed, with their paths rewritten."""

    def __init__(self, data: DataFolder) -> None:
        self.data = data
        self.jobs: list[Job] = []
        self.running = 0
        self.verified: list[str] = []
        self.owners: dict[str, str] = {}
        self.prepared: dict[tuple[str, str], list[Revision]] = {}
        self.live: dict[str, tuple[str, list[Revision]]] = {}
        self.activations = 0
        self.deployers: list[Actor] = []
        self.refuse_activation: Problem | None = None
        self.images: dict[str, str] = {}  # name → id
        self.built: list[ImageBuild] = []
        self.hold: tuple[asyncio.Event, asyncio.Event] | None = None  # set when activating; then waited for

    async def settle(self) -> None:
        pass  # the only machine

    async def runtimes(self) -> list[str]:
        return ["toy1.0"]

    async def claim(self, app: str, functions: list[str]) -> None:
        for name in functions:
            if self.owners.setdefault(name, app) != app:
                raise Problem(
                    "conflict", f"The function {name!r} belongs to the app {self.owners[name]!r}. Rename it."
                )

    async def current(self, app: str) -> list[Revision]:
        return self.live.get(app, ("", []))[1]

    async def commit(self, app: str) -> str | None:
        return self.live[app][0] if app in self.live else None

    async def run(self, job: Job) -> AsyncIterator[Output | Exit]:
        self.jobs.append(job)
        places = {mount.target: mount.source for mount in job.mounts}

        def outside(text: str) -> str:
            targets = "|".join(sorted(map(re.escape, places), key=len, reverse=True))
            return re.sub(rf"(?<![\w.])(?:{targets})(?![\w-])", lambda match: places[match[0]], text)

        self.running += 1
        process = await asyncio.create_subprocess_exec(
            *map(outside, job.command),
            cwd=places["/build"],
            env={"PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async for line in process.stdout:
                yield Output(line.decode().rstrip("\n"))
            yield Exit(await process.wait())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            self.running -= 1

    async def image(self, name: str, runtime: str) -> AsyncIterator[Output | Image]:
        if name not in self.images:
            raise Problem("build-failed", f"There is no image {name}.")
        yield Output(f"Pulling {name}")
        yield Image(name=name, id=self.images[name], runtime="toy2.0", executable="/toy", env={"A": "b"})

    async def build_image(self, order: ImageBuild) -> AsyncIterator[Output | Image]:
        self.built.append(order)
        text = Path(order.folder, "Toyfile").read_text()
        for line in text.splitlines():
            yield Output(f"Step: {line}")
        if "broken" in text:
            raise Problem("build-failed", "the step is broken.")
        yield Image(
            name="Toyfile", id=f"sha256:{order.digest}", runtime="toy", executable="", command=("run",)
        )

    async def has_layer(self, digest: str) -> bool:
        return (self.data.layers / digest).is_dir()

    async def seal_layer(self, digest: str, folder: str, description: str) -> None:
        assert Path(folder).is_relative_to(self.data.builds)
        shutil.move(folder, self.data.layers / digest)

    async def verify(self, revision: Revision) -> None:
        self.verified.append(revision.config.name)
        if revision.image is not None and revision.image.command:
            return
        handler = self.data.layers / revision.code / revision.config.handler
        if "broken" in handler.read_text():
            raise Problem(
                "init-failed", "NameError: name 'x' is not defined.", logs=["Traceback:", "  line 1"]
            )

    async def prepare(self, app: str, commit: str, revisions: list[Revision]) -> None:
        self.prepared[app, commit] = revisions

    async def activate(self, app: str, commit: str, by: Actor = PLATFORM) -> None:
        if self.hold is not None:
            self.hold[0].set()
            await self.hold[1].wait()
        if self.refuse_activation is not None:
            raise self.refuse_activation
        if app in self.live and self.live[app][0] == commit:
            return
        if (app, commit) not in self.prepared:
            raise Problem("not-found", f"Nothing was prepared for {app} {commit}.")
        self.activations += 1
        self.deployers.append(by)
        self.live[app] = (commit, self.prepared[app, commit])

    def ids(self, app: str) -> dict[str, str]:
        return {each.config.name: each.id for each in self.live[app][1]}


@contextlib.asynccontextmanager
async def tcp_front(path: Path) -> AsyncIterator[int]:
    """Let git reach a Unix socket; stands in for the gateway."""
    pipes: set[asyncio.Task] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        pipes.add(task)
        try:
            inner, inner_writer = await asyncio.open_unix_connection(sockets.address(path))
            await asyncio.gather(copy(reader, inner_writer), copy(inner, writer))
        except (ConnectionError, FileNotFoundError, asyncio.CancelledError):
            writer.close()
        finally:
            pipes.discard(task)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in pipes:
            task.cancel()
        await asyncio.gather(*pipes)


class Work:
    """A work tree of somebody who pushes."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    async def git(self, *arguments: str, check: bool = True) -> str:
        code, output = await self.try_git(*arguments)
        assert code == 0 or not check, output
        return output.strip()

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_AUTHOR_NAME": "A",
                "GIT_AUTHOR_EMAIL": "a@example.org",
                "GIT_COMMITTER_NAME": "A",
                "GIT_COMMITTER_EMAIL": "a@example.org",
                "GIT_TERMINAL_PROMPT": "0",
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def try_git(self, *arguments: str) -> tuple[int, str]:
        process = await self.start(*arguments)
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    async def commit(self, files: dict[str, str | bytes | None], message: str = "x") -> str:
        """Write files (None: delete), commit everything, and return the commit."""
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        await self.git("add", "-A")
        await self.git("commit", "-q", "--allow-empty", "-m", message)
        return await self.git("rev-parse", "HEAD")

    async def push(self, *refs: str) -> tuple[int, list[str]]:
        """Push, and return git's exit code and what the remote said."""
        code, output = await self.try_git("push", self.url, *(refs or ("main",)))
        return code, said(output)


def said(output: str) -> list[str]:
    """Return what the remote said, without git's own lines and spaces at the ends."""
    lines = [
        line.removeprefix("remote:").rstrip() for line in output.splitlines() if line.startswith("remote:")
    ]
    return [line.removeprefix(" ") for line in lines if line]


class Platform:
    """A builder with its fake function service, in a data folder."""

    def __init__(self, data: DataFolder, builds: FakeBuilds, port: int, root: Path) -> None:
        self.data = data
        self.builds = builds
        self.port = port
        self.root = root

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def work(self, app: str, folder: str | None = None) -> Work:
        path = self.root / (folder or f"work-{app}")
        path.mkdir()
        work = Work(path, f"{self.address}/git/{app}.git")
        await work.git("init", "-q", "-b", "main")
        return work

    def repositories(self) -> list[str]:
        return sorted(
            p.name for p in self.data.repositories.iterdir() if p.name not in (".hooks", ".empty.git")
        )

    def leftovers(self) -> list[str]:
        """What a push must never leave behind."""
        found = [str(p) for p in self.data.builds.iterdir()]
        found += [str(p) for p in self.data.repositories.glob("*/objects/*incoming*")]
        return found + [str(p) for p in self.data.repositories.glob(".[ng]*-*")]


async def main(folder: str) -> None:
    """Run a builder alone, for tests that kill it or run it as another user."""
    data = DataFolder(Path(folder))
    client = Client(data.socket("function-service"))
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)

    async def languages() -> Languages:
        return LANGUAGES

    builder = Builder(data, client.of(Builds), languages, INDEX, Limits())
    await builder.serve(stopping, lambda: print("ready", flush=True))
    await client.close()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[2]))
    asyncio.run(main(sys.argv[1]))
