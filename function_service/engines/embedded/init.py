"""Process 1 of a sandbox whose function is a program of its own: it boots, attaches, relays, reaps.

Node waits booted (its shim speaks runtimes/contract.md on descriptors 3 and 4). A native program becomes
what a child, forked and confined ahead of time, has waited for: its code is there then. It serves HTTP on
$PORT, and is reached through a relay here, because its network namespace has no other door. A build is a
program that ends.

Standard library only. `confine` gives up privileges: each child calls it before it waits, and this process
once the code is mounted, before any of it runs.
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
    """A shim that waits for its function, or a child that waits for what it shall become."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control
        self._lines = control.makefile("rb")

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message. Raises OSError when nobody is there."""
        self._control.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any] | None:
        """Return the next message; None when the shim is gone."""
        line = self._lines.readline(65536)
        answer = json.loads(line) if line else None
        return answer if isinstance(answer, dict) else None


def boot(command: list[str] | None, listener_fd: int, confine: Callable[[], None]) -> Booted:
    """Start the shim and wait until it has booted; for a runtime without one, fork a child that waits.

    Raises OSError.
    """
    mine, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        mine.close()
        if command is None:
            _become_what_comes(theirs, confine)
        else:
            env = {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}  # noqa: S108
            _become(command, env, confine, (listener_fd, theirs.fileno()))
    theirs.close()
    booted = Booted(pid, mine)
    if command is not None and (answer := booted.hear()) != {"booted": True}:
        raise OSError(f"{command[0]} did not boot: {answer}")
    return booted


def run(
    control: socket.socket,
    listener_fd: int,
    attachment: dict[str, Any],
    booted: Booted,
    confine: Callable[[], None],
    door: int | None,
) -> None:
    """Start what was attached, say when it is ready, and stay until it ends, with its exit code.

    `door` is a listener for debuggers.
    """
    confine()
    if "command" not in attachment:
        names = ("folder", "handler", "concurrency", "env", "debug")
        if door is not None:
            relay.begin(door, ("127.0.0.1", attachment["debug"]))
        booted.tell({name: attachment[name] for name in names if name in attachment})
        answer = booted.hear()
        if answer is None:
            _end_like(booted.pid)
        messages.send(control, {"ready": True} if answer == {"ready": True} else {"error": _error_of(answer)})
        control.close()
        os.close(listener_fd)
        _end_like(booted.pid)
    booted.tell({name: attachment[name] for name in ("folder", "command", "env")})
    if not attachment["serves"]:
        messages.send(control, {"ready": True})
        _end_like(booted.pid)
    connection = _wait_for_port(booted.pid)
    if connection is None:
        _end_like(booted.pid)
    messages.send(control, {"ready": True})
    control.close()
    relay.serve(socket.socket(fileno=listener_fd), ("127.0.0.1", PORT), lambda: _reap(booted.pid), connection)


def _error_of(answer: dict[str, Any] | None) -> str:
    return str((answer or {}).get("error", answer))[-32768:]


def _become_what_comes(control: socket.socket, confine: Callable[[], None]) -> None:
    """In a forked child: give up privileges, and become the command that comes; never returns."""
    try:
        confine()
        line = control.makefile("rb").readline()
        if line:
            message = json.loads(line)
            os.chdir(message["folder"])
            _become(message["command"], message["env"], lambda: None, ())
    except OSError as error:
        os.write(2, f"The sandbox's program can't be started: {error.strerror}\n".encode())
    finally:
        os._exit(126)


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
            exit_with(status)


def _end_like(main: int) -> None:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == main:
            exit_with(status)


def exit_with(status: int) -> None:
    """End this process as the one ended whose wait status this is; never returns."""
    # Process 1 can't be killed by a signal from within, so it says 128 + N as a shell does
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
