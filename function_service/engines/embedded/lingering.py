"""What a zygote does when the function service has died: it keeps the instances alive that answer calls.

While the service lives, it says which these are, and hands over what the next service needs of each:
`{"keep": ID, "of": SNAPSHOT or null}` with a pidfd and more descriptors, `{"drop": ID}` when nobody calls it
any more. When it has died, every other child is killed, and this process waits for the next service, which
connects to a socket that it finds in the data folder. It is told `{"lives": ID, "of": …}` with those same
descriptors of each, then `{"all": true}`, and `{"exited": ID, "status": N}` (wait status; null where another
process is the parent) at the end of each. It may say `{"kill": ID}` and `{"end": true}`.

All ends with this process, which is process 1 above them: when none is left, when no service has come for a
while, and at once when `up` is gone, which holds the other end of the anchor. Nothing here tells one function
of another: this process knows IDs and descriptors alone, and its children close all of these.

Standard library only, as it runs inside of the zygotes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import time
from typing import Any

from function_service.engines.embedded import forking, messages

FIRST = 128  # the lowest number of a descriptor that is kept, so that children close all of them at once
_ALONE = 30.0  # seconds without a function service after which all ends
_PATIENCE = 5.0  # seconds that the next service has to take a message
_CREDENTIALS = struct.Struct("3i")


class _Kept:
    """An instance that outlives the function service: what it was forked from, its pidfd, and the rest."""

    def __init__(self, of: str | None, descriptors: list[int]) -> None:
        self.of = of
        self.pidfd = descriptors[0]
        self.descriptors = descriptors

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class Guard:
    """What shall outlive the function service, and the two doors by which this process hears of others."""

    def __init__(self, anchor: int, listener: int) -> None:
        """`listener`: where the next service connects. Both are owned from now on."""
        self._anchor, moved = _high([anchor, listener])
        self._listener = socket.socket(fileno=moved)
        self._above = max(self._anchor, moved) + 1  # all descriptors that ever were kept
        self._kept: dict[str, _Kept] = {}
        self._service: socket.socket | None = None
        self._deadline = 0.0  # of being alone
        self._children: dict[int, str] = {}

    def takes(self, order: dict[str, Any], descriptors: list[int]) -> bool:
        """Carry out `keep` and `drop`; return whether it was one of them."""
        if "keep" in order:
            self._forget(order["keep"])
            if moved := _high(descriptors):
                self._kept[order["keep"]] = _Kept(order["of"], moved)
                self._above = max(self._above, max(moved) + 1)
        elif "drop" in order:
            self._forget(order["drop"])
        else:
            return False
        return True

    def close_all(self) -> None:
        """In a child: close everything that is kept, before anything else happens there."""
        os.closerange(FIRST, self._above)

    def _forget(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept.close()

    def linger(self, children: dict[int, str]) -> None:
        """Keep what shall outlive the service, as long as the head of this module says."""
        self._children = children
        wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._part()
        dead: list[str] = []
        while True:
            for name, status in forking.reap(children):
                self._report(name, status)
            for name in dead:
                self._report(name, None)
            others = self._kill_others()
            alone = self._deadline - time.monotonic()
            if not self._kept or (self._service is None and alone < 0):
                return
            ready = self._wait(wake, None if self._service is not None else alone, meet=not others)
            if self._anchor in ready:
                return
            if wake in ready:
                os.read(wake, 4096)
            if self._listener.fileno() in ready:
                self._meet()
            elif self._service is not None and self._service.fileno() in ready:
                self._obey(self._service)
            dead = [name for name, kept in self._kept.items() if kept.pidfd in ready]

    def _wait(self, wake: int, seconds: float | None, *, meet: bool) -> set[int]:
        """Return the descriptors at which something has happened."""
        watched = [self._anchor, wake, *(kept.pidfd for kept in self._kept.values())]
        if meet:
            watched.append(self._listener.fileno())
        if self._service is not None:
            watched.append(self._service.fileno())
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        return {
            descriptor for descriptor, _ in poll.poll(None if seconds is None else max(0, seconds) * 1000)
        }

    def _kill_others(self) -> bool:
        """Kill the children that nothing kept needs; return whether some are still about to end."""
        needed = {*self._kept, *(kept.of for kept in self._kept.values())}
        others = [pid for pid, name in self._children.items() if name not in needed]
        for pid in others:
            os.kill(pid, signal.SIGKILL)
        return bool(others)

    def _meet(self) -> None:
        """Take a connection of the next service, and tell it what there is. The latest one is right."""
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != os.geteuid():
            connection.close()
            return
        self._part()
        connection.settimeout(_PATIENCE)
        self._service = connection
        for name, kept in self._kept.items():
            self._tell({"lives": name, "of": kept.of}, kept.descriptors)
        self._tell({"all": True})

    def _obey(self, service: socket.socket) -> None:
        """Carry out one message of the service, or be alone again."""
        try:
            message, descriptors = messages.receive(service)
        except ConnectionError:
            return  # it has gone before it had read all; what it said before can still be read
        except (EOFError, OSError):
            self._part()
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if "end" in message:
            for name in list(self._kept):
                self._forget(name)
        elif (kept := self._kept.get(str(message.get("kill")))) is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(kept.pidfd, signal.SIGKILL)

    def _report(self, name: str, status: int | None) -> None:
        if name in self._kept:
            self._forget(name)
            self._tell({"exited": name, "status": status})

    def _tell(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        if self._service is not None:
            try:
                messages.send(self._service, message, descriptors or ())
            except OSError:  # it has died too, or takes nothing
                self._part()

    def _part(self) -> None:
        """Be without a service from now on."""
        self._deadline = time.monotonic() + _ALONE
        if self._service is not None:
            self._service.close()
            self._service = None


def _high(descriptors: list[int]) -> list[int]:
    """Move descriptors to where children close them; return none where too many are open."""
    moved: list[int] = []
    try:
        for descriptor in descriptors:
            moved.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST))  # noqa: PERF401
    except OSError:
        while moved:
            os.close(moved.pop())
    for descriptor in descriptors:
        os.close(descriptor)
    return moved
