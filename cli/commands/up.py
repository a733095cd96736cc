"""`pilotlight up`: the whole platform on this machine, in the foreground."""

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from cli import client, delegation, listener, notification, output
from cli.client import Platform
from cli.commands import flags
from cli.serve import SERVICES, configure_logging, prepare
from cli.supervisor import Service, Supervisor
from pilotlight import sockets, stores
from pilotlight.datafolder import DataFolder
from pilotlight.machines import Link
from pilotlight.problems import Problem
from pilotlight.settings import Settings, for_services

_log = logging.getLogger(__name__)

_START_WITHIN: Final = 120.0
"""Seconds; a start takes about one, an emulated machine is twenty times slower."""

_ANSWER_WITHIN: Final = 5.0
"""Seconds that the gateway has for one answer before it is asked again."""

_LOAD_WITHIN: Final = 60.0
"""Seconds that the program which is to take over has to be loaded."""

_LET_GO_WITHIN: Final = 5.0
"""Seconds that instances without a function service have to end, once all services have."""

_CLAIM_WITHIN: Final = 25.0
"""Seconds that the services of a platform that was killed may still need to stop (serve.STOP_WITHIN)."""


_RENEWALS: Final = {
    signal.SIGUSR1: ("gateway",),
    signal.SIGUSR2: ("builder", "function-service", "baas", "gateway"),
}
"""Which services restart at which signal, in which order: all but the gateways are away for a moment."""


@click.command(epilog=flags.EPILOG)
@flags.settings
@flags.descriptors("lifeline")
def command(*, lifeline: int | None, **chosen: Any) -> None:
    """Run the platform until SIGINT or SIGTERM. Raises Problem."""
    settings = flags.chosen(chosen)
    configure_logging("up")
    data = DataFolder(settings.data)
    with data.telling_when_full():
        _up(settings, data, lifeline)


def _up(settings: Settings, data: DataFolder, lifeline: int | None) -> None:
    prepare(data)
    claim = _claim(data)
    listener.tls(settings)  # what is wrong with it is told here and once
    port = listener.bind(settings.host, settings.port)
    machines = None if Link.of(settings) is None else listener.bind_for_machines(settings)
    delegation.request()
    _clear(data)
    try:
        asyncio.run(_run(settings, data, port, machines, claim, flags.adopt(lifeline)))
    finally:
        data.platform.unlink(missing_ok=True)
        _clear(data)


async def _run(
    settings: Settings,
    data: DataFolder,
    port: socket.socket,
    machines: socket.socket | None,
    claim: int,
    lifeline: socket.socket | None,
) -> None:
    """Run the services; the end of `lifeline` tells that the program which started this one is gone."""
    environment = for_services(settings)
    private = sockets.listen(data.socket("gateway"))
    gateway = {"claim": claim, "listener": port.fileno(), "private": private.fileno()}
    if machines is not None:
        gateway["machines"] = machines.fileno()
    several = settings.gateways > 1
    gateways = [
        Service("gateway", gateway, environment, number=number, several=several)
        for number in range(1, settings.gateways + 1)
    ]
    # Instances outlive a function service that is killed, and end when the other end, ours, is closed
    ours, anchor = socket.socketpair()
    handed = {name: {"claim": claim} for name in SERVICES if name != "gateway"}
    handed["function-service"]["anchor"] = anchor.fileno()
    others = [Service(name, descriptors, environment) for name, descriptors in handed.items()]
    supervisor = Supervisor([*others, *gateways])
    stopping = asyncio.Event()

    def signalled(number: signal.Signals) -> None:
        if stopping.is_set():
            _log.warning("%s again: killing all services", number.name)
            supervisor.kill()
        else:
            _log.info("%s: stopping; once more kills at once", number.name)
            stopping.set()

    here = listener.url(port, tls=bool(settings.tls_certificate))
    url = settings.public_url or here
    renewing: set[asyncio.Task[None]] = set()

    def renew(number: signal.Signals, *commands: str) -> None:
        if renewing or stopping.is_set():
            _log.warning("%s is ignored: services are being restarted or stopped", number.name)
            return
        _log.info("%s: restarting %s", number.name, ", ".join(commands))
        task = asyncio.create_task(_renew(settings, supervisor, data, url, commands), name="restart services")
        renewing.add(task)
        task.add_done_callback(renewing.discard)

    for number, commands in _RENEWALS.items():
        asyncio.get_running_loop().add_signal_handler(number, renew, number, *commands)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            asyncio.get_running_loop().add_signal_handler(number, signalled, number)
    if lifeline is not None:
        asyncio.get_running_loop().add_reader(lifeline, stopping.set)
    try:
        await supervisor.run(stopping, _START_WITHIN, lambda: _serving(settings, data, here, url, stopping))
    finally:
        for task in renewing:
            task.cancel()
        await asyncio.gather(*renewing, return_exceptions=True)
        anchor.close()
        await _let_go(ours)


async def _let_go(ours: socket.socket) -> None:
    """End what has outlived a function service that was killed, and wait until all of it has ended."""
    with ours:
        ours.setblocking(False)
        ours.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(_LET_GO_WITHIN):
                await asyncio.get_running_loop().sock_recv(ours, 1)  # its end: nobody ever sends anything
        except TimeoutError:
            _log.error("Instances of a function service that was killed do not end")


async def _renew(
    settings: Settings, supervisor: Supervisor, data: DataFolder, url: str, commands: tuple[str, ...]
) -> None:
    """Have new processes take over, which read the program and the certificate's files anew.

    No connection is refused meanwhile, and calls that run go on.
    """
    try:
        listener.tls(settings)
        await _check_program()
    except Problem as problem:
        _log.error("All goes on as it was: %s", problem.detail)
        return
    for command in commands:
        if not await supervisor.restart(command, _START_WITHIN):
            return
    _write_platform_file(settings, data, url, _certificate(settings))
    _log.info("restarted: %s", ", ".join(commands))


async def _check_program() -> None:
    """Raise Problem where the program that is on the disk now can't even be loaded."""
    modules = ", ".join(f"{name.replace('-', '_')}.server" for name in SERVICES)
    tried = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", f"import cli.main, {modules}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_LOAD_WITHIN):
            said = (await tried.communicate())[1].decode(errors="replace")
    except TimeoutError:
        detail = f"the program that is installed now does not load within {_LOAD_WITHIN:g} s."
        raise Problem("unavailable", detail) from None
    finally:
        if tried.returncode is None:
            tried.kill()
            await tried.wait()
    if tried.returncode != 0:
        reason = said.strip().rpartition("\n")[2]
        raise Problem("unavailable", f"the program that is installed now does not start ({reason}).")


def _certificate(settings: Settings) -> str | None:
    """Return the certificate by which the commands on this machine know the platform, if it has one."""
    return Path(settings.tls_certificate).read_text() if settings.tls_certificate else None


def _serving(settings: Settings, data: DataFolder, here: str, url: str, stopping: asyncio.Event) -> None:
    """Tell the world that the platform serves. Raises Problem where it does not."""
    certificate = _certificate(settings)
    platform = Platform(here, data.admin_key.read_text().strip(), certificate)
    guarantees = wait_until_served(platform, stopping)
    _write_platform_file(settings, data, url, certificate)
    print(f"Pilotlight is ready on {url}", flush=True)
    notification.tell(f"READY=1\nSTATUS=Serving {url}")
    for guarantee in guarantees:
        if not guarantee["kept"]:
            why = output.with_remedy(guarantee["reason"], guarantee["remedy"])
            output.note(f"Not guaranteed on this machine: {guarantee['name']}. {why}")


def wait_until_served(platform: Platform, stopping: asyncio.Event) -> list[dict[str, Any]]:
    """Wait until the gateway says that all parts are there, and return the guarantees.

    Raises Problem where that does not come, at once where the certificate is no good or `stopping` is set.
    """
    deadline = time.monotonic() + _START_WITHIN
    while True:
        try:
            # The socket is ours: where the gateway is gone, it connects all the same, and nobody answers
            with platform.request("GET", "/readyz", timeout=_ANSWER_WITHIN) as answer:
                if answer.status == 200:
                    return list(platform.get(client.path("guarantees"))["guarantees"])
                said = answer.read().decode(errors="replace")
        except Problem as problem:  # a service may have died meanwhile, and is started again
            if isinstance(problem.__cause__, ssl.SSLCertVerificationError):
                why = problem.__cause__.verify_message
                raise Problem("unavailable", f"The certificate can't be served with: {why}.") from problem
            said = problem.detail
        if stopping.is_set():
            raise Problem("unavailable", "The platform was stopped before it was ready.")
        if time.monotonic() > deadline:
            raise Problem("unavailable", f"The platform does not get ready ({said}). See the log above.")
        time.sleep(0.01)


def _write_platform_file(settings: Settings, data: DataFolder, url: str, certificate: str | None) -> None:
    fresh = data.root / "platform.json.new"
    told = {
        "url": url,
        "pid": os.getpid(),
        "certificate": certificate,
        "store": stores.shown(settings.store),
    }
    fresh.write_text(json.dumps(told))
    fresh.chmod(0o644)
    fresh.replace(data.platform)


def _claim(data: DataFolder) -> int:
    """Lock the data folder; wait a while where the platform that holds it was killed and is just ending."""
    deadline = time.monotonic() + _CLAIM_WITHIN
    told = False
    while True:
        try:
            return data.lock()
        except Problem as problem:
            if problem.kind != "conflict" or data.holder_lives() or time.monotonic() > deadline:
                raise
            if not told:
                _log.info("waiting for the services of a platform that was killed to end")
                told = True
            time.sleep(0.05)


def _clear(data: DataFolder) -> None:
    """Empty the folder of sockets, unless something that a killed platform mounted is still below it."""
    below = f" {data.run}/"
    if below in Path("/proc/self/mountinfo").read_text():
        _log.warning(
            "%s holds mounts of a platform that was killed; it is left to the function service", data.run
        )
        return
    for entry in data.run.iterdir():
        if entry == data.instances:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for entry in data.instances.iterdir():
        entry.unlink()
