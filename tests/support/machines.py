"""Machines of one platform: each a `pilotlight up` on a data folder of its own, all on one Redis."""

import base64
import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cli.client import Platform
from pilotlight.problems import Problem
from tests.support.platform import PROGRAM, Up, family, free_port, kill, wait_until
from tests.support.redis_server import RedisServer, running


def key(path: Path) -> Path:
    """Make a key, for machines or for secrets."""
    path.write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), port=str(free_port())) as server:
        yield server


def flags(folder: Path, server: RedisServer) -> tuple[str, ...]:
    """Return what all machines are started with; `folder` holds their keys."""
    for name in ("machines.key", "secrets.key"):
        if not (folder / name).exists():
            key(folder / name)
    return (
        *("--store", f"redis://127.0.0.1:{server.port}/0"),
        *("--machines-key", str(folder / "machines.key"), "--secrets-key", str(folder / "secrets.key")),
    )


def machine(folder: Path, name: str, server: RedisServer) -> Up:
    """Return a machine that is not started yet."""
    here = ("--port", str(free_port()), "--machine-address", f"127.0.0.1:{free_port()}")
    return Up(folder / name, (*flags(folder, server), *here))


@dataclass
class Machine:
    """A machine whose services run by themselves, each started again when it ends, as systemd does it."""

    up: Up  # for its folder and its commands; it is not started
    services: tuple[str, ...]
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _watcher: threading.Thread | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start all services, and keep them running."""
        self.up.folder.mkdir(parents=True, exist_ok=True)
        (self.up.folder / "gitconfig").write_text("[user]\n\tname = Test\n\temail = test@localhost\n")
        port = self.up.flags[self.up.flags.index("--port") + 1]
        self.up.url = f"http://127.0.0.1:{port}"
        for name in self.services:
            self._run(name)
        self._ended.clear()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _run(self, name: str) -> None:
        words = (*PROGRAM, name, "--data", str(self.up.data.root), *self.up.flags)
        with self.up.log.open("a") as log:
            self._processes[name] = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            for name, process in list(self._processes.items()):
                if process.poll() is not None:
                    self._run(name)

    def kill(self, name: str) -> None:
        """Kill one service with -9; it is started again."""
        self._processes[name].kill()

    def end(self, name: str) -> None:
        """Kill one service with -9, for good."""
        process = self._processes.pop(name)
        everything = family(process.pid)
        process.kill()
        process.wait()
        wait_until(
            lambda: not any(each.lives for each in everything)
        )  # its instances go with it, a moment later

    def _leave(self) -> None:
        self._ended.set()
        assert self._watcher is not None
        self._watcher.join()

    def kill_all(self) -> None:
        """Kill everything on the machine, as a power cut does."""
        self._leave()
        everything = {each for process in self._processes.values() for each in family(process.pid)}
        kill(*everything)
        for process in self._processes.values():
            process.wait()

    def stop(self) -> None:
        """Stop the services, in the reverse order."""
        self._leave()
        for name in reversed(self.services):
            if name in self._processes:
                self._processes[name].terminate()
                self._processes[name].wait(60)

    def ready(self) -> bool:
        """Tell whether it serves everything."""
        try:
            with self.up_platform().request("GET", "/readyz") as answer:
                return answer.status == 200
        except Problem:
            return False

    def up_platform(self) -> Platform:
        """Return how a user asks this machine's gateway."""
        key = self.up.data.admin_key
        return Platform(self.up.url, key.read_text().strip() if key.exists() else None, None)
