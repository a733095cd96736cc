"""Process 1 of a sandbox whose function is a program of its own: it boots, attaches, relays, reaps.

Node waits booted (its shim speaks runtimes/contract.md on descriptors 3 and 4). A native program is
started when its code is there, serves HTTP on $PORT, and is reached through a relay here, because its network
namespace has no other door. A build is a program that ends.

Standard library only. `confine` gives up privileges; it is called in each child before it runs, and here
once the code is mounted.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from function_service.engines.embedded import messages, relay

PORT = 8080
_PAUSE, _LONGEST_PAUSE = 0.0002, 0.02  # seconds between looks whether a program listens
_SHIM_LISTENER, _SHIM_CONTROL = 3, 4


class Booted:
    """A shim that waits for its function."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control
        self._lines = control.makefile("rb")

    def ask(self, message: dict[str, Any] | None) -> dict[str, Any] | None:
        """Send a message, if any, and return the next one; None when the shim is gone."""
        if message is not None:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        line = self._lines.readline(65536)
        answer = json.loads(line) if line else None
        return answer if isinstance(answer, dict) else None


def boot(command: list[str] | None, listener_fd: int, confine: Callable[[], None]) -> Booted | None:
    """Start the shim, if this runtime has one, and wait until it has booted. Raises OSError."""
    if command is None:
        return None
    mine, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _become(command, {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}, confine, (listener_fd, theirs.fileno()))  # noqa: S108
    theirs.close()
    booted = Booted(pid, mine)
    answer = booted.ask(None)
    if answer != {"booted": True}:
        raise OSError(f"{command[0]} did not boot: {answer}")
    return booted


def run(
    control: socket.socket,
    listener_fd: int,
    attachment: dict[str, Any],
    booted: Booted | None,
    confine: Callable[[], None],
) -> None:
    """Start what was attached, say when it is ready, and stay until it ends, with its exit code."""
    if booted is not None:
        confine()
        names = ("folder", "handler", "concurrency", "env")
        answer = booted.ask({name: attachment[name] for name in names})
        if answer is None:
            _end_like(booted.pid)
        messages.send(control, {"ready": True} if answer == {"ready": True} else {"error": _error_of(answer)})
        control.close()
        os.close(listener_fd)
        _end_like(booted.pid)
    serves = attachment["serves"]
    pid = os.fork()
    if pid == 0:
        os.close(listener_fd)
        _become(attachment["command"], attachment["env"], confine, ())
    confine()
    if not serves:
        messages.send(control, {"ready": True})
        _end_like(pid)
    connection = _wait_for_port(pid)
    if connection is None:
        _end_like(pid)
    messages.send(control, {"ready": True})
    control.close()
    relay.serve(socket.socket(fileno=listener_fd), ("127.0.0.1", PORT), lambda: _reap(pid), connection)


def _error_of(answer: dict[str, Any] | None) -> str:
    return str((answer or {}).get("error", answer))[-32768:]


def _become(
    command: list[str], env: dict[str, str], confine: Callable[[], None], pass_on: tuple[int, ...]
) -> None:
    """In a forked child: give up privileges and become the command; never returns."""
    code = 126
    try:
        for source, target in zip(pass_on, (_SHIM_LISTENER, _SHIM_CONTROL)):
            os.dup2(os.dup(source), target + 100)
        for target in range(_SHIM_LISTENER, _SHIM_LISTENER + len(pass_on)):
            os.dup2(target + 100, target)
        os.closerange(_SHIM_LISTENER + len(pass_on), 256)
        confine()
        os.execvpe(command[0], command, env)  # noqa: S606  the function's own program
    except OSError as error:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        os.write(2, f"{command[0]} can't be run: {error.strerror}\n".encode())
    finally:
        os._exit(code)


def _wait_for_port(pid: int) -> socket.socket | None:
    """Wait until the program listens on its port; return the first connection, or None when it ended before.

    Nothing tells when another process begins to listen. So this looks again and again, and the later the
    less often: what is lost by that stays below a thirtieth of the program's own start.
    """
    began = time.monotonic()
    while True:
        probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            return probe
        probe.close()
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return None
        time.sleep(min(max(_PAUSE, (time.monotonic() - began) / 30), _LONGEST_PAUSE))


def _reap(main: int) -> None:
    """Take in what has ended; end with the main program."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == main:
            _exit_with(status)


def _end_like(main: int) -> None:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == main:
            _exit_with(status)


def _exit_with(status: int) -> None:
    # Process 1 can't be killed by a signal from within, so it says 128 + N as a shell does
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
