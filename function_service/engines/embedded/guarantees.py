"""What the embedded engine promises, and which of it this machine lets it keep. `doctor` and `up` show it."""

import os
import platform
from pathlib import Path

from function_service.contract import Guarantee
from function_service.engines.embedded import cgroup, namespaces, seccomp, syscalls
from function_service.engines.embedded.namespaces import Users

LIMITS = {
    "memory": "memory limit of each function",
    "cpu": "CPU limit of each function",
    "pids": "limit of processes and threads",
}


def inspect() -> list[Guarantee]:
    """Try everything in a child process that ends afterwards; needs no running platform."""
    hierarchy = cgroup.find("pilotlight-doctor")
    cgroup.sweep(hierarchy, top=True)
    return inspect_with(hierarchy, None)


def inspect_with(hierarchy: cgroup.Hierarchy, users: Users | None) -> list[Guarantee]:
    """List the guarantees, given what the engine has found already."""
    found = [_isolation(), _seccomp(), _users(users)]
    for controller, name in LIMITS.items():
        reason = hierarchy.missing.get(controller)
        found.append(
            Guarantee(
                name=name,
                kept=reason is None,
                reason=reason or "",
                remedy=_remedy(hierarchy) if reason else "",
            )
        )
    return found


def _remedy(hierarchy: cgroup.Hierarchy) -> str:
    if os.geteuid() == 0:
        return "Give this container or machine write access to /sys/fs/cgroup."
    if hierarchy.version == 1:
        return "Run Pilotlight as root, or boot with systemd.unified_cgroup_hierarchy=1."
    return (
        "Start it in a group that systemd delegates: log in through PAM (ssh, not su), then `pilotlight up` "
        "does so by itself; else systemd-run --user --scope -p Delegate=yes pilotlight up."
    )


def _isolation() -> Guarantee:
    """Make the namespaces once, in a child, as an engine would."""
    name = "namespaces and a root file system of its own"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            kinds = (
                syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC
            )
            syscalls.unshare(kinds if os.geteuid() == 0 else kinds | syscalls.CLONE_NEWUSER)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] == 0:
        return Guarantee(name=name, kept=True)
    return Guarantee(
        name=name,
        kept=False,
        reason="the kernel refuses new namespaces to this user",
        remedy="Run as root, or set user.max_user_namespaces=10000, kernel.unprivileged_userns_clone=1 and, "
        "on Ubuntu, kernel.apparmor_restrict_unprivileged_userns=0.",
    )


def _seccomp() -> Guarantee:
    name = "filter of system calls"
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    try:
        seccomp.program(platform.machine())
    except KeyError:
        return Guarantee(
            name=name,
            kept=False,
            reason=f"there is no filter for {platform.machine()}",
            remedy="Use an x86_64 or aarch64 machine.",
        )
    if actions.exists():
        return Guarantee(name=name, kept=True)
    return Guarantee(
        name=name,
        kept=False,
        reason="this kernel has no seccomp",
        remedy="Use one with CONFIG_SECCOMP_FILTER.",
    )


def _users(users: Users | None) -> Guarantee:
    name = "a user id of its own for each sandbox"
    if users.count > 0 if users else os.geteuid() == 0 or namespaces.has_more_users():
        return Guarantee(name=name, kept=True)
    return Guarantee(
        name=name,
        kept=False,
        reason="an ordinary user has one id only; sandboxes are kept apart by their namespaces alone",
        remedy="apt-get install uidmap, and give this user a range in /etc/subuid and /etc/subgid.",
    )
