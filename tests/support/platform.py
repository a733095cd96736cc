"""A real platform, started by `pilotlight up` as a user does it, and what it may leave behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from cli.client import Platform
from pilotlight.datafolder import DataFolder
from tests.support.groups import control_groups

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-P", "-m", "cli.main")
READY = "Pilotlight is ready on "

T = TypeVar("T")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@dataclass
class Up:
    """`pilotlight up` on a data folder of its own; leaving the context ends it."""

    folder: Path
    flags: tuple[str, ...] = ()
    url: str = ""
    processes: list[subprocess.Popen] = field(default_factory=list)
    lifelines: list[socket.socket] = field(default_factory=list)

    @property
    def data(self) -> DataFolder:
        return DataFolder(self.folder / "data")

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def process(self) -> subprocess.Popen:
        return self.processes[-1]

    @property
    def platform(self) -> Platform:
        told = json.loads(self.data.platform.read_text())
        return Platform(self.url, self.data.admin_key.read_text().strip(), told["certificate"])

    def start(self) -> str:
        """Start it, and return the line by which it tells that it is ready; empty where it does not start."""
        ours, theirs = socket.socketpair()  # when the tests are killed, the platform stops by itself
        self.lifelines.append(ours)
        port = () if "--port" in self.flags else ("--port", "0")
        with self.log.open("a") as errors, theirs:
            process = subprocess.Popen(
                self.command(
                    *(*PROGRAM, "up", "--data", str(self.folder / "data"), *port, *self.flags),
                    *("--lifeline", str(theirs.fileno())),
                ),
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                text=True,
            )
        self.processes.append(process)
        line = process.stdout.readline().rstrip("\n")
        self.url = line.removeprefix(READY)
        return line

    def command(self, *words: str) -> list[str]:
        """Return the command that starts it, of which `words` are the usual ones."""
        return list(words)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def run(self, *words: str, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess:
        """Run a pilotlight command against this platform."""
        return subprocess.run(
            [*PROGRAM, *words],
            cwd=cwd or self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
            env=self.environment(),
        )

    def environment(self) -> dict[str, str]:
        """Return the environment of a user of this platform."""
        return {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("PILOTLIGHT_") and name != "GIT_SSL_CAINFO"  # above any configuration
            },
            "PILOTLIGHT_DATA": str(self.data.root),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": str(self.folder / "gitconfig"),
        }

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "gitconfig").write_text("[user]\n\tname = Test\n\temail = test@localhost\n")
        self.start()
        assert self.url, self.log.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
            process.wait(60)
            process.stdout.close()
        for lifeline in self.lifelines:
            lifeline.close()


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one of the same number by when it started."""

    pid: int
    started: str
    command: str

    @classmethod
    def read(cls, pid: int) -> "tuple[Process, int] | None":
        """Return a process and its parent, or None where it is gone (or waits only for its parent)."""
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        name, fields = status.rpartition(")")[0], status.rpartition(")")[2].split()
        if fields[0] == "Z":
            return None
        return cls(pid, fields[19], command or name), int(fields[1])

    @property
    def lives(self) -> bool:
        now = self.read(self.pid)
        return now is not None and now[0].started == self.started


def family(pid: int) -> set[Process]:
    """Return a process and all that descend from it."""
    everybody = [found for entry in Path("/proc").glob("[0-9]*") if (found := Process.read(int(entry.name)))]
    found = {process for process, _ in everybody if process.pid == pid}
    while True:
        numbers = {process.pid for process in found}
        more = {process for process, parent in everybody if parent in numbers} - found
        if not more:
            return found
        found |= more


def service(up: Up, name: str) -> Process:
    """Return the process of a service."""
    marker = f"cli.main {name} "
    return next(each for each in family(up.process.pid) if marker in each.command)


def kill(*processes: Process) -> None:
    """Kill processes with -9, those that are still there."""
    for each in processes:
        with contextlib.suppress(ProcessLookupError):  # it went with another one
            os.kill(each.pid, signal.SIGKILL)


def wait_until(condition: Callable[[], T], within: float = 60.0) -> T:
    """Wait for something in another process that nobody reports; return what it was."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return value


def left_behind(data: DataFolder, processes: set[Process]) -> list[str]:
    """List what of a platform is still there outside of its data folder, or in its folder of sockets."""
    here = str(data.root)
    found = [f"process {each.pid}: {each.command}" for each in processes if each.lives]
    found += [
        f"mount {line.split()[4]}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f"{here}/" in line
    ]
    found += [
        f"socket {line.split()[-1]}"
        for line in Path("/proc/net/unix").read_text().splitlines()
        if here in line
    ]
    found += [f"cgroup {group}" for group in control_groups(f"*{data.label}*")]
    found += [f"file {entry}" for entry in data.run.rglob("*") if entry != data.instances]
    return found
