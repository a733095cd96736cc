"""How the function service itself gets what sandboxes need: a mount namespace of its own.

An ordinary user gets it within a user namespace. All mounts that the service or its zygotes make vanish
with them, also after kill -9.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from function_service.engines.embedded import syscalls
from pilotlight.problems import Problem

_SANDBOX_USERS = 0x7700_0000  # far from the users of the host, in a range that systemd reserves for nobody


@dataclass(frozen=True)
class Users:
    """The user ids that sandboxes get, each one of its own; none where all share the platform's."""

    first: int
    count: int


def enter() -> Users:
    """Move this process into its namespaces. Must be called while it has one thread.

    Raises Problem where the kernel or its configuration forbids it.
    """
    if os.geteuid() == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
        except PermissionError:
            pass  # root without CAP_SYS_ADMIN, as in a container: go on like an ordinary user
        else:
            syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            return Users(_SANDBOX_USERS, 1 << 20)
    users = _enter_user_namespace()
    syscalls.keep_capabilities_over_exec()  # the zygotes need them
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    return users


def has_more_users() -> bool:
    """Tell whether this ordinary user may give ids of its own to sandboxes."""
    return all(_mappers()) and all(_ranges())


def _mappers() -> tuple[str | None, str | None]:
    return shutil.which("newuidmap"), shutil.which("newgidmap")


def _ranges() -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    return _subordinate("/etc/subuid"), _subordinate("/etc/subgid")


def _enter_user_namespace() -> Users:
    uid, gid = os.getuid(), os.getgid()
    ranges, mappers = _ranges(), _mappers()
    if has_more_users():
        # The maps are written from outside, by set-uid helpers that check /etc/subuid and /etc/subgid
        ours, theirs = os.pipe()
        me = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(theirs)
            os.read(ours, 1)
            code = 0
            for mapper, own, (first, count) in zip(mappers, (uid, gid), ranges, strict=True):  # type: ignore[misc]
                line = [str(own), str(own), "1", str(_SANDBOX_USERS), str(first), str(count)]
                code |= subprocess.call([str(mapper), str(me), *line])
            os._exit(code)
        os.close(ours)
        try:
            _unshare()
        finally:
            os.close(theirs)
            failed = os.waitpid(child, 0)[1]
        if not failed:
            return Users(_SANDBOX_USERS, min(r[1] for r in ranges if r))
        raise Problem(
            "unavailable",
            "newuidmap refused the user ids that /etc/subuid and /etc/subgid name for this user. "
            "Correct these two files, or remove this user from them.",
        )
    _unshare()
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return Users(uid, 0)


def _unshare() -> None:
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    except OSError as error:
        raise Problem(
            "unavailable",
            f"This kernel does not let an ordinary user make namespaces ({error.strerror}). Run Pilotlight "
            "as root, or set user.max_user_namespaces=10000, kernel.unprivileged_userns_clone=1; "
            "on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0.",
        ) from error


def _subordinate(path: str) -> tuple[int, int] | None:
    """Return the first and the number of subordinate ids that a file gives to this user (subuid(5))."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    names = {str(os.getuid())}
    with contextlib.suppress(KeyError):  # a user without a name has its number only
        names.add(pwd.getpwuid(os.getuid()).pw_name)
    for line in lines:
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in names and first.isdecimal() and count.strip().isdecimal():
            return int(first), int(count)
    return None
