"""What `pilotlight doctor` looks at: the engine's guarantees, and what the platform needs of a machine."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli import client, delegation, listener
from pilotlight.problems import Problem
from pilotlight.settings import Settings, current, named_platform

_ROOM: Final = 1 << 30
_OLDEST_GIT: Final = (2, 30)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `reason` tells more also where all is well.

    What is not `needed` may be missing on a machine where all is well.
    """

    name: str
    kept: bool
    reason: str = ""
    remedy: str = ""
    needed: bool = True


def examine() -> list[Check]:
    """Look at everything. Raises Problem where a platform that was named does not answer."""
    settings = current()
    return [
        *guarantees(settings),
        git(),
        git_over_http(),
        python(),
        *runtimes(),
        room(settings.data),
        port(settings),
    ]


def guarantees(settings: Settings) -> list[Check]:
    """Ask the platform that runs, else the engine itself, in this process, in a control group as `up` has."""
    if named_platform().url is not None or _runs(settings.data):
        told = client.find().get(client.path("guarantees"))["guarantees"]
        return [Check(each["name"], each["kept"], each["reason"], each["remedy"]) for each in told]
    from function_service.engines import choosing

    if choosing.choose(settings.engine)[0] == "docker":
        from function_service.engines.docker.guarantees import inspect as ask_docker

        found = ask_docker(settings.docker_runtime)
    else:
        from function_service.engines.embedded.guarantees import inspect

        delegation.request()
        found = inspect()
    return [Check(each.name, each.kept, each.reason, each.remedy) for each in found]


def _runs(data: Path) -> bool:
    return (data / "platform.json").exists()


def git() -> Check:
    """Git, which receives the pushes."""
    name = "git"
    text = _output("git", "--version")
    if text is None:
        return Check(name, False, "git is not installed.", "apt-get install git")
    version = tuple(int(part) for part in text.split()[2].split(".")[:2])
    enough = version >= _OLDEST_GIT
    return Check(name, enough, text, "" if enough else "Install git 2.30 or newer.")


def git_over_http() -> Check:
    """Git's http-backend, a program that some systems have in a package of its own."""
    name = "git over HTTP"
    folder = _output("git", "--exec-path")
    if folder is not None and os.access(Path(folder, "git-http-backend"), os.X_OK):
        return Check(name, True, f"{folder}/git-http-backend")
    return Check(name, False, "git-http-backend is missing.", "Install it; Debian has it in the package git.")


def python() -> Check:
    """The Python that the platform itself runs on."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python for the platform", sys.version_info >= (3, 11), f"{version} at {sys.executable}")


def runtimes() -> list[Check]:
    """Each language: which versions were found."""
    from runtimes.declaration import load_all

    found = []
    for runtime in load_all().values():
        name = f"functions in {runtime.title}"
        versions = ", ".join(f"{each.name} at {each.executable}" for each in runtime.find())
        if versions:
            found.append(Check(name, True, versions, needed=False))
        else:
            remedy = f"Install {runtime.title} if you want them."
            found.append(Check(name, False, "None was found.", remedy, needed=False))
    return found


def room(data: Path) -> Check:
    """Room for layers, logs and documents."""
    folder = next(each for each in (data, *data.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / (1 << 30):.1f} GB are free at {folder}"
    return Check(
        "1 GB of disk space", free >= _ROOM, text, "" if free >= _ROOM else "Make room, or use --data."
    )


def port(settings: Settings) -> Check:
    """The gateway's port: used by the platform itself, or free for it."""
    name = f"port {settings.port}"
    if _runs(settings.data):
        return Check("port", True, f"the platform runs at {client.find().url}")
    try:
        listener.bind(settings.host, settings.port).close()
    except Problem as problem:
        return Check(name, False, problem.detail)
    return Check(name, True, "free")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
