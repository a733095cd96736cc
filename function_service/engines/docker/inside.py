"""Process 1 of a container, from its start until a function serves: the counterpart of embedded/sandbox.py.

It connects to the engine by a socket in the folder that is shown to it at /run, boots its runtime, and waits
blank. What Docker leaves open is then closed from outside, and code is mounted from there (entering.py); this
process never has a privilege. The messages, and what is made of them, are those of the embedded engine.

There are three kinds: `fork` (Python: this very process becomes the instance), `exec` (other runtimes and
builds: this process stays as a small init, see embedded/init.py) and `shell` (see embedded/shell.py).

Standard library only: it runs under the interpreter of the function. In a foreign image (guest.py) it runs
under one of the host, which is taken away before the first message comes: nothing can be imported after that.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import socket
import sys
import time
import warnings  # noqa: F401  os.execvpe wants it, and in a foreign image there is no Python of ours any more
from typing import Any

from function_service.engines.embedded import init, messages, relay, seccomp, shell, syscalls
from function_service.engines.embedded.sandbox import DATA_PORT, EGRESS_PORT

CONTROL = "/run/control.sock"
_FILTER = seccomp.prepare(seccomp.program(os.uname().machine))
_REHEARSED = {f"PILOTLIGHT_{number}": "x" * 40 for number in range(12)}


def main() -> None:
    """Be process 1 of a container that has this kernel."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.connect(CONTROL)
    live(control)


def live(control: socket.socket) -> None:
    """Be one sandbox, from blank to its end, for whoever is at the other end of the channel."""
    try:
        _live(control)
    except EOFError:
        raise SystemExit(0) from None  # the function service has closed the channel: nobody wants this one


def _live(control: socket.socket) -> None:
    order, (listener_fd, output_fd) = messages.receive(control)
    _settle(output_fd)
    began = time.monotonic()
    booted = shim = None
    if order["kind"] == "exec":
        booted = init.boot(order["boot"], listener_fd, seal)
    elif order["kind"] == "fork":
        shim = _boot(order["shim"], rehearse=order["rehearse"])
    with socket.create_server(("127.0.0.1", DATA_PORT), backlog=128) as data_listener:
        runtime = (time.monotonic() - began) * 1000
        messages.send(control, {"blank": True, "runtime": runtime}, [data_listener.fileno()])
    attachment, received = messages.receive(control)
    if attachment["egress"]:
        with socket.create_server(("127.0.0.1", EGRESS_PORT), backlog=128) as listener:
            messages.send(control, {"egress": True}, [listener.fileno()])
    _enter(attachment["folder"])
    door = received[-1] if "debug" in attachment else None
    if booted is not None:
        init.run(control, listener_fd, attachment, booted, seal, door)
    elif shim is None:
        shell.run(control, listener_fd, attachment, seal)
    else:
        _become(control, listener_fd, attachment, shim, door)


def _enter(folder: str) -> None:
    """Make a folder the working folder; one of an image may be for its own users only."""
    try:
        os.chdir(folder)
    except OSError as error:
        os.write(2, f"The working folder {folder} can't be entered: {error.strerror}\n".encode())
        raise SystemExit(1) from None


def _settle(output_fd: int) -> None:
    """Print where the engine reads, and open nothing else."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.close(output_fd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), min(hard, 4096)))
    os.umask(0o022)
    # A program of the same user has no business in here; it is undone where this process becomes the function
    syscalls.set_dumpable(False)


def _boot(folder: str, *, rehearse: bool) -> Any:
    """Load the shim of a language that lives in this process, with all that functions commonly import."""
    sys.path.insert(0, folder)
    shim = importlib.import_module("pilotlight_shim")
    sys.path.remove(folder)
    shim.preload()
    for path in list(sys.path):
        if not path.startswith(sys.base_prefix):
            sys.path.remove(path)
    gc.collect()
    gc.freeze()
    if rehearse:
        shim.rehearse("/tmp")  # noqa: S108  the container's own
        os.environ.update(_REHEARSED)
    return shim


def _become(
    control: socket.socket, listener_fd: int, attachment: dict[str, Any], shim: Any, door: int | None
) -> None:
    """Become the function; returns when it ends."""
    seal()
    syscalls.set_dumpable(True)  # so that the function can look into itself
    os.environ.clear()
    os.environ.update(attachment["env"])
    sys.path[:0] = ["/function", "/dependencies"]
    if door is not None:
        relay.begin(door, ("127.0.0.1", attachment["debug"]))
    listener = socket.socket(fileno=listener_fd)
    try:
        if door is not None:
            shim.debug(attachment["debug"])
        application = shim.load(attachment["handler"])
    except shim.LoadError as error:
        messages.send(control, {"error": str(error)[-32768:]})
        raise SystemExit(1) from None
    messages.send(control, {"ready": True})
    control.close()
    shim.serve(listener, application, attachment["concurrency"])


def seal() -> None:
    """Close our filter of system calls, on top of Docker's. After this, code of the function may run."""
    seccomp.install(_FILTER)
