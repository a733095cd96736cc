"""The zygote: a booted interpreter, already in the container root, that forks sandboxes on demand.

One runs for each interpreter. It never runs code of a function. It is single-threaded, so that forking
it is safe, and has all that a start needs in memory. Messages (see messages.py) from the function service:
`{"fork": ID, "kind": "fork"|"exec", …}` with the descriptors control, listener, output. It answers
`{"forked": ID}` with a pidfd or `{"refused": ID, "error": TEXT}`, and tells of each end with
`{"exited": ID, "status": N}` (wait status).

It is process 1 of a pid namespace, below which those of its sandboxes lie: however it ends, the kernel
ends all of them with it.

Standard library only: it runs on the function's interpreter, under `-I -S`. Read sandbox.py next.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

from function_service.engines.embedded import container, messages, sandbox, syscalls

IN_CHILD = 0  # what fork returns there


def main(channel_fd: int, plan: dict[str, Any]) -> None:
    """Boot, say so, then serve forks until the function service is gone."""
    _close_all_but(channel_fd)
    _enter_pid_namespace()
    syscalls.set_name("zygote")
    channel = socket.socket(fileno=channel_fd)
    shim = None
    if plan["shim"]:
        # A copy of the shim is in the root; its path there is what tracebacks name
        sys.path.insert(0, plan["shim"])
        shim = importlib.import_module("pilotlight_shim")
        sys.path.remove(plan["shim"])
        shim.preload()
    for path in list(sys.path):
        if not path.startswith(sys.base_prefix):
            sys.path.remove(path)
    container.enter(plan["container"])
    syscalls.drop_bounding_set()
    gc.collect()
    gc.freeze()
    messages.send(channel, {"booted": True})
    _serve(channel, shim, plan["own_user"])


def _close_all_but(channel_fd: int) -> None:
    """Close what whoever started us left open: every sandbox would inherit it, and its functions with it."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  pathlib is not loaded here
        descriptor = int(name)
        if descriptor > 2 and descriptor != channel_fd:
            with contextlib.suppress(OSError):  # the one by which the folder was listed
                os.close(descriptor)
    os.set_inheritable(channel_fd, False)


def _enter_pid_namespace() -> None:
    """Go on as process 1 of a new pid namespace; the first process only waits for it, and ends like it."""
    syscalls.die_with_parent(signal.SIGKILL)
    syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        syscalls.die_with_parent(signal.SIGKILL)
        return
    syscalls.set_name("zygote-parent")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)


def _serve(channel: socket.socket, shim: Any, own_user: bool) -> None:
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    children: dict[int, str] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == wake_read:
                os.read(wake_read, 4096)
                _reap(channel, children)
                continue
            try:
                order, descriptors = messages.receive(channel)
            except EOFError:
                return
            try:
                pid = _fork(own_pids)
            except OSError as error:
                # Processes or memory are short. This one start fails; the sandboxes that live must go on
                messages.send(channel, {"refused": order["fork"], "error": error.strerror})
                pid = None
            if pid == IN_CHILD:
                _become(order, descriptors, shim, own_user, (channel, own_pids, wake_read, wake_write))
            for received in descriptors:
                os.close(received)
            if pid is not None:
                children[pid] = order["fork"]
                pidfd = os.pidfd_open(pid)
                messages.send(channel, {"forked": order["fork"]}, [pidfd])
                os.close(pidfd)


def _fork(own_pids: int) -> int:
    """Fork a child that is process 1 of a new pid namespace. Raises OSError."""
    syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != IN_CHILD:
            # The next child shall not land in this one's namespace
            syscalls.setns(own_pids, syscalls.CLONE_NEWPID)
    return pid


def _become(
    order: dict[str, Any], descriptors: list[int], shim: Any, own_user: bool, mine: tuple[Any, ...]
) -> None:
    """Turn the forked child into a sandbox; never returns."""
    code = 70  # EX_SOFTWARE
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in mine:
            if isinstance(descriptor, int):
                os.close(descriptor)
            else:
                descriptor.close()
        sandbox.run(order, descriptors, shim, own_user)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except EOFError:
        code = 0  # the function service closed the channel: this sandbox is not wanted any more
    except BaseException:  # noqa: BLE001  the last frame of a process: the exit code and the trace are its report
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _reap(channel: socket.socket, children: dict[int, str]) -> None:
    while children:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        messages.send(channel, {"exited": children.pop(pid), "status": status})
