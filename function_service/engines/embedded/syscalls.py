"""Kernel calls that Python has no function for: the one thin module over libc.

Standard library only: it also runs inside of the zygotes, on whichever interpreter the function wants.
Each function raises OSError as its man page (section 2) says.
"""

from __future__ import annotations

import ctypes
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_OPEN_TREE_CLOEXEC = 0x80000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2

# From open_tree on, a call has the same number on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), -1)
_CAPGET = {"x86_64": 125, "aarch64": 90}.get(platform.machine(), -1)
_CAPSET = {"x86_64": 126, "aarch64": 91}.get(platform.machine(), -1)
_CAP_VERSION_3 = 0x20080522
_CAP_SYS_ADMIN = 1 << 21


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that flags name for new ones."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Enter the namespace behind a descriptor."""
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mount, bind or remount, as flags say."""
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode(),
    )
    _check(result, f"mount {source} on {target}")


def unmount(target: str) -> None:
    """Take a mount out of the tree; it goes when nobody uses it any more."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def pivot_into(root: str) -> None:
    """Make root, a mount point, the root of this mount namespace, and let go of the old one."""
    os.chdir(root)
    _check(_syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def open_tree(path: str, *, recursive: bool = False) -> int:
    """Return a descriptor of a copy of the mount at path, attached nowhere yet."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _check(_syscall(_OPEN_TREE, _AT_FDCWD, path.encode(), flags), f"open_tree {path}")


def set_mount_attributes(tree: int, attributes: int) -> None:
    """Set attributes (MOUNT_ATTR_…) on what open_tree returned, and on all mounts below it."""
    value = _MountAttr(attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    result = _syscall(_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(value), ctypes.sizeof(value))
    _check(result, "mount_setattr")


def move_mount(tree: int, target: str) -> None:
    """Attach what open_tree or new_filesystem returned at target."""
    _check(
        _syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH), "move_mount"
    )


def new_filesystem(kind: str, options: dict[str, str], attributes: int) -> int:
    """Return a descriptor of a new file system that is attached nowhere yet."""
    context = _check(_syscall(_FSOPEN, kind.encode(), 1), f"fsopen {kind}")
    try:
        for key, value in options.items():
            done = _syscall(_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)
            _check(done, f"fsconfig {kind} {key}={value}")
        _check(_syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), f"fsconfig {kind}")
        return _check(_syscall(_FSMOUNT, context, 1, attributes), f"fsmount {kind}")
    finally:
        os.close(context)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent dies."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")


def set_dumpable(value: bool) -> None:
    """Say whether processes of the same user may look into this one."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, int(value), 0, 0, 0), "prctl")


def set_name(name: str) -> None:
    """Set the name that `ps` shows, of at most 15 bytes."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl")


def set_no_new_privileges() -> None:
    """Give up for good what exec could add (set-uid programs, file capabilities)."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def drop_bounding_set() -> None:
    """Take every capability out of the bounding set; those held now stay until the user id changes."""
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1


_NO_CAPABILITIES = (ctypes.c_uint32 * 6)()
_CAP_HEADER = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)


def set_user(uid: int) -> None:
    """Become user and group uid, without others, and keep the capabilities for now."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setresuid(uid, uid, uid)
    held = (ctypes.c_uint32 * 6)()
    _check(_syscall(_CAPGET, ctypes.byref(_CAP_HEADER), ctypes.byref(held)), "capget")
    held[0], held[3] = held[1], held[4]  # only the permitted ones have stayed; make them effective again
    _check(_syscall(_CAPSET, ctypes.byref(_CAP_HEADER), ctypes.byref(held)), "capset")


def drop_capabilities() -> None:
    """Give up every capability."""
    _check(_syscall(_CAPSET, ctypes.byref(_CAP_HEADER), ctypes.byref(_NO_CAPABILITIES)), "capset")


def keep_only_system_administration() -> None:
    """Give up every capability but CAP_SYS_ADMIN."""
    kept = (ctypes.c_uint32 * 6)(_CAP_SYS_ADMIN, _CAP_SYS_ADMIN)
    _check(_syscall(_CAPSET, ctypes.byref(_CAP_HEADER), ctypes.byref(kept)), "capset")


def keep_capabilities_over_exec() -> None:
    """Let programs that this process starts have its capabilities, although its user is not root.

    They become inheritable and ambient (capabilities(7)); drop_capabilities undoes that too.
    """
    held = (ctypes.c_uint32 * 6)()
    _check(_syscall(_CAPGET, ctypes.byref(_CAP_HEADER), ctypes.byref(held)), "capget")
    held[2], held[5] = held[1], held[4]  # effective, permitted, inheritable; the lower half, then the upper
    _check(_syscall(_CAPSET, ctypes.byref(_CAP_HEADER), ctypes.byref(held)), "capset")
    for capability in range(64):
        if held[1 if capability < 32 else 4] >> capability % 32 & 1:
            _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0), "prctl")


def sync_filesystem(path: str) -> None:
    """Write everything that the file system of path holds back to the disk (syncfs(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(descriptor), f"syncfs {path}")
    finally:
        os.close(descriptor)
