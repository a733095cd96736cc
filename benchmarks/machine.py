"""On what a benchmark ran: machine, kernel, versions, load."""

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from msgspec import Struct

_LIBRARIES = ("pilotlight", "aiohttp", "httptools", "msgspec", "uvloop")
_PROGRAMS = ("node", "perl", "crun", "runc", "bwrap", "docker")
_WITHIN = 10.0  # seconds
_VERSION = re.compile(r"\d+(?:\.\d+)+\S*")


class Machine(Struct, frozen=True, kw_only=True):
    """What may explain a number."""

    system: str
    kernel: str
    processor: str
    processors: int  # that this process may use
    memory: int  # bytes
    python: str
    user: str  # root or an ordinary user: their sandboxes differ
    versions: dict[str, str]
    load: tuple[float, float, float]  # at the start, over 1, 5 and 15 minutes


def inspect() -> Machine:
    """Look at this machine."""
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    versions |= {name: version for name in _PROGRAMS if (version := _version(name))}
    return Machine(
        system=_system(),
        kernel=platform.release(),
        processor=_field("/proc/cpuinfo", "model name") or platform.machine(),
        processors=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        user="root" if os.geteuid() == 0 else "an ordinary user",
        versions=versions,
        load=os.getloadavg(),
    )


def describe(machine: Machine) -> list[str]:
    """Return lines for people."""
    names = " · ".join(f"{name} {version}" for name, version in machine.versions.items())
    load = ", ".join(f"{value:.2f}" for value in machine.load)
    return [
        f"{machine.processor}, {machine.processors} processors, {machine.memory / (1 << 30):.1f} GB",
        f"{machine.system}, kernel {machine.kernel}, as {machine.user}; load before the run {load}",
        f"Python {machine.python} · {names}",
    ]


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(program: str) -> str:
    if shutil.which(program) is None:
        return ""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_WITHIN, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    found = _VERSION.search(done.stdout)
    return found[0].rstrip(",)") if found else ""
