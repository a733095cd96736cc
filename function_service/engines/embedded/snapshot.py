"""A snapshot: a function that is imported once, in a sandbox of its own, and forked for each instance.

The code of the function has run in it, so it is as untrusted as the function. What keeps its children apart
from each other and from the platform:

- It lives in a user and a pid namespace of its own, in which it holds CAP_SYS_ADMIN and nothing else, over
  nothing but what it makes itself. Its filter of system calls lets it use that for two calls only: unshare
  with exactly the namespaces of a child, and setns back into its own pid namespace. It can mount nothing.
- A child (`_separate`) leaves for namespaces of its own, gives up the capability and the two calls, and so
  can't come back. What it sees of files and network is arranged from outside (`deliver`), by a process of the
  zygote that no function's code has run in.
- The children get the function's memory as it was after the import, and nothing of each other. They are never
  forked for another function or revision.

Standard library only, as it runs inside of the zygotes. `run` is process 1 of the snapshot's sandbox.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import struct
import sys
import threading
from typing import Any

from function_service.engines.embedded import forking, limits, messages, seccomp, syscalls

_APART = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWCGROUP
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWNET
)
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
_MACHINE = os.uname().machine
_FORKING_FILTER = seccomp.prepare(
    seccomp.forking_program(_MACHINE, (syscalls.CLONE_NEWPID, _APART), syscalls.CLONE_NEWPID)
)
_LAST_FILTER = seccomp.prepare(seccomp.namespace_program(_MACHINE))


class Unsuitable(Exception):  # noqa: N818  a refusal, not a fault
    """The function can't be forked after its import; the text says why."""


def confine(uid: int, own_user: bool) -> None:
    """Give up everything but what forking children apart needs. The code is mounted already."""
    if own_user:
        syscalls.set_user(uid)
    syscalls.set_dumpable(True)  # else /proc/self is root's, and the maps below can't be written
    gid = os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123  pathlib is not loaded here
            file.write(text)
    # It goes back from its children's pid namespaces into its own, which must belong to this user namespace
    syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid != forking.IN_CHILD:
        syscalls.drop_capabilities()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    syscalls.die_with_parent(signal.SIGKILL)
    syscalls.drop_bounding_set()
    syscalls.keep_only_system_administration()
    syscalls.set_no_new_privileges()
    seccomp.install(_FORKING_FILTER)


def run(control: socket.socket, application: Any, shim: Any, concurrency: int) -> None:
    """Fork instances on demand, and stay while one of them is there. Raises Unsuitable."""
    try:
        shim.freeze()
    except Exception as error:
        raise Unsuitable(f"a before_snapshot hook raised {error!r}") from error
    problem = _unsuitable()
    if problem:
        raise Unsuitable(problem)
    gc.collect()
    gc.freeze()
    messages.send(control, {"ready": True})
    left = forking.serve(
        control, lambda _, descriptors: _separate(descriptors, application, shim, concurrency)
    )
    # The function service has died. Copies may still answer calls; the zygote ends them, and this process
    while left:
        left.pop(os.waitpid(-1, 0)[0], None)


def _unsuitable() -> str:
    """Return what of the import a fork would lose, or the empty string."""
    if threading.active_count() > 1:
        return "its import starts threads, which a fork would lose"
    if os.listdir("/tmp"):  # noqa: PTH208, S108
        return "its import leaves files in /tmp, which each instance has of its own"
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except OSError:
            continue  # the descriptor by which the folder was listed
        if int(name) > 2 and target.startswith("socket:") and _is_connected(int(name)):
            return "its import opens connections, which instances can't share (see the hooks of a snapshot)"
    return ""


def _is_connected(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        if sock.family == socket.AF_UNIX:
            return False  # the channel to the function service, and socket pairs of an event loop
        try:
            sock.getpeername()
        except OSError:
            return False
        return True


def _separate(descriptors: list[int], application: Any, shim: Any, concurrency: int) -> None:
    """Be one instance: leave the snapshot's namespaces, let them be furnished, wait to be needed, serve."""
    control_fd, listener_fd, output_fd = descriptors
    control = socket.socket(fileno=control_fd)
    syscalls.die_with_parent(signal.SIGKILL)
    messages.receive(control)  # the function service has put this process into its cgroup
    syscalls.unshare(_APART)
    os.setsid()
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.close(output_fd)
    messages.send(control, {"apart": True})
    messages.receive(control)  # /proc, /tmp and the network are there, and somebody needs this instance
    limits.limit_function()
    syscalls.drop_capabilities()
    seccomp.install(_LAST_FILTER)
    listener = socket.socket(fileno=listener_fd)
    try:
        shim.thaw(application)
    except shim.LoadError as error:
        messages.send(control, {"error": str(error)[-32768:]})
        raise SystemExit(1) from None
    messages.send(control, {"ready": True})
    control.close()
    shim.serve(listener, application, concurrency)


def deliver(order: dict[str, Any], descriptors: list[int]) -> None:
    """Furnish the namespaces of a snapshot's child, from outside: /proc, /tmp, loopback, listeners.

    Runs in a child of the zygote. `descriptors`: the channel on which to send the listeners, and a pidfd.
    """
    control_fd, pidfd = descriptors
    control = socket.socket(fileno=control_fd)
    syscalls.setns(pidfd, syscalls.CLONE_NEWPID)
    inside, outside = messages.pair()
    pid = os.fork()
    if pid != forking.IN_CHILD:
        inside.close()
        try:
            _, listeners = messages.receive(outside)
        except EOFError:
            listeners = []  # it has failed, and its exit code says so
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            # Only now is nobody with privileges left where the function is about to run
            messages.send(control, {"furnished": True}, listeners)
        raise SystemExit(code & 0xFF)
    outside.close()
    # Only a process in that pid namespace can mount its /proc, and only where it sees a whole one
    restricted = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
    proc = syscalls.new_filesystem("proc", {"subset": "pid"}, restricted)
    syscalls.setns(pidfd, syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWUTS)
    # On top of the snapshot's, which is locked there; the child has no way to lift this one
    syscalls.move_mount(proc, "/proc")
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("tmpfs", "/tmp", "tmpfs", flags, order["tmp"])  # noqa: S108
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))
    made = [socket.create_server(("127.0.0.1", port), backlog=128) for port in order["ports"]]
    messages.send(inside, {}, [listener.fileno() for listener in made])
    sys.stdout.flush()
    os._exit(0)
