"""The function service's side of the zygotes: boots one for each interpreter, and has it fork.

Read zygote.py for the other side.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from function_service.engines.embedded import messages
from function_service.engines.embedded.channel import Channel
from pilotlight import sockets
from pilotlight.ids import short_id
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter

_log = logging.getLogger(__name__)
_BOOT_DEADLINE = 30.0  # seconds
_FORK_DEADLINE = 10.0  # seconds
_END_DEADLINE = 2.0  # seconds
_OTHER_DESCRIPTORS = 192  # that a zygote may need besides those which it keeps (lingering.FIRST)

# What it must know comes over the channel: its sandboxes can read its command line
_COMMAND = (
    "import sys, json, socket; channel = socket.socket(fileno=int(sys.argv[1])); "
    "folder, plan = json.loads(channel.recv(1 << 18)); sys.path.insert(0, folder); "
    "from function_service.engines.embedded.zygote import main; main(channel.detach(), plan)"
)
_OURS = Path(__file__).parents[3]


@dataclass(frozen=True)
class Anchor:
    """What zygotes hold on to when this process dies, until `up` is gone too."""

    descriptor: int  # a socket whose other end `up` holds
    folder: Path  # of the sockets by which the next function service finds them; ours alone

    def door(self) -> Path:
        """Return a path for one more of them."""
        return self.folder / f"{short_id()}.sock"


class Forker:
    """The other side of forking.py: has a process fork, and follows what becomes of its children.

    What a snapshot says is not believed beyond its own children.
    """

    def __init__(self, name: str, lost: Callable[[], None]) -> None:
        """`lost` is called when the process has ended, or is to be given up because it talks nonsense."""
        self._name = name
        self._lost = lost
        self._channel: Channel | None = None
        self._reader: asyncio.Task[None] | None = None
        self._forking: dict[str, asyncio.Future[int]] = {}  # the results are pidfds
        self._ended: dict[str, Callable[[int | None], None]] = {}

    def follow(self, channel: Channel) -> None:
        """Begin to read what the process says over its channel."""
        self._channel = channel
        self._reader = asyncio.create_task(self._read(channel), name=self._name)

    async def unfollow(self) -> None:
        """Stop reading."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    @property
    def alive(self) -> bool:
        """Whether it can be asked to fork."""
        return self._reader is not None and not self._reader.done()

    @property
    def has_children(self) -> bool:
        """Whether something that it forked is alive, or is being forked."""
        return bool(self._ended)

    async def _read(self, channel: Channel) -> None:
        # A snapshot that talks nonsense has ended, as far as we are concerned
        with contextlib.suppress(EOFError, OSError, LookupError, ValueError, TypeError):
            while True:
                message, descriptors = await channel.receive()
                try:
                    self._hear(message, descriptors)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
                # Who talks without end must not keep the loop from everybody else
                await asyncio.sleep(0)
        _log.info("action=forker-ended name=%s", self._name)
        for waiting in self._forking.values():
            if not waiting.done():
                waiting.set_exception(
                    Problem("no-capacity", f"{self._name} ended; try again.", retry_after=1)
                )
        self._forking.clear()
        # The kernel has killed its children with it, as it was process 1 above their namespaces
        for ended in self._ended.values():
            ended(None)
        self._ended.clear()
        self._lost()

    def _hear(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Take in one message; a descriptor that is kept is taken out of the list.

        Raises LookupError, TypeError for nonsense.
        """
        if "forked" in message:
            waiting = self._forking.pop(message["forked"])
            if waiting.done():
                kill(descriptors[0])  # nobody waits for it any more
            else:
                waiting.set_result(descriptors.pop(0))
        elif "refused" in message:
            del self._ended[message["refused"]]
            waiting = self._forking.pop(message["refused"])
            if not waiting.done():
                waiting.set_exception(OSError(f"the kernel refuses to fork: {message['error']}"))
        else:
            status = message["status"]
            if not isinstance(status, int | None):
                raise TypeError("a wait status is a number")
            self._ended.pop(message["exited"])(status)

    async def fork(
        self, order: dict[str, Any], descriptors: list[int], ended: Callable[[int | None], None]
    ) -> int:
        """Fork one sandbox and return its pidfd; `ended` is called with its wait status, once.

        Raises OSError, TimeoutError, Problem `no-capacity`.
        """
        name = order["fork"]
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not self.alive or self._channel is None:
            raise Problem("no-capacity", f"{self._name} ended; try again.", retry_after=1)
        self._channel.send(order, descriptors)
        self._forking[name] = waiting
        self._ended[name] = ended
        try:
            async with asyncio.timeout(_FORK_DEADLINE):
                return await waiting
        except BaseException:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                # It had come, and whoever waited was told to go before he could take it
                kill(waiting.result())
                os.close(waiting.result())
            raise


class Zygote(Forker):
    """One booted interpreter that forks sandboxes.

    With an `anchor` (see survivors.py), what is kept in it outlives this process.
    """

    def __init__(self, interpreter: Interpreter, anchor: Anchor | None) -> None:
        super().__init__(f"The zygote of {interpreter.name}", lambda: None)
        self.interpreter = interpreter
        self._anchor = anchor
        self._door: Path | None = None  # where the next function service finds it
        self._kept: dict[str, int] = {}  # sandbox → number of its descriptors
        self._process: asyncio.subprocess.Process | None = None

    async def boot(self, plan: dict[str, Any]) -> None:
        """Start it and wait until it can fork. Raises Problem `no-capacity`."""
        mine, theirs = messages.pair()
        channel = self._channel = Channel(mine)
        command = (self.interpreter.executable, "-I", "-S", "-c", _COMMAND)
        with contextlib.ExitStack() as given:
            descriptor = given.enter_context(theirs).fileno()
            outlasts = []
            if self._anchor is not None:
                self._door = self._anchor.door()
                listener = sockets.listen(self._door, mode=0o600, backlog=8, kind=socket.SOCK_SEQPACKET)
                outlasts = [self._anchor.descriptor, given.enter_context(listener).fileno()]
            mine.send(json.dumps([str(_OURS), plan | {"outlasts": outlasts}]).encode())
            self._process = await asyncio.create_subprocess_exec(
                *command,
                str(descriptor),
                pass_fds=(descriptor, *outlasts),
                stdin=asyncio.subprocess.DEVNULL,
                env={"LC_ALL": "C.UTF-8"},
            )
        try:
            async with asyncio.timeout(_BOOT_DEADLINE):
                await channel.receive()
        except BaseException as error:
            await self.close()
            if not isinstance(error, (EOFError, OSError, TimeoutError)):
                raise
            raise Problem(
                "no-capacity",
                f"The zygote of {self.interpreter.name} did not boot ({type(error).__name__}); "
                "the log of the platform says why. `pilotlight doctor` checks this machine.",
            ) from error
        self.follow(channel)

    def keep(self, sandbox: str, of: str | None, descriptors: Sequence[int]) -> None:
        """Have a sandbox outlive this process, as far as there is room for its descriptors.

        `of` is the snapshot that it was forked from, if any. The first descriptor is its pidfd; all are
        copied.
        """
        if self._anchor is None or self._channel is None or not self.alive:
            return
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_DESCRIPTORS
        if sum(self._kept.values()) + len(descriptors) > most:
            _log.warning("action=not-kept instance=%s: too many files would be open (ulimit -n)", sandbox)
            return
        with contextlib.suppress(
            OSError, EOFError
        ):  # it has just ended, or does not read: then nothing outlives
            self._channel.send({"keep": sandbox, "of": of}, descriptors)
            self._kept[sandbox] = len(descriptors)

    def drop(self, sandbox: str) -> None:
        """Have a sandbox that was kept end with this process again."""
        if sandbox in self._kept and self._channel is not None:
            with contextlib.suppress(OSError, EOFError):
                self._channel.send({"drop": sandbox})
                del self._kept[sandbox]

    async def close(self) -> None:
        """End it, and with it every sandbox that it forked."""
        if self._door is not None:
            self._door.unlink(missing_ok=True)
        if self._channel is not None:
            with contextlib.suppress(OSError, EOFError):  # it has ended already, or is killed below
                self._channel.send({"end": True})
            self._channel.close()
        if self._process is not None:
            # It sees that its channel is closed, and ends; its sandboxes are killed with it
            try:
                async with asyncio.timeout(_END_DEADLINE):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self.unfollow()


def kill(pidfd: int) -> None:
    """Kill a sandbox's process 1, and so everything in its pid namespace."""
    with contextlib.suppress(OSError):  # it has ended, or a snapshot handed over something else
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def pid_of(pidfd: int) -> int:
    """Return the process id behind a pidfd, as this process sees it.

    Raises ProcessLookupError where it has ended, or the descriptor is none: a snapshot may send anything.
    """
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:") and (pid := int(line.split()[1])) > 0:
            return pid
    raise ProcessLookupError(errno.ESRCH, "the process has ended")


def listening_socket(path: Path) -> socket.socket:
    """Make the socket on which an instance will serve HTTP; only our own group may connect."""
    listener = sockets.listen(path, mode=0o660, backlog=1024)
    os.set_blocking(listener.fileno(), True)
    return listener
