"""What the docker engine promises, and which of it this dockerd lets it keep. `doctor` and `up` show it."""

import asyncio
import platform
from pathlib import Path
from typing import Any

from function_service.contract import Guarantee
from function_service.engines.docker.daemon import Daemon
from function_service.engines.embedded import seccomp
from function_service.engines.embedded.guarantees import LIMITS
from function_service.engines.embedded.namespaces import Users
from pilotlight.problems import Problem

_CONTROLLERS = {"memory": "MemoryLimit", "cpu": "CpuCfsQuota", "pids": "PidsLimit"}  # in `docker info`
_USERS = Users(0x7700_0000, 1 << 20)  # far from the users of the host
_REMAPPED_USERS = Users(20_000, 40_000)  # all that a user namespace of dockerd has are 65536
_ANSWERS = "Docker answers"


def users(information: dict[str, Any]) -> Users:
    """Return the user ids that containers get, each one of its own, as seen from within."""
    return _REMAPPED_USERS if _has(information, "name=userns") else _USERS


def first_user(information: dict[str, Any]) -> int:
    """Return the user of the host that containers see as user 0."""
    # dockerd has a root for each range of users, which is named after it
    return (
        int(Path(information["DockerRootDir"]).name.partition(".")[0])
        if _has(information, "name=userns")
        else 0
    )


def _has(information: dict[str, Any], option: str) -> bool:
    return any(option in each.split(",") for each in information["SecurityOptions"] or ())


def inspect(runtime: str) -> list[Guarantee]:
    """Ask dockerd; needs no running platform."""

    async def ask() -> list[Guarantee]:
        daemon = Daemon("doctor")
        try:
            return of(await daemon.information(), runtime)
        except Problem as problem:
            remedy = "Install Docker and start it, or use --engine embedded."
            return [Guarantee(name=_ANSWERS, kept=False, reason=problem.detail, remedy=remedy)]
        finally:
            await daemon.close()

    return asyncio.run(ask())


def of(information: dict[str, Any], runtime: str, *, own_kernel: bool = False) -> list[Guarantee]:
    """List the guarantees, given what `docker info` says, and whether each container has its own kernel."""
    version, used = information["ServerVersion"], runtime or information["DefaultRuntime"]
    remapped = "with" if _has(information, "name=userns") else "without"
    found = [
        Guarantee(name=_ANSWERS, kept=True, reason=f"version {version}, {remapped} a user namespace"),
        Guarantee(
            name="namespaces and a root file system of its own",
            kept=True,
            reason=f"by the runtime {used}" + (", with a kernel of its own" if own_kernel else ""),
        ),
        _seccomp(information),
        Guarantee(name="a user id of its own for each sandbox", kept=True),
    ]
    for controller, name in LIMITS.items():
        kept = bool(information[_CONTROLLERS[controller]])
        found.append(
            Guarantee(
                name=name,
                kept=kept,
                reason="" if kept else "dockerd has no such controller",
                remedy="" if kept else "Give dockerd write access to the control groups of this machine.",
            )
        )
    return found


def _seccomp(information: dict[str, Any]) -> Guarantee:
    name = "filter of system calls"
    try:
        seccomp.program(platform.machine())
    except KeyError:
        reason = f"there is no filter of ours for {platform.machine()}"
        return Guarantee(name=name, kept=False, reason=reason, remedy="Use an x86_64 or aarch64 machine.")
    if _has(information, "name=seccomp"):
        return Guarantee(name=name, kept=True, reason="ours, on top of Docker's")
    return Guarantee(
        name=name,
        kept=False,
        reason="dockerd can't set one",
        remedy="Use a kernel with CONFIG_SECCOMP_FILTER, and a Docker that is built with it.",
    )
