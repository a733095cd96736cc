"""One service in this process: settings, privileges, signals, then the service's own `serve`.

`up` (see supervisor.py) starts each service as such a process and holds the other end of its lifeline:
a socket on which the service tells that it is ready, and whose end tells the service that `up` is gone,
however it went. A service that is started alone has none.
"""

import asyncio
import importlib
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

from cli import listener
from pilotlight import descriptors, privileges
from pilotlight.datafolder import DataFolder
from pilotlight.machines import Link
from pilotlight.settings import Settings

_log = logging.getLogger(__name__)

SERVICES: Final = ("function-service", "baas", "builder", "gateway")
"""The services, each after those that it relies on; they stop in the opposite order."""

STOP_WITHIN: Final = 20
"""Seconds that a service has for its shutdown before the kernel ends it."""

READY: Final = b"R"


def configure_logging(service: str) -> None:
    """Log to stderr, one line a message: time in UTC, level, service, logger, message."""
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ %(levelname)s {service} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def prepare(data: DataFolder) -> None:
    """Make the data folder, and give the unprivileged services what is theirs. Raises Problem."""
    data.prepare()
    if os.geteuid() != 0:
        return
    for part in (data.documents, data.repositories, data.builds):
        if part.stat().st_uid != privileges.SERVICE_UID:
            _give(part)
    for folder in (data.run, data.instances):
        os.chown(folder, 0, privileges.SERVICE_UID)
        folder.chmod(0o2770)  # sockets that root makes here belong to the group of the services


def _give(folder: Path) -> None:
    os.chown(folder, privileges.SERVICE_UID, privileges.SERVICE_UID)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            os.chown(path, privileges.SERVICE_UID, privileges.SERVICE_UID, follow_symlinks=False)


def run_service(
    service: str,
    settings: Settings,
    *,
    lifeline: socket.socket | None = None,
    port: socket.socket | None = None,
    private: socket.socket | None = None,
    machines: socket.socket | None = None,
    number: int | None = None,
    anchor: socket.socket | None = None,
) -> int:
    """Run one service until it is told to stop, and return the exit code.

    `lifeline` leads to `up`; `port` and `private` are the gateway's listeners where `up` has bound them, for
    several gateways, each with its `number`; `machines` is the one for other
    machines; `anchor` is the function service's, and leads to `up` too.
    Raises Problem.
    """
    configure_logging(service if number is None or settings.gateways == 1 else f"{service}/{number}")
    descriptors.allow_many()
    data = DataFolder(settings.data)
    if lifeline is None:
        prepare(data)
    if service == "gateway" and port is None:
        port = listener.bind(settings.host, settings.port)
    # Imported while the bytecode of a fresh checkout can still be kept: the service's user can't write it
    module = importlib.import_module(f"{service.replace('-', '_')}.server")
    import uvloop

    # What a service must read of this machine while it may: its user can see little of it
    prepared: dict[str, Any] = {"host": module.prepare()} if hasattr(module, "prepare") else {}
    if anchor is not None:
        prepared["anchor"] = anchor
    listening: dict[str, Any] = {}
    if port is not None:
        tls = listener.tls(settings)  # the key's file is mostly root's
        listening = {"listener": port, "private": private, "number": number, "tls": tls}
        if (link := Link.of(settings)) is not None:
            listening |= {"link": link, "machines": machines or listener.bind_for_machines(settings)}
    if service != "function-service":
        privileges.drop(privileges.SERVICE_UID, keep=_kept(service, data))
    with data.telling_when_full(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(module, settings, data, lifeline, prepared | listening))
    return 0


def _kept(service: str, data: DataFolder) -> tuple[Path, ...]:
    """Return the folders that an unprivileged service works in."""
    own = {"baas": (data.documents,), "builder": (data.repositories, data.builds)}
    return (data.run, *own.get(service, ()))


async def _serve(
    module: Any,
    settings: Settings,
    data: DataFolder,
    lifeline: socket.socket | None,
    given: dict[str, Any],
) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        if not stopping.is_set():
            # Whatever hangs during the shutdown: the kernel ends this process (SIGALRM's default action)
            signal.alarm(STOP_WITHIN)
            stopping.set()

    def ready() -> None:
        if lifeline is None:
            _log.info("ready")
        else:
            lifeline.send(READY)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if lifeline is not None:
        lifeline.setblocking(False)
        loop.add_reader(lifeline, _lifeline_ended, loop, lifeline, stop)
    try:
        await module.serve(settings, data, stopping=stopping, ready=ready, **given)
    finally:
        if lifeline is not None:
            loop.remove_reader(lifeline)


def _lifeline_ended(loop: asyncio.AbstractEventLoop, lifeline: socket.socket, stop: Any) -> None:
    """`up` never sends anything, so a readable lifeline is one whose other end is closed."""
    loop.remove_reader(lifeline)
    _log.warning("pilotlight up is gone; stopping")
    stop()
