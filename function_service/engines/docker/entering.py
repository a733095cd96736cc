"""A process of root that enters containers, for what nobody inside of them may do: mount, and cover.

Orders (see embedded/messages.py), each carried out by a child that goes into the namespaces of the container
whose pidfd comes first, before any code of a function runs there or beside it:

- `{"id": N, "furnish": {"binds": […], "gone": […], "terminal": BOOL, "tmp": BYTES}}` takes away what Docker
  shows and a function has no use for, and what is `gone`, so that a container looks as a sandbox of the
  embedded engine does.
- `{"id": N, "mounts": [TARGET, …], "tmp": BYTES}` with a descriptor for each target: detached mounts of code.

The answer is `{"id": N}`, with `error` where it failed. It ends with the channel. Standard library only, and
one thread: only such a process may enter a mount namespace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import traceback
from typing import Any

from function_service.engines.embedded import messages, syscalls
from function_service.engines.embedded.sandbox import tmp_options

_NOT_THERE = (errno.EINVAL, errno.ENOENT)  # what umount2 says of what is no mount point, or not there
_NEEDLESS = (
    "/run",  # it holds the way to the engine, and process 1 has gone it
    *("/sys", "/proc", "/dev/mqueue", "/dev/shm"),  # noqa: S108
    "/etc/resolv.conf",
)
_RESTRICTED = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


def main(channel_fd: int) -> None:
    """Carry out orders until the channel is closed."""
    syscalls.die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=channel_fd)
    with contextlib.suppress(EOFError):
        while True:
            order, descriptors = messages.receive(channel)
            pid = os.fork()
            if pid == 0:
                _carry_out(channel, order, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            if os.waitpid(pid, 0)[1] != 0:
                messages.send(channel, {"id": order["id"], "error": "it could not be carried out"})


def _carry_out(channel: socket.socket, order: dict[str, Any], descriptors: list[int]) -> None:
    """In a forked child: enter, do it, tell; never returns."""
    code = 1
    # From here on names are those of the container: what is not imported by now would be code of its image
    sys.meta_path.clear()
    try:
        answer: dict[str, Any] = {"id": order["id"]}
        try:
            pidfd, *trees = descriptors
            if "furnish" in order:
                syscalls.setns(pidfd, syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
                _furnish(**order["furnish"])
            else:
                syscalls.setns(pidfd, syscalls.CLONE_NEWNS)
                _mount(order["mounts"], trees, order["tmp"])
        except OSError as error:
            answer["error"] = str(error)
        messages.send(channel, answer)
        code = 0
    except BaseException:  # noqa: BLE001  the last frame of a process
        traceback.print_exc()
    finally:
        os._exit(code)


def _furnish(binds: list[str], gone: list[str], terminal: bool, tmp: int) -> None:
    """Leave of Docker's mounts what a function needs. Raises OSError."""
    proc = _proc()
    for path in (*gone, *_NEEDLESS, *(() if terminal else ("/dev/pts",))):
        _unmount(path)
    syscalls.move_mount(proc, "/proc")
    os.close(proc)
    owner = os.stat("/dev")  # noqa: PTH116  with a user namespace our own user does not exist there
    for name, target in (("core", None), ("tty", "pts/0"), ("mqueue", None), ("shm", "/tmp")):  # noqa: S108
        path = f"/dev/{name}"
        _unmount(path)  # in a user namespace no device can be made, so the host's are mounted
        with contextlib.suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114  pathlib is not loaded
                os.rmdir(path)  # noqa: PTH106
            else:
                os.unlink(path)  # noqa: PTH108
        if target is not None:
            os.setegid(owner.st_gid)
            os.seteuid(owner.st_uid)
            os.symlink(target, path)  # noqa: PTH211
            os.seteuid(0)
            os.setegid(0)
    _restrict("/", syscalls.MOUNT_ATTR_NOSUID)
    for path in binds:  # Docker's own `ro` leaves out what is mounted below
        _restrict(path, _RESTRICTED | syscalls.MOUNT_ATTR_RDONLY)
    _resize(tmp)


def _unmount(path: str) -> None:
    try:
        syscalls.unmount(path)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise


def _proc() -> int:
    """Return a /proc that shows the container's processes and nothing else; one in there has to make it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            attributes = _RESTRICTED | syscalls.MOUNT_ATTR_NOEXEC
            tree = syscalls.new_filesystem("proc", {"subset": "pid"}, attributes)
            messages.send(theirs, {}, [tree])
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    try:
        return messages.receive(ours)[1][0]
    except EOFError as error:
        raise OSError(errno.EPERM, "the kernel makes no /proc for the container") from error
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _restrict(path: str, attributes: int) -> None:
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        syscalls.set_mount_attributes(held, attributes)
    finally:
        os.close(held)


def _resize(tmp: int) -> None:
    flags = syscalls.MS_REMOUNT | syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("tmpfs", "/tmp", None, flags, tmp_options(tmp))  # noqa: S108


def _mount(targets: list[str], trees: list[int], tmp: int) -> None:
    """Mount code where an instance has it, and give its /tmp a size. Raises OSError."""
    tools = [target for target in targets if target.startswith("/tools/")]
    if tools:
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("tmpfs", "/tools", "tmpfs", flags, "size=64k,mode=755")
        for target in tools:
            os.mkdir(target, 0o755)  # noqa: PTH102  pathlib is not loaded
    for target, tree in zip(targets, trees, strict=True):
        syscalls.move_mount(tree, target)
    _resize(tmp)
