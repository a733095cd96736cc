"""The zygote: a booted interpreter, already in the container root, that forks sandboxes on demand.

One runs for each interpreter. It never runs code of a function. It is single-threaded, so that forking
it is safe, and has all that a start needs in memory. Messages (see messages.py) from the function service:
`{"fork": ID, "kind": "fork"|"exec", …}` with the descriptors control, listener, output. It answers
`{"forked": ID}` with a pidfd or `{"refused": ID, "error": TEXT}`, and tells of each end with
`{"exited": ID, "status": N}` (wait status).

It is process 1 of a pid namespace, below which those of its sandboxes lie: however it ends, the kernel
ends all of them with it. It ends with the function service; where `up` stands above that, and instances
answer calls, it lingers a while for the next one (lingering.py).

Standard library only: it runs on the function's interpreter, under `-I -S`. Read sandbox.py next.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
from typing import Any

from function_service.engines.embedded import (
    container,
    forking,
    immortal,
    lingering,
    messages,
    sandbox,
    syscalls,
)


def main(channel_fd: int, plan: dict[str, Any]) -> None:
    """Boot, say so, then serve forks until the function service is gone, and what outlives it."""
    outlasts: list[int] = plan["outlasts"]  # the anchor, and where the next function service connects
    _close_all_but(channel_fd, *outlasts)
    _enter_pid_namespace(alone=not outlasts)
    guard = lingering.Guard(*outlasts) if outlasts else None
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
    immortal.immortalise()
    gc.freeze()
    with contextlib.suppress(ConnectionError):  # the service is gone already, as the channel shows next
        messages.send(channel, {"booted": True})
    own_user: bool = plan["own_user"]
    left = forking.serve(
        channel, lambda order, descriptors: sandbox.run(order, descriptors, shim, own_user), guard
    )
    channel.close()
    if left is not None and guard is not None:
        guard.linger(left)


def _close_all_but(*ours: int) -> None:
    """Close what whoever started us left open: every sandbox would inherit it, and its functions with it."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  pathlib is not loaded here
        descriptor = int(name)
        if descriptor > 2 and descriptor not in ours:
            with contextlib.suppress(OSError):  # the one by which the folder was listed
                os.close(descriptor)
    for descriptor in ours:
        os.set_inheritable(descriptor, False)


def _enter_pid_namespace(*, alone: bool) -> None:
    """Go on as process 1 of a new pid namespace; the first process only waits for it, and ends like it.

    Where it is not `alone`, that is for the anchor to end.
    """
    if alone:
        syscalls.die_with_parent(signal.SIGKILL)
    syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid == forking.IN_CHILD:
        syscalls.die_with_parent(signal.SIGKILL)
        return
    syscalls.set_name("zygote-parent")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
