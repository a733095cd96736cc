"""A second dockerd, as another machine has one: with its own folders, images and containers, and no network."""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.support.platform import Up, family, kill, wait_until

# The arguments are for machines without /dev/kvm, and for kernels newer than gVisor
GVISOR = {"runtimes": {"runsc": {"path": "runsc", "runtimeArgs": ["--network=none", "--platform=ptrace"]}}}
REMAPPED = {"userns-remap": "default"}

_FLAGS = ("--bridge=none", "--iptables=false", "--ip6tables=false")


@contextlib.contextmanager
def running(settings: Mapping[str, Any] = MappingProxyType({})) -> Iterator[str]:
    """Run one while within, with these settings; yield the path of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="dockerd-"))
    folder.chmod(0o711)  # a remapped root has to get to its own part
    path, log = folder / "docker.sock", folder / "log"
    places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid", "config-file": "config.json"}
    own = [f"--{flag}={folder / name}" for flag, name in places.items()]
    # Where a containerd runs already, both daemons use it
    space = folder.name.replace("_", "0")  # in which there can't be two in a row
    own += [f"--containerd-namespace={space}", f"--containerd-plugins-namespace={space}-plugins"]
    (folder / "config.json").write_text(json.dumps(dict(settings)))
    with log.open("w") as output:
        process = subprocess.Popen(
            ["dockerd", *_FLAGS, *own, f"--host=unix://{path}"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or _accepts(path))
        assert process.poll() is None, log.read_text()
        yield str(path)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            kill(*family(process.pid))
            process.wait()
        _unmount(folder)
        shutil.rmtree(folder)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _unmount(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=True)


@dataclass
class UpOn(Up):
    """A platform whose dockerd is another one than this machine's."""

    dockerd: str = ""

    def command(self, *words: str) -> list[str]:
        return ["env", f"DOCKER_HOST=unix://{self.dockerd}", *words]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"DOCKER_HOST": f"unix://{self.dockerd}"}
