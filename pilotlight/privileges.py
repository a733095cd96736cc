"""How a service that `up` starts as root becomes an ordinary process before it serves anybody.

Gateway, builder and baas run as SERVICE_UID, with no capabilities and no way to get any. Where the
interpreter or the code lies under a folder that this user may not enter (/root), the process first
moves into a mount namespace in which that folder shows nothing but what the service needs of it.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pilotlight.problems import Problem

SERVICE_UID: Final = 64321
"""The user and group of the unprivileged services: no account of that number is needed, none is expected."""

_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWNS = 0x00020000
_MS_RDONLY = 0x1
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SLAVE = 0x80000
_PR_SET_NO_NEW_PRIVS = 38

_SOURCE = Path(__file__).resolve().parent.parent
"""The folder that holds our packages."""


@dataclass(frozen=True)
class Veil:
    """A folder that is covered by an empty one, and the paths below it that are shown again."""

    folder: Path
    shown: tuple[Path, ...]


def drop(uid: int, keep: Iterable[Path]) -> None:
    """Become user and group uid for good; `keep` names the folders that stay reachable and writable.

    Does nothing when the process is not root. Must be called before there is any thread.
    Raises Problem where the code can't be read by that user, or the kernel does not let it be shown.
    """
    if os.geteuid() != 0:
        return
    code = (_SOURCE, Path(sys.prefix), Path(sys.base_prefix))
    _check_readable(uid, (*code, Path(__file__)))
    writable = tuple(keep)
    _veil(plan(uid, code, writable), writable)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc = _libc()
    # From root to another user the kernel clears all capabilities but the inheritable ones, capabilities(7)
    if libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3), (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")


def plan(uid: int, code: Iterable[Path], writable: Iterable[Path]) -> list[Veil]:
    """Return what must be covered so that user uid reaches all paths; nothing where it does already.

    Both the path as it is written and the one behind its links are shown, since programs use either.
    """
    shown: dict[Path, set[Path]] = {}
    for path in (*code, *writable):
        for spelling in (path.absolute(), path.resolve()):
            for folder in reversed(spelling.parents):
                if not _may_enter(uid, folder):
                    shown.setdefault(folder, set()).add(spelling)
                    break
    return [Veil(folder, tuple(sorted(paths))) for folder, paths in sorted(shown.items())]


def _check_readable(uid: int, code: Iterable[Path]) -> None:
    for path in code:
        if not path.stat().st_mode & 0o004:
            raise Problem(
                "unavailable",
                f"Services run as user {uid}, who may not read {path}. It was made with a strict umask: "
                f"chmod -R go+rX {path.parent if path.is_file() else path}",
            )


def _may_enter(uid: int, folder: Path) -> bool:
    status = folder.stat()
    if status.st_uid == uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == uid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def _veil(veils: list[Veil], writable: tuple[Path, ...]) -> None:
    """Carry the plan out in a mount namespace of this process's own."""
    if not veils:
        return
    try:
        if _libc().unshare(_CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
        # A slave still sees what is unmounted elsewhere, so this process never holds on to a sandbox's mounts
        _mount("none", Path("/"), None, _MS_REC | _MS_SLAVE)
        for veil in veils:
            _cover(veil, writable)
    except OSError as error:
        folders = ", ".join(str(veil.folder) for veil in veils)
        raise Problem(
            "unavailable",
            f"Services run as user {SERVICE_UID}, who may not enter {folders}, and the kernel refuses to "
            f"show them only what they need of it ({error}). Install Pilotlight where every user may read, "
            "such as /opt/pilotlight, or run it as an ordinary user.",
        ) from error


def _cover(veil: Veil, writable: tuple[Path, ...]) -> None:
    # Descriptors that were opened before the folder is covered still lead to what is below
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in veil.shown}
    try:
        _mount("tmpfs", veil.folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
        for path, source in sources.items():
            path.mkdir(parents=True, exist_ok=True)
            _mount(f"/proc/self/fd/{source}", path, None, _MS_BIND | _MS_REC)
            if not any(path.resolve() == kept.resolve() for kept in writable):
                _mount("none", path, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
        _mount("none", veil.folder, None, _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "mode=0755")
    finally:
        for source in sources.values():
            os.close(source)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: Path, kind: str | None, flags: int, data: str = "") -> None:
    """Call mount(2). Raises OSError."""
    encoded = kind.encode() if kind else None
    if (
        _libc().mount(source.encode(), os.fsencode(target), encoded, ctypes.c_ulong(flags), data.encode())
        != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"mount on {target}: {os.strerror(number)}")
