"""What `pilotlight up` does: starts the services, keeps them running, and stops them in order.

Each service is a process of its own (serve.py). One that dies is started again: at once where it had run for
a while, and more and more seldom where it dies as soon as it runs.
When this process dies, by whatever signal, the services see their lifelines end and stop by themselves.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import groupby, takewhile

from cli.serve import READY, STOP_WITHIN
from pilotlight.descriptors import readable_once
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_HEALTHY_AFTER = 30.0  # seconds of running after which the pause starts from its shortest again


class Service:
    """One service process, and its successors."""

    def __init__(
        self,
        name: str,
        descriptors: dict[str, int],
        environment: dict[str, str],
        *,
        number: int | None = None,
        several: bool = False,
    ) -> None:
        """`descriptors` are handed over, each as the flag of that name, and so is `number`."""
        self.command = name
        self.name = f"{name}/{number}" if several else name
        self._number = number
        self.ready = asyncio.Event()  # it has been, at least once
        self._serves = asyncio.Event()  # the present process does
        self._restarting = False
        self._succeeded = asyncio.Event()  # the present process is to be left to end by itself
        self._leaving: dict[subprocess.Popen[bytes], asyncio.Task[int]] = {}
        self._descriptors = descriptors
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = asyncio.Event()
        self._started = 0.0

    async def run(self) -> None:
        """Keep the service running until `stop`. Raises Problem where it ends before it was ever ready."""
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            self._started = time.monotonic()
            try:
                ending = _ending(await self._run_once())
            except OSError as error:  # no memory for one more process, or its program is just being replaced
                _log.error("%s can't be started: %s", self.name, error)
                ending = "it could not be started"
            if self._stopping.is_set():
                return
            if self._restarting:
                self._restarting = False
                continue
            if not self.ready.is_set():
                raise Problem(
                    "unavailable", f"The {self.name} service did not start; its reason stands above."
                )
            lived = time.monotonic() - self._started
            if lived > _HEALTHY_AFTER:
                pause = _FIRST_PAUSE
            rest = max(_FIRST_PAUSE, pause - lived)  # a pause is from start to start
            _log.error("%s has died (%s); starting it again in %.1f s", self.name, ending, rest)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), rest)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _run_once(self) -> int:
        """Start the process, and return its exit code once it has ended, or 0 when it gets a successor.

        Raises OSError.
        """
        self._serves.clear()
        self._succeeded.clear()
        self._process = None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                process = self._process = self._start(theirs.fileno())
        except OSError:
            ours.close()
            raise
        ending = asyncio.create_task(self._follow(process, ours), name=f"{self.name} ends")
        succeeded = asyncio.create_task(self._succeeded.wait())
        try:
            await asyncio.wait((ending, succeeded), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            ending.cancel()  # its lifeline ends with that
            raise
        finally:
            succeeded.cancel()
        if ending.done():
            return ending.result()
        self._leaving[process] = ending
        ending.add_done_callback(lambda _: self._leaving.pop(process))
        return 0

    async def _follow(self, process: "subprocess.Popen[bytes]", lifeline: socket.socket) -> int:
        """Take note when the process serves, and return its exit code once it has ended."""
        with lifeline:
            descriptor = os.pidfd_open(process.pid)
            becoming = self._wait_for_ready(process, lifeline)
            waiting = asyncio.create_task(becoming, name=f"{self.name} becomes ready")
            try:
                await readable_once(descriptor)
            finally:
                waiting.cancel()
                os.close(descriptor)
        return process.wait()

    def _start(self, lifeline: int) -> "subprocess.Popen[bytes]":
        handed = {"lifeline": lifeline, **self._descriptors}
        if self._number is not None:
            handed["number"] = self._number
        flags = [word for flag, number in handed.items() for word in (f"--{flag}", str(number))]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.main", self.command, *flags],
            env=self._environment,
            pass_fds=(lifeline, *self._descriptors.values()),
            stdin=subprocess.DEVNULL,
            stdout=2,  # stdout is for the one line that tells that the platform is ready
            start_new_session=True,  # Ctrl-C is for `up`, which stops the services in order
        )

    async def _wait_for_ready(self, process: "subprocess.Popen[bytes]", lifeline: socket.socket) -> None:
        if await asyncio.get_running_loop().sock_recv(lifeline, 1) == READY:
            self.ready.set()
            if process is self._process:
                self._serves.set()
            for former in takewhile(lambda each: each is not process, self._leaving):
                _signal(former, signal.SIGTERM)
            _log.info("%s is ready after %.2f s", self.name, time.monotonic() - self._started)

    async def restart(self, within: float, number: signal.Signals = signal.SIGTERM) -> None:
        """End the process by a signal, have a new one, and wait until that serves. Raises TimeoutError."""
        self._restarting = True
        if not _signal(self._process, number):
            self._restarting = False  # it has just died, and is started anew in any case
        self._serves.clear()
        async with asyncio.timeout(within):
            await self._serves.wait()

    async def succeed(self, within: float) -> None:
        """Have a new process serve beside the present one, which ends then, also if that is later.

        Raises TimeoutError.
        """
        self._serves.clear()
        if self._process is not None and self._process.poll() is None:
            self._restarting = True
            self._succeeded.set()  # else it has just died, and is started anew in any case
        async with asyncio.timeout(within):
            await self._serves.wait()

    async def stop(self) -> None:
        """Tell the service to stop, and wait until all its processes have ended."""
        self._stopping.set()
        await asyncio.gather(*(self._stop(process) for process in (self._process, *self._leaving)))

    async def _stop(self, process: "subprocess.Popen[bytes] | None") -> None:
        if process is None or not _signal(process, signal.SIGTERM):
            return
        descriptor = os.pidfd_open(process.pid)
        try:
            async with asyncio.timeout(STOP_WITHIN):
                await readable_once(descriptor)
        except TimeoutError:
            _log.error("%s did not stop within %d s and is killed", self.name, STOP_WITHIN)
            _signal(process, signal.SIGKILL)
        finally:
            os.close(descriptor)

    def kill(self) -> None:
        """End its processes at once."""
        self._stopping.set()
        for process in (self._process, *self._leaving):
            _signal(process, signal.SIGKILL)


class Supervisor:
    """The services together."""

    def __init__(self, services: list[Service]) -> None:
        """`services` stand in the order of starting; they stop in the opposite one, a kind at once."""
        self._services = services

    async def run(self, stopping: asyncio.Event, start_within: float, serving: Callable[[], None]) -> None:
        """Start all, call `serving` in a thread when all are ready, wait for `stopping`, stop all.

        Raises Problem where a service does not start; nothing runs any more then.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for service in self._services:
                    group.create_task(service.run(), name=service.name)
                try:
                    await self._live(stopping, start_within, serving)
                finally:
                    for _, kind in groupby(reversed(self._services), lambda service: service.command):
                        await asyncio.gather(*(service.stop() for service in kind))
        except ExceptionGroup as group_of_one:
            raise group_of_one.exceptions[0] from None

    async def _live(self, stopping: asyncio.Event, start_within: float, serving: Callable[[], None]) -> None:
        told = asyncio.create_task(stopping.wait(), name="wait for a signal")
        starting = asyncio.create_task(self._start(start_within, serving), name="start")
        try:
            done, _ = await asyncio.wait((told, starting), return_when=asyncio.FIRST_COMPLETED)
            if starting in done:
                starting.result()
            await told
        finally:
            told.cancel()
            starting.cancel()
            await asyncio.gather(told, starting, return_exceptions=True)

    async def _start(self, within: float, serving: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(within):
                for service in self._services:
                    await service.ready.wait()
        except TimeoutError:
            late = ", ".join(service.name for service in self._services if not service.ready.is_set())
            raise Problem(
                "unavailable", f"Not ready after {within:g} s: {late}. See the log above."
            ) from None
        await asyncio.to_thread(serving)

    async def restart(self, command: str, within: float) -> bool:
        """Restart the services of a kind one after the other, each within so many seconds.

        Return whether they serve. A gateway is never the only one and away: others go on, or it does itself
        beside its successor. A function service is killed, as only then its instances outlive it.
        """
        kind = [service for service in self._services if service.command == command]
        for service in kind:
            try:
                if command == "gateway" and len(kind) == 1:
                    await service.succeed(within)
                elif command == "function-service":
                    await service.restart(within, signal.SIGKILL)
                else:
                    await service.restart(within)
            except TimeoutError:
                _log.error("%s does not serve again after %g s", service.name, within)
                return False
        return True

    def kill(self) -> None:
        """Kill all services at once: what a second signal asks for."""
        for service in self._services:
            service.kill()


def _signal(process: "subprocess.Popen[bytes] | None", number: signal.Signals) -> bool:
    """Send a signal; False where there is no process any more."""
    if process is None or process.poll() is not None:
        return False
    process.send_signal(number)
    return True


def _ending(code: int) -> str:
    """Tell in words how a process ended."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
