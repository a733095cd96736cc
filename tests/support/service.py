"""A real function service in a process of its own: on the embedded engine as root or as an ordinary user, on Docker."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from function_service.client import FunctionServiceClient
from function_service.contract import FunctionConfig, Image, Lease, Revision
from pilotlight import sockets, trees
from pilotlight.datafolder import DataFolder
from runtimes.declaration import load_all
from tests.support import dockers

ROOT = Path(__file__).parents[2]
USER = 23456  # an ordinary user that exists nowhere
DOCKER = "docker"  # root, on the docker engine
GVISOR = "gvisor"  # the same, where each container has a kernel of its own
REMAPPED = "remapped"  # the same, where containers have a user namespace
DOCKERD = "/var/run/docker.sock"

Mode = int | str
"""The user as whom the embedded engine runs, or a kind of dockerd."""

_START = """
import os, sys
from pathlib import Path
from pilotlight.privileges import drop
user = int(sys.argv[1])
if user:
    drop(user, keep=map(Path, sys.argv[5:] + sys.argv[3:4]))
flags = ["--anchor", sys.argv[2]] if sys.argv[2] else []
command = [sys.executable, "-m", "cli.main", "function-service", "--data", sys.argv[3], "--engine", sys.argv[4]]
os.execv(sys.executable, command + flags)
"""

PROBE = """
import json, os, sys
def handle(request):
    scope = {}
    exec(request.text, scope)
    return json.dumps(scope["result"])
"""
"""A function that runs what it is sent, and answers what that calls `result`."""


@dataclass
class Service:
    """A function service under test."""

    data: DataFolder
    client: FunctionServiceClient
    process: asyncio.subprocess.Process
    python: str
    mode: Mode
    dockerd: str

    @property
    def forks(self) -> bool:
        """Whether its engine makes snapshots."""
        return not isinstance(self.mode, str)

    @property
    def short_start(self) -> float:
        """Seconds in which a start can be tried, also where a sandbox has to be made for it."""
        return 1.5 if self.forks else 6.0

    def containers(self) -> set[str]:
        """Return the names of its containers."""
        return containers(self.data.label, self.dockerd)

    async def deploy(
        self, name: str, files: dict[str, str], *, handler: str = "handler:handle", **config: Any
    ) -> Revision:
        """Make a revision out of files live."""
        revision = await self.prepare(name, files, handler=handler, **config)
        await self.client.builds.prepare(name, revision.commit, [revision])
        await self.client.builds.activate(name, revision.commit)
        return revision

    async def prepare(
        self,
        name: str,
        files: dict[str, str],
        *,
        handler: str = "handler:handle",
        image: Image | None = None,
        dependencies: str | None = None,
        **config: Any,
    ) -> Revision:
        """Make the layer of a revision."""
        digest = "code-" + hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
        if not await self.client.builds.has_layer(digest):
            folder = Path(tempfile.mkdtemp(dir=self.data.builds))
            for path, content in files.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content)
                target.chmod(0o755 if content.startswith("#!") else 0o644)
            self.give(folder)
            await self.client.builds.seal_layer(digest, str(folder), name)
        settings = FunctionConfig(name=name, handler=handler, **({"runtime": self.python} | config))
        identity = hashlib.sha256(repr((settings, digest, dependencies, image)).encode()).hexdigest()[:12]
        return Revision(
            id=f"r{identity}",
            app=name,
            config=settings,
            code=digest,
            dependencies=dependencies,
            image=image,
            commit=identity,
            created=time.time(),
        )

    def give(self, folder: Path) -> None:
        """Give a folder to the user as whom the builder runs."""
        owner = self.data.builds.stat().st_uid
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner, owner, follow_symlinks=False)

    async def acquire(self, name: str, wait: float = 20.0) -> Lease:
        """Get an instance."""
        return await self.client.invocations.acquire(name, wait)

    async def ask(self, name: str, body: str = "", method: str = "POST") -> tuple[int, str]:
        """Call a function once on an instance of its own, and give it back."""
        lease = await self.acquire(name)
        try:
            return await request(lease, body, method)
        finally:
            await self.client.invocations.release(lease.id)

    async def probe(self, name: str, source: str) -> Any:
        """Have the PROBE function run source, and return its `result`."""
        status, text = await self.ask(name, source)
        assert status == 200, text
        return json.loads(text)


async def request(lease: Lease, body: str = "", method: str = "POST") -> tuple[int, str]:
    """Send one request to an instance; return status and body. Raises EOFError when it breaks off."""
    async with asyncio.timeout(120):
        reader, writer = await asyncio.open_unix_connection(lease.socket)
        try:
            data = body.encode()
            head = (
                f"{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + data)
            answer = await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
    if b"\r\n\r\n" not in answer:
        raise EOFError("no answer")
    lines, _, rest = answer.partition(b"\r\n\r\n")
    return int(lines.split()[1]), rest.decode()


@contextlib.asynccontextmanager
async def running(
    mode: Mode,
    folder: Path | None = None,
    anchor: socket.socket | None = None,
    environment: dict[str, str] | None = None,
) -> AsyncIterator[Service]:
    """Run a function service: as root (0) or as an ordinary user, or on the docker engine.

    With an anchor its instances outlive it, until the other end of that is closed. `environment` is added to ours.
    """
    root = folder or Path(tempfile.mkdtemp(prefix="pilotlight-test-"))
    data = DataFolder(root)
    data.prepare()
    others = contextlib.ExitStack()
    dockerd = DOCKERD
    if mode in (GVISOR, REMAPPED):
        dockerd = others.enter_context(
            dockers.running(dockers.GVISOR if mode == GVISOR else dockers.REMAPPED)
        )
        runtime = "runsc" if mode == GVISOR else ""
        own = {"DOCKER_HOST": f"unix://{dockerd}", "PILOTLIGHT_DOCKER_RUNTIME": runtime}
        environment = own | (environment or {})
    user, engine = (0, DOCKER) if isinstance(mode, str) else (mode, "embedded")
    own = user or os.geteuid()
    if root.stat().st_uid != own:  # else a former service may have left what comes and goes there
        for path in (root, *root.rglob("*")):
            os.chown(path, own, own, follow_symlinks=False)
        root.chmod(0o700)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _START, str(user if user != os.geteuid() else 0)),
        *("" if anchor is None else str(anchor.fileno()), str(root), engine, *_pythons()),
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        pass_fds=() if anchor is None else (anchor.fileno(),),
    )
    async with asyncio.timeout(90):  # a slow machine takes its time
        while process.returncode is None and not _accepts(data.socket("function-service")):
            await asyncio.sleep(0.02)
    client = FunctionServiceClient.connect(data)

    async def listen() -> None:
        async for _ in client.invocations.events():
            pass  # a gateway always listens; the service tells it what happens to its leases

    listening = None
    try:
        names = await client.builds.runtimes()
        listening = asyncio.create_task(listen())
        python = next(n for n in names if n.startswith("python"))
        yield Service(data, client, process, python, mode, dockerd)
    finally:
        if listening is not None:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        await client.close()
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(60):
            await process.wait()
        await asyncio.to_thread(others.close)
        if folder is None:
            trees.remove(root)


def _accepts(path: Path) -> bool:
    """Tell whether somebody serves a socket; a service that was killed has left its own behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(sockets.address(path)) == 0


def _pythons() -> list[str]:
    """Return the folders of interpreters that the ordinary user shall find where root has installed them."""
    return [i.folder for runtime in load_all().values() for i in runtime.find() if i.folder]


def modes() -> list[Any]:
    """Return the users as whom the embedded engine is tested: root and an ordinary one, where we may choose."""
    import pytest

    if os.geteuid() == 0:
        return [pytest.param(0, id="root"), pytest.param(USER, id="ordinary user")]
    return [pytest.param(os.geteuid(), id="ordinary user")]


def engines(*more: str) -> list[Any]:
    """Return `modes`, and the docker engine as root, where we are that; without dockerd it is skipped.

    `more` are other kinds of dockerd. What looks at a sandbox from outside, or from inside at what this machine's kernel
    does, is not for GVISOR.
    """
    import pytest

    if os.geteuid() != 0:
        return modes()
    marks = {GVISOR: gvisor_needed()}
    return [*modes(), *(pytest.param(m, id=m, marks=marks.get(m, dockerd_needed())) for m in (DOCKER, *more))]


def gvisor_needed() -> list[Any]:
    """Return the marks of tests that need dockerd and gVisor."""
    import pytest

    reason = "gVisor is not installed (apt-get install runsc)"
    return [*dockerd_needed(), pytest.mark.skipif(shutil.which("runsc") is None, reason=reason)]


@contextlib.contextmanager
def client(dockerd: str = DOCKERD) -> Iterator[Any]:
    """Give a client of a dockerd, a docker.APIClient."""
    import docker

    api = docker.APIClient(base_url=f"unix://{dockerd}", version="1.41")
    with contextlib.closing(api):
        yield api


def containers(label: str, dockerd: str = DOCKERD) -> set[str]:
    """Return the names of the containers that carry the label of a data folder."""
    with client(dockerd) as api:
        found = api.containers(all=True, filters={"label": f"pilotlight={label}"})
    return {each["Names"][0] for each in found}


def kill_containers(label: str) -> None:
    """Kill -9 the containers that carry the label of a data folder."""
    import docker

    with client() as api:
        for each in api.containers(filters={"label": f"pilotlight={label}"}):
            with contextlib.suppress(docker.errors.APIError):  # it has just ended
                api.kill(each["Id"])


def dockerd_needed() -> list[Any]:
    """Return the mark of tests that need root and a dockerd."""
    import pytest

    with socket.socket(socket.AF_UNIX) as probe:
        there = os.geteuid() == 0 and probe.connect_ex(DOCKERD) == 0
    reason = "no dockerd runs here, or it is not root that tests (apt-get install docker.io)"
    return [pytest.mark.skipif(not there, reason=reason)]
