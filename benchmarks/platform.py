"""A platform of its own for a benchmark: started, deployed to by real pushes, and removed afterwards."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from benchmarks import processes
from pilotlight.datafolder import DataFolder

_START_DEADLINE = 60.0  # seconds
_IDLE_WITHIN = 20.0  # seconds in which sandboxes that are ending must be gone
_LOOK, _BUSY = 0.1, 0.015  # seconds, and those of processor time within them that count
_COMMAND = (sys.executable, "-P", "-m", "cli.main")


class Refused(RuntimeError):  # noqa: N818  an answer, not a fault of ours
    """A control request that was refused."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Platform:
    """A running platform."""

    url: str
    data: Path
    pid: int  # of `pilotlight up`, from which all of its processes descend
    started: float  # seconds from the command to the line that says it is ready

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 80)

    def environment(self) -> dict[str, str]:
        """Return the environment in which the other commands find it."""
        return {**os.environ, "PILOTLIGHT_DATA": str(self.data)}

    def api(self, method: str, path: str) -> bytes:
        """Make a control request, and return the body of the answer."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        with contextlib.closing(connection):
            key = (self.data / "admin.key").read_text().strip()
            connection.request(method, path, headers={"Authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status >= 400:
                raise Refused(answer.status, f"{method} {path}: {answer.status} {body.decode()}")
            return body

    def push(self, name: str, files: dict[str, str], *, force: bool = False) -> float:
        """Deploy a function by a real push from a real repository; return the seconds that the push took.

        `force` is for an app that is there already: its history is another one.
        """
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                target = Path(folder) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content)
                target.chmod(0o755 if content.startswith("#!") else 0o644)
            git = ("git", "-C", folder, "-c", "user.name=bench", "-c", "user.email=bench@localhost")
            for command in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-q", "-m", name)):
                subprocess.run((*git, *command), check=True)
            remote = (*_COMMAND, "remote", "add", "--app", name)
            subprocess.run(remote, check=True, cwd=folder, env=self.environment(), stdout=subprocess.DEVNULL)
            began = time.perf_counter()
            done = subprocess.run(
                (*git, "push", *(("--force",) if force else ()), "pilotlight", "main"),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(done.stderr)
            return time.perf_counter() - began

    def instances(self, name: str) -> list[dict[str, object]]:
        """List the instances of a function."""
        listed: list[dict[str, object]] = json.loads(self.api("GET", f"/api/v1/functions/{name}/instances"))[
            "instances"
        ]
        return listed

    def socket(self, name: str) -> str:
        """Return the Unix socket of the only instance of a function."""
        (instance,) = self.instances(name)
        return str(DataFolder(self.data).instances / f"{instance['id']}.sock")

    def has_snapshot(self, name: str) -> bool:
        """Tell whether the next start of a function comes out of a snapshot."""
        return bool(json.loads(self.api("GET", f"/api/v1/functions/{name}"))["snapshot"])

    def empty(self, stage: str) -> None:
        """Empty the cache of a stage of a cold start, as soon as nothing is busy."""
        deadline = time.monotonic() + _IDLE_WITHIN
        while True:
            try:
                self.api("DELETE", f"/api/v1/caches/{stage}")
            except Refused as refused:
                if refused.status != 409 or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def settle(self) -> None:
        """Wait until it does next to nothing, such as making anew what was emptied; at most a while."""
        deadline = time.monotonic() + _IDLE_WITHIN
        used = processes.cpu_seconds(processes.tree(self.pid))
        while time.monotonic() < deadline:
            time.sleep(_LOOK)
            before, used = used, processes.cpu_seconds(processes.tree(self.pid))
            if abs(used - before) < _BUSY:
                return

    def to_zero(self, name: str) -> None:
        """End all instances of a function."""
        self.api("DELETE", f"/api/v1/functions/{name}/instances")


@contextlib.contextmanager
def running(*flags: str) -> Iterator[Platform]:
    """Run a platform on a free port with a data folder of its own; `flags` are those of `pilotlight up`.

    It ends, and its folder goes, also when this process is interrupted or terminated.
    """
    data = Path(tempfile.mkdtemp(prefix="pilotlight-bench-"))
    log = data.with_name(f"{data.name}.log")
    former = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with log.open("wb") as errors:
            began = time.perf_counter()
            with _started(data, errors, *flags) as (process, line):
                if " ready on " not in line:
                    raise RuntimeError(f"the platform did not start: {log.read_text()}")
                yield Platform(line.split()[-1], data, process.pid, time.perf_counter() - began)
    finally:
        signal.signal(signal.SIGTERM, former)
        shutil.rmtree(data, ignore_errors=True)
        log.unlink(missing_ok=True)


@contextlib.contextmanager
def _started(data: Path, errors: BinaryIO, *flags: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start a platform; give its process and the line by which it tells that it is ready."""
    ours, theirs = socket.socketpair()  # should this process be killed, the platform stops by itself
    descriptor = theirs.fileno()
    command = (*_COMMAND, "up", "--port", "0", "--data", str(data), "--lifeline", str(descriptor), *flags)
    with ours, theirs:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            pass_fds=(descriptor,),
            start_new_session=True,  # Ctrl-C is for the bench, which stops the platform
        )
        theirs.close()
        assert process.stdout is not None
        with process.stdout:
            try:
                yield process, process.stdout.readline()
            finally:
                process.terminate()
                process.wait(_START_DEADLINE)
