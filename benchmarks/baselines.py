"""What a cold start stands beside: the same program as a bare process, in bwrap, crun, runc and docker.

The root of those that isolate is made of this machine's /usr, read-only, so that no image is needed.
"""

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.functions import HELLO, Language
from benchmarks.rounds import Case, Measured

_WITHIN = 60.0  # seconds
_FOLDERS = ("bin", "sbin", "lib", "lib64")
IMAGE = "pilotlight-bench-empty"
_INSTALL = {
    "bwrap": "apt-get install bubblewrap",
    "crun": "apt-get install crun",
    "runc": "apt-get install runc",
    "docker": "apt-get install docker.io, and start its daemon",
}


@dataclass(frozen=True)
class Program:
    """What is started: `once` is whether it serves one request on $PORT, else it ends by itself."""

    title: str
    command: tuple[str, ...]
    folder: Path | None  # seen at /function
    serves: bool


def program(language: Language, folder: Path) -> Program:
    """Return what a hello in that language is without any platform; `folder` is for its files."""
    if language.name == "python":
        return Program("python3 -I -S -c pass", (language.executable, "-I", "-S", "-c", "pass"), None, False)
    if language.name == "node":
        return Program("node -e 0", (language.executable, "-e", "0"), None, False)
    path = folder / "handler"
    path.write_text(HELLO["native"]["handler"])
    path.chmod(0o755)
    return Program("the program, until it answers", ("/function/handler",), folder, True)


Wrap = Callable[[Program, dict[str, str]], list[str]]
"""Returns the command that starts a program, with an environment, in some isolation."""


def bare(wanted: Program) -> Case:
    """Return the case of the bare process."""
    return Case(wanted.title, partial(_run, wanted, _bare))


def cases(wanted: Program, folder: Path, notes: list[str], undo: contextlib.ExitStack) -> list[Case]:
    """Return a case for each baseline that works here; `notes` get a line for each that does not.

    The first one is the bare process. `folder` is for what they need; `undo` removes what lies elsewhere.
    """
    found = [bare(wanted)]
    for name, wrap in _wraps(folder, undo):
        case = f"{name}: {wanted.title}"
        if shutil.which(name) is None:
            notes.append(f"There is no baseline {name}, since it is not installed: {_INSTALL[name]}")
            continue
        try:
            wrapped = wrap()
            _run(wanted, wrapped)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            notes.append(f"There is no baseline {case}, since it failed: {error}")
            continue
        found.append(Case(case, partial(_run, wanted, wrapped)))
    return found


def _wraps(folder: Path, undo: contextlib.ExitStack) -> Iterator[tuple[str, Callable[[], Wrap]]]:
    yield "bwrap", lambda: _bwrap
    yield "crun", lambda: _oci("crun", folder)
    yield "runc", lambda: _oci("runc", folder)
    yield "docker", lambda: in_docker(undo)


def _run(wanted: Program, wrap: Wrap) -> Measured:
    """Start it and wait until it has ended, or has answered. Raises RuntimeError with what it printed."""
    environment = {"PATH": "/usr/bin:/bin"}
    port = 0
    if wanted.serves:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment |= {"PORT": str(port), "ONCE": "1"}
    command = wrap(wanted, environment)
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        env=environment,  # the same for all: Node for one starts by what it finds there
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if wanted.serves:
                _ask(port, process, began + _WITHIN)
                took = time.perf_counter() - began
                _wait(process)
            else:
                _wait(process)
                took = time.perf_counter() - began
        except BaseException:
            process.kill()
            raise
        errors = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise RuntimeError(errors.strip() or f"exit code {process.returncode}")
    return Measured(took * 1000)


def _wait(process: "subprocess.Popen[str]") -> None:
    """Wait until it has ended, to the moment; Popen.wait with a deadline looks only every 50 ms."""
    descriptor = os.pidfd_open(process.pid)
    try:
        if not select.select([descriptor], [], [], _WITHIN)[0]:
            raise RuntimeError(f"it did not end within {_WITHIN:g} s")
    finally:
        os.close(descriptor)
    process.wait()


def _ask(port: int, process: "subprocess.Popen[str]", deadline: float) -> None:
    """Make one request as soon as somebody listens; return when it is answered."""
    while True:
        with (
            contextlib.suppress(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port)) as sock,
        ):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("it did not answer")
            return
        if process.poll() is not None:
            raise RuntimeError(process.stderr.read().strip() if process.stderr else "it ended")
        if time.perf_counter() > deadline:
            raise RuntimeError("it did not listen in time")
        time.sleep(0.0002)


def _bare(wanted: Program, environment: dict[str, str]) -> list[str]:  # noqa: ARG001
    if wanted.folder is None:
        return list(wanted.command)
    return [str(wanted.folder / Path(wanted.command[0]).name), *wanted.command[1:]]


def _bwrap(wanted: Program, environment: dict[str, str]) -> list[str]:  # noqa: ARG001  it inherits it
    command = ["bwrap", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for name in _FOLDERS:
        path = Path("/", name)
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    command += ["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    if wanted.folder is not None:
        command += ["--ro-bind", str(wanted.folder), "/function"]
    if not wanted.serves:
        command.append("--unshare-net")  # what serves is reached through the host's loopback
    return [*command, *wanted.command]


def _oci(runtime: str, folder: Path) -> Wrap:
    """Return how to run something with crun or runc, in bundles below folder."""
    bundle = folder / runtime
    root = bundle / "rootfs"
    for name in ("usr", "proc", "dev", "tmp", "function"):
        (root / name).mkdir(parents=True, exist_ok=True)
    mounts = [_bind("/usr")]
    for name in _FOLDERS:
        path = Path("/", name)
        if path.is_symlink():
            if not (root / name).is_symlink():
                (root / name).symlink_to(path.readlink())
        elif path.is_dir():
            (root / name).mkdir(exist_ok=True)
            mounts.append(_bind(str(path)))
    number = 0

    def wrap(wanted: Program, environment: dict[str, str]) -> list[str]:
        nonlocal number
        number += 1
        own = [_bind(str(wanted.folder), "/function")] if wanted.folder else []
        config = _configuration(wanted, environment, [*mounts, *own])
        (bundle / "config.json").write_text(json.dumps(config))
        state = ["--root", str(folder / "state" / runtime)]
        return [runtime, *state, "run", "--bundle", str(bundle), f"bench-{os.getpid()}-{number}"]

    return wrap


def _bind(source: str, target: str = "") -> dict[str, object]:
    return {
        "source": source,
        "destination": target or source,
        "type": "bind",
        "options": ["rbind", "ro", "nosuid"],
    }


def _configuration(
    wanted: Program, environment: dict[str, str], mounts: list[dict[str, object]]
) -> dict[str, object]:
    """Return an OCI configuration."""
    kinds = ["pid", "ipc", "uts", "mount", "cgroup"]
    linux: dict[str, object] = {}
    if not wanted.serves:
        kinds.append("network")
    if os.geteuid():
        kinds.append("user")
        linux = {
            "uidMappings": [{"containerID": 0, "hostID": os.geteuid(), "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": os.getegid(), "size": 1}],
        }
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(wanted.command),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "function",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
            *mounts,
        ],
        "linux": linux | {"namespaces": [{"type": kind} for kind in kinds]},
    }


def in_docker(undo: contextlib.ExitStack) -> Wrap:
    """Return how to run something with docker, in an image that is empty. Raises RuntimeError.

    The image is made unless a benchmark that was killed has left one, and goes with `undo`.
    """
    if _ask_docker("image", "inspect", IMAGE) and (error := _ask_docker("import", "-", IMAGE)):
        raise RuntimeError(error)
    undo.callback(_remove_image)

    def wrap(wanted: Program, environment: dict[str, str]) -> list[str]:
        command = ["docker", "run", "--rm", "--read-only", "--network", "host" if wanted.serves else "none"]
        for name in ("usr", *_FOLDERS):
            if Path("/", name).is_dir():
                command += ["--volume", f"{Path('/', name).resolve()}:/{name}:ro"]
        if wanted.folder is not None:
            command += ["--volume", f"{wanted.folder}:/function:ro"]
        for name, value in environment.items():
            command += ["--env", f"{name}={value}"]
        return [*command, IMAGE, *wanted.command]

    return wrap


def _ask_docker(*command: str) -> str:
    """Run docker, with an empty archive as its input; return why that failed, or nothing."""
    done = subprocess.run(
        ["docker", *command], input=b"\0" * 10240, capture_output=True, timeout=_WITHIN, check=False
    )
    if done.returncode == 0:
        return ""
    return done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"


def _remove_image() -> None:
    if not _ask_docker("image", "inspect", IMAGE) and (error := _ask_docker("image", "rm", IMAGE)):
        print(f"The image {IMAGE} was not removed: {error}", file=sys.stderr)
