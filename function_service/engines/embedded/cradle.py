"""What a sandbox needs before its process is there: socket, channel, output, control group.

And how all of it is taken back when the process does not come to life.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from function_service.engines.base import End
from function_service.engines.embedded import cgroup, messages
from function_service.engines.embedded.channel import Channel
from function_service.engines.embedded.nursery import Forker, kill, listening_socket, pid_of
from pilotlight.descriptors import readable
from pilotlight.ids import short_id

_log = logging.getLogger(__name__)
_REPORT = 0.02  # seconds in which the exit status of a dead process arrives


class Cradle:
    """One sandbox on its way. It owns what it makes until the engine takes over, or `abandon` is called."""

    def __init__(self, instances: Path, hierarchy: cgroup.Hierarchy) -> None:
        """Make the socket, the channel and the control group. Raises OSError."""
        self.id = short_id()
        self.socket = instances / f"{self.id}.sock"
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.group = cgroup.Group(hierarchy, self.id)
        self.pidfd = -1
        self.output, self._output_write = os.pipe2(os.O_CLOEXEC)
        mine, self._theirs = messages.pair()
        self.control = Channel(mine)
        self._listener = listening_socket(self.socket)
        self._status: int | None = None

    async def fork(
        self,
        forker: Forker,
        order: dict[str, Any],
        memory: int,
        processes: int,
        ended: Callable[[int | None], None] | None = None,
    ) -> None:
        """Have the process forked, put it into its group, and let it begin. Raises OSError, Problem.

        `ended` is called with its wait status in place of resolving `self.ended`.
        """
        with contextlib.closing(self._theirs), contextlib.closing(self._listener):
            descriptors = [self._theirs.fileno(), self._listener.fileno(), self._output_write]
            try:
                self.pidfd = await forker.fork({"fork": self.id, **order}, descriptors, ended or self._end)
            finally:
                os.close(self._output_write)
        self.group.add(pid_of(self.pidfd))
        self.group.limit(memory, processes)
        self.control.send({})

    async def watch(self) -> None:
        """Wait for the death of the process itself, for one whose parent is not to be believed."""
        await readable(self.pidfd)
        await asyncio.sleep(_REPORT)
        self._end(self._status)

    def note(self, status: int | None) -> None:
        """Keep what such a parent says of the exit."""
        self._status = status

    def _end(self, status: int | None) -> None:
        if not self.ended.done():
            # Without a status: its zygote has died, and the kernel has killed it with that
            self.ended.set_result(end_of(signal.SIGKILL if status is None else status, self.group))

    async def abandon(self) -> str:
        """Take everything back, and return what the process had printed."""
        os.set_blocking(self.output, False)
        try:
            printed = os.read(self.output, 4096).decode(errors="replace")
        except BlockingIOError:
            printed = ""
        if self.pidfd >= 0:
            kill(self.pidfd)
            os.close(self.pidfd)
        os.close(self.output)
        self.control.close()  # a child that is forked in this moment ends by that
        self.socket.unlink(missing_ok=True)
        await asyncio.shield(asyncio.ensure_future(remove(self.group)))
        return printed


def end_of(status: int | None, group: cgroup.Group) -> End:
    """Return how a sandbox ended, by the wait status of its process 1 where that is known, and its group."""
    killed, peak = group.out_of_memory(), group.memory_peak()
    if status is None:
        return End(None, None, killed, peak)
    if os.WIFSIGNALED(status):
        return End(None, os.WTERMSIG(status), killed, peak)
    return End(os.WEXITSTATUS(status), None, killed, peak)


async def remove(group: cgroup.Group) -> None:
    """Remove a group, as soon as the kernel lets go of the last dying process in it."""
    for attempt in range(200):
        if group.remove():
            return
        await asyncio.sleep(0.001 * (1 + attempt // 10))
    _log.error("A control group could not be removed; the next start will try again")
