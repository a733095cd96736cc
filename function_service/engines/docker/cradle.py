"""What a container needs before it is there: a socket, a channel, an output; and how it comes to life."""

import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from function_service.engines.docker import container
from function_service.engines.docker.container import Plan
from function_service.engines.docker.daemon import Daemon
from function_service.engines.docker.ways import Way
from function_service.engines.embedded.channel import Channel
from function_service.engines.embedded.nursery import listening_socket


@dataclass(frozen=True)
class Blank:
    """What is known of a container that waits blank. Its descriptors are the cradle's until that lets go."""

    pid: int  # of its process 1, or its kernel, as the host sees it
    pidfd: int
    user: int  # as the host sees it
    control: Channel
    data_listener: int
    runtime: float  # milliseconds that its runtime took to boot
    carrier: int | None  # see Entered


class Cradle:
    """One container on its way. It owns what it makes until the engine takes over, or `abandon` is called."""

    def __init__(self, name: str, folder: Path, instance: Path, way: Way, user: int) -> None:
        """Make the sockets and the output. Raises OSError."""
        self._folder = folder
        folder.mkdir(mode=0o755)
        self._entrance = way.entrance(folder, user)
        self._listener = listening_socket(instance)
        self._instance = instance
        self.output, self._output_write = os.pipe2(os.O_CLOEXEC)
        self.name = name
        self._control: Channel | None = None
        self._descriptors: list[int] = []  # of the container, once it is there
        self._given_up = False

    async def begin(
        self,
        daemon: Daemon,
        plan: Plan,
        order: dict[str, Any],
        furnish: Callable[[int], Awaitable[None]],
    ) -> Blank:
        """Create and start the container, have it furnished, give it its order, wait until it is blank.

        It is furnished, by its pidfd, before its runtime boots, which may be code of a foreign image.
        Raises Problem, docker.errors.ImageNotFound, OSError, EOFError.
        """
        await daemon.call(lambda client: self._start(client, plan))
        entered = await self._entrance.enter(daemon, self.name)
        control = self._control = Channel(entered.control)
        if entered.carrier is not None:
            self._descriptors.append(entered.carrier)
        pidfd = os.pidfd_open(entered.pid)
        self._descriptors.append(pidfd)
        await furnish(pidfd)
        control.send(order, [self._listener.fileno(), self._output_write])
        self._let_go()
        message, received = await control.receive()
        self._descriptors += received
        return Blank(
            entered.pid, pidfd, entered.user, control, received[0], message["runtime"], entered.carrier
        )

    def _start(self, client: Any, plan: Plan) -> None:
        """Runs in a thread of the daemon's, also when nobody waits for it any more."""
        container.create(client, plan)
        try:
            if not self._given_up:
                self._entrance.attach(client, plan.name)
                client.start(plan.name)
        finally:
            if self._given_up:
                self._entrance.close()
                client.remove_container(plan.name, force=True, v=True)

    def _let_go(self) -> None:
        """Close what the container has now."""
        self._entrance.close()
        self._listener.close()
        if self._output_write >= 0:
            os.close(self._output_write)
            self._output_write = -1

    def printed(self) -> str:
        """Return what process 1 has printed so far."""
        os.set_blocking(self.output, False)
        try:
            return os.read(self.output, 4096).decode(errors="replace")
        except BlockingIOError:
            return ""

    def abandon(self, daemon: Daemon) -> None:
        """Take everything back."""
        self._given_up = True
        daemon.bury(self.name)
        self._let_go()
        if self._control is not None:
            self._control.close()
        for descriptor in (*self._descriptors, self.output):
            os.close(descriptor)
        self._instance.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
