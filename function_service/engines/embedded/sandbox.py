"""What happens inside of a sandbox, from the fork until a function serves. Process 1 runs this.

A blank sandbox is made ahead of time: `_isolate`, `_confine`. Then it waits. The next message brings the
code: mounts that come as descriptors, the handler, the environment; then the last privileges go (`_seal`),
and only then does code of the function run. What can be done before it waits is not done after.

There are four kinds: `fork` (Python: this very process becomes the instance), `exec` (other runtimes and
builds: this process stays as a small init, see init.py), `snapshot` (see snapshot.py) and `shell` (a command
at a terminal, see shell.py).

Standard library only. A step that fails ends the process; the function service reads why on the channel.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import struct
import sys
import time
from typing import Any

from function_service.engines.embedded import (
    init,
    limits,
    messages,
    relay,
    seccomp,
    shell,
    snapshot,
    syscalls,
)

DATA_PORT = 8001
EGRESS_PORT = 8002
TMP_SIZE = 64 << 20  # bytes that /tmp holds unless the attachment says otherwise
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
_NAMESPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWCGROUP
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWNET
)

_REHEARSED = {f"PILOTLIGHT_{number}": "x" * 40 for number in range(12)}
_FIRST_FILTER = seccomp.prepare(seccomp.program(os.uname().machine, may_mount=True))
_LAST_FILTER = seccomp.prepare(seccomp.mounting_program(os.uname().machine))


def run(order: dict[str, Any], descriptors: list[int], shim: Any, own_user: bool) -> None:
    """Be one sandbox, from blank to its end. Called in the child that the zygote forked."""
    if order["kind"] == "deliver":
        snapshot.deliver(order, descriptors)
        return
    control_fd, listener_fd, output_fd = descriptors
    control = socket.socket(fileno=control_fd)
    syscalls.die_with_parent(signal.SIGKILL)
    messages.receive(control)  # the function service has put this process into its cgroup
    data_listener = _isolate(output_fd)
    if order["kind"] == "shell":
        shell.provide_terminals()
    if order["kind"] != "snapshot":
        _confine(order["uid"], own_user)
    booted = None
    began = time.monotonic()
    if order["kind"] == "exec":
        booted = init.boot(order["boot"], listener_fd, _seal)
    elif order["rehearse"]:
        shim.rehearse("/tmp")  # noqa: S108  the sandbox's own
        _set_environment(_REHEARSED)
    runtime = (time.monotonic() - began) * 1000
    messages.send(control, {"blank": True, "runtime": runtime}, [data_listener.fileno()])
    data_listener.close()
    attachment, received = messages.receive(control)
    _attach(control, attachment, received)
    door = received[-1] if "debug" in attachment else None
    if booted is not None:
        init.run(control, listener_fd, attachment, booted, _seal, door)
        return
    if order["kind"] == "shell":
        shell.run(control, listener_fd, attachment, _seal)
        return
    if order["kind"] == "snapshot":
        limits.limit_snapshot()
        snapshot.confine(order["uid"], own_user)
    else:
        _seal()
        # So that the function can look into itself (/proc/self); nothing else of this user is in reach
        syscalls.set_dumpable(True)
    _set_environment(attachment["env"])
    sys.path[:0] = ["/function", "/dependencies"]
    if door is not None:
        relay.begin(door, ("127.0.0.1", attachment["debug"]))
    listener = socket.socket(fileno=listener_fd)
    try:
        if order["kind"] == "snapshot":
            listener.close()
            snapshot.run(control, shim.find(attachment["handler"]), shim, attachment["concurrency"])
            return
        if door is not None:
            shim.debug(attachment["debug"])
        application = shim.load(attachment["handler"])
    except (shim.LoadError, snapshot.Unsuitable) as error:
        messages.send(control, {"error": str(error)[-32768:]})
        raise SystemExit(1) from None
    messages.send(control, {"ready": True})
    control.close()
    shim.serve(listener, application, attachment["concurrency"])


def _isolate(output_fd: int) -> socket.socket:
    """Leave every namespace of the zygote; return the listener of the data API."""
    syscalls.unshare(_NAMESPACES)
    os.setsid()
    restricted = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
    proc = syscalls.new_filesystem("proc", {"subset": "pid"}, restricted)
    syscalls.unmount("/proc")
    syscalls.move_mount(proc, "/proc")
    os.close(proc)
    syscalls.mount("tmpfs", "/tmp", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, tmp_options(TMP_SIZE))  # noqa: S108
    socket.sethostname("function")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))
    listener = socket.create_server(("127.0.0.1", DATA_PORT), backlog=128)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.close(output_fd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)
    return listener


def _set_environment(env: dict[str, str]) -> None:
    """Have these variables and no others."""
    # One by one: `update` and `clear` run through the abstract base classes, which copies 40 pages
    for name in [name for name in os.environ if name not in env]:
        del os.environ[name]
    for name, value in env.items():
        os.environ[name] = value


def tmp_options(size: int) -> str:
    """Return the mount options of a /tmp that holds so many bytes."""
    return f"size={size},nr_inodes={max(1024, size // 4096)},mode=1777"


def _attach(control: socket.socket, attachment: dict[str, Any], trees: list[int]) -> None:
    """Mount the code, while this process still may."""
    tools = [target for target in attachment["mounts"] if target.startswith("/tools/")]
    if tools:
        syscalls.mount(
            "tmpfs", "/tools", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=64k,mode=755"
        )
        for target in tools:
            os.mkdir(target, 0o755)  # noqa: PTH102  pathlib is not loaded here
    for target, tree in zip(attachment["mounts"], trees):  # a listener may follow: see engine.py
        syscalls.move_mount(tree, target)
        os.close(tree)
    if attachment["tmp"] != TMP_SIZE:
        flags = syscalls.MS_REMOUNT | syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("tmpfs", "/tmp", None, flags, tmp_options(attachment["tmp"]))  # noqa: S108
    if attachment["egress"]:
        with socket.create_server(("127.0.0.1", EGRESS_PORT), backlog=128) as listener:
            messages.send(control, {"egress": True}, [listener.fileno()])
    os.chdir(attachment["folder"])


def _confine(uid: int, own_user: bool) -> None:
    """Give up, for good, all but what mounting the code needs."""
    if own_user:
        syscalls.set_user(uid)
    syscalls.set_no_new_privileges()
    seccomp.install(_FIRST_FILTER)


def _seal() -> None:
    """Give up the rest. After this, code of the function may run."""
    limits.limit_function()  # not before: this process has sent descriptors
    syscalls.drop_capabilities()
    syscalls.die_with_parent(
        signal.SIGKILL
    )  # a new process has it not yet, and changing the user has cleared it
    seccomp.install(_LAST_FILTER)
