"""Forking on demand, each child as process 1 of a new pid namespace: what zygotes and snapshots do.

Messages (see messages.py): `{"fork": ID, …}` with descriptors for the child. The answers are `{"forked": ID}`
with a pidfd, or `{"refused": ID, "error": …}`; and `{"exited": ID, "status": N}` (wait status) at its end.
`{"end": true}` comes before the channel is closed on purpose; without it the function service has died.
Standard library only, as it runs inside of the zygotes.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import functools
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from function_service.engines.embedded import messages, syscalls

if TYPE_CHECKING:
    from function_service.engines.embedded.lingering import Guard

IN_CHILD = 0  # what fork returns there


def serve(
    channel: socket.socket,
    become: Callable[[dict[str, Any], list[int]], None],
    guard: Guard | None = None,
) -> dict[int, str] | None:
    """Fork on demand until the channel is closed; each child calls `become(order, descriptors)`.

    Where the function service has died, the children that live (process id → ID) are returned: they are left
    to whoever called this. None where it has said that this is the end. `guard` takes what shall outlive it.
    """
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
                for name, status in reap(children):
                    _tell(channel, {"exited": name, "status": status})
                continue
            try:
                order, descriptors = messages.receive(channel)
            except ConnectionError:
                continue  # it died before it had read all; what it said before can still be read
            except EOFError:
                return children
            if "end" in order:
                return None
            if guard is not None and guard.takes(order, descriptors):
                continue
            try:
                pid = os.fork() if order.get("kind") == "deliver" else _fork(own_pids)
            except OSError as error:
                # Processes or memory are short. This one start fails; the sandboxes that live must go on
                _tell(channel, {"refused": order["fork"], "error": error.strerror})
                pid = None
            if pid == IN_CHILD:
                if guard is not None:
                    guard.close_all()
                _live(
                    functools.partial(become, order, descriptors), (channel, own_pids, wake_read, wake_write)
                )
            for received in descriptors:
                os.close(received)
            if pid is not None:
                pidfd = os.pidfd_open(pid)
                try:
                    _tell(channel, {"forked": order["fork"]}, [pidfd])
                    children[pid] = order["fork"]
                except OSError as error:
                    os.kill(pid, signal.SIGKILL)  # its user has too many descriptors on their way (limits.py)
                    _tell(channel, {"refused": order["fork"], "error": error.strerror})
                os.close(pidfd)


def _tell(channel: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    with contextlib.suppress(ConnectionError):  # it has died, as the next look at the channel shows
        messages.send(channel, message, descriptors)


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


def _live(become: Callable[[], None], parents: tuple[Any, ...]) -> None:
    """In the forked child: let go of the parent's things, become what was ordered, and end; never returns."""
    code = 70  # EX_SOFTWARE
    try:
        signal.set_wakeup_fd(-1)
        # What is under signal.signal, which would try to make members of an enumeration, on 25 pages more
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        for descriptor in parents:
            if isinstance(descriptor, int):
                os.close(descriptor)
            else:
                descriptor.close()
        become()
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


def reap(children: dict[int, str]) -> Iterator[tuple[str, int]]:
    """Take out the children that have ended; yield the ID and the wait status of each.

    Process 1 of a namespace also inherits orphans, such as what a delivery that was killed had forked.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        name = children.pop(pid, None)
        if name is not None:
            yield name, status
