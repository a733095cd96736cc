"""The container layer: a root file system made of the host's system folders, read-only, without its secrets.

`describe` decides what is in it (function service), `enter` moves a zygote into it. All sandboxes of a
zygote share the mounts; what is private to each (/proc, /tmp) is made in sandbox.py.
Standard library only, as it runs inside of the zygotes too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from function_service.engines.embedded import syscalls

MOUNT_POINTS = (
    "function",
    "dependencies",
    "source",
    "build",
    "tools",
    "proc",
    "tmp",
    "dev/pts",  # empty, but where a shell has its terminal
    "usr",
    "sys",
    "run",
)
_SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_FILES = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/os-release",
    "/etc/services",
    "/etc/protocols",
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/certs/ca-certificates.crt",
)
_FUNCTION_UID = 65532  # what a function sees as its user's name; the number itself differs by sandbox


def skeleton() -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the files (path → content) and symbolic links (path → target) of the root."""
    files = {
        "etc/passwd": b"root:x:0:0:root:/:/usr/sbin/nologin\nfunction:x:%d:%d::/tmp:/bin/sh\n"
        % (_FUNCTION_UID, _FUNCTION_UID),
        "etc/group": b"root:x:0:\nfunction:x:%d:\n" % _FUNCTION_UID,
        "etc/hosts": b"127.0.0.1 localhost function\n::1 localhost\n",
        "etc/hostname": b"function\n",
        "etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
        "etc/resolv.conf": b"",
        "dev/null": b"",
    }
    for name in _FILES:
        try:
            files[name[1:]] = Path(name).read_bytes()
        except OSError:
            continue  # this distribution does not have it, and programs on it do not expect it
    links = {
        "dev/fd": "/proc/self/fd",
        "dev/stdin": "/proc/self/fd/0",
        "dev/stdout": "/proc/self/fd/1",
        "dev/stderr": "/proc/self/fd/2",
        "dev/shm": "/tmp",  # noqa: S108  the sandbox's own
        "dev/ptmx": "pts/ptmx",
        "dev/tty": "pts/0",
        "etc/mtab": "/proc/self/mounts",
        "node_modules": "/dependencies/node_modules",
        "var/tmp": "/tmp",  # noqa: S108
    }
    for name in _SYSTEM_FOLDERS:
        if Path("/" + name).is_symlink():
            links[name] = str(Path("/" + name).readlink())
    alternatives = Path("/etc/alternatives")
    if alternatives.is_dir():
        for link in alternatives.iterdir():
            if link.is_symlink():
                links[f"etc/alternatives/{link.name}"] = str(link.readlink())
    for name in _DEVICES:
        files[f"dev/{name}"] = b""
    return files, links


def write_skeleton(folder: Path, files: dict[str, bytes], links: dict[str, str]) -> None:
    """Write what `skeleton` returned, and the mount points, below folder."""
    for name in MOUNT_POINTS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "tools").mkdir(exist_ok=True)
    for name in _SYSTEM_FOLDERS:
        if Path("/" + name).is_dir() and name not in links:
            (folder / name).mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o644)
    for name, target in links.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)


def binds(extra: list[str]) -> list[str]:
    """Return the host's folders that are bound into the root read-only, at the same place."""
    folders = ["/usr", *("/" + name for name in _SYSTEM_FOLDERS if _is_real_folder("/" + name))]
    return [*folders, *extra]


def hidden(extra: list[str]) -> list[str]:
    """Return folders below the bound ones that may hold what is the host's own, and are covered.

    `extra`: interpreters and folders that are needed; what holds one of them stays.
    """
    candidates = ("/usr/local", "/usr/src")
    return [path for path in candidates if Path(path).is_dir() and not any(e.startswith(path) for e in extra)]


def _is_real_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def enter(plan: dict[str, Any]) -> None:
    """Build the root in a mount namespace of this process's own, and make it the root.

    plan: `layers` (their folder), `lowers` (names of layers, uppermost first), `root` (an
    empty folder to build on), `binds`, `hidden`.
    Raises OSError.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    root = plan["root"]
    readonly = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    # Relative names, since a function can read them in /proc/self/mounts
    os.chdir(plan["layers"])
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("overlay", root, "overlay", flags, "lowerdir=" + ":".join(plan["lowers"]))
    for path in plan["binds"]:
        _bind(path, root + path, readonly)
    for path in plan["hidden"]:
        _bind(root + "/run", root + path, readonly)
    for name in _DEVICES:
        _bind(f"/dev/{name}", f"{root}/dev/{name}", syscalls.MOUNT_ATTR_NOSUID)
    # The kernel gives a user namespace a new /proc only where it can see a whole one (mount_too_revealing),
    # so the zygote keeps the host's; each sandbox replaces it before anything untrusted runs there.
    proc = syscalls.open_tree("/proc", recursive=True)
    syscalls.move_mount(proc, root + "/proc")
    os.close(proc)
    syscalls.pivot_into(root)


def _bind(source: str, target: str, attributes: int) -> None:
    tree = syscalls.open_tree(source, recursive=True)
    try:
        syscalls.set_mount_attributes(tree, attributes)
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)
