"""A platform of a command's own: started in a process of its own, and ended with the command."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli import listener
from cli.client import Platform
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem
from pilotlight.settings import without_ours

_PORTS: Final = range(8080, 8180)
_STOP_WITHIN: Final = 90.0  # seconds


@dataclass(frozen=True)
class Started:
    """A platform that serves: how to reach it, and what it said."""

    platform: Platform
    line: str  # that tells that it is ready
    notes: list[str]  # what this machine does not let it guarantee
    data: DataFolder


def free_port(whose: str) -> int:
    """Return the first free port, and say so where it is not the usual one. Raises Problem."""
    port = next((number for number in _PORTS if listener.is_free("127.0.0.1", number)), None)
    if port is None:
        raise Problem("conflict", f"No port from {_PORTS[0]} to {_PORTS[-1]} is free.")
    if port != _PORTS[0]:
        print(f"Port {_PORTS[0]} is in use; {whose} takes {port}.")
    return port


def sweep(folders: Iterable[Path]) -> None:
    """Remove folders in which `running` has run a platform, where the command that did so was killed."""
    for folder in folders:
        data = DataFolder(folder / "platform")
        if not (data.root / "lock").exists() or data.root.stat().st_uid != os.geteuid():
            continue  # it is just beginning, or somebody else's
        try:
            os.close(data.lock())
        except Problem:
            continue  # it runs
        shutil.rmtree(folder)


@contextmanager
def running(folder: Path, port: int, *more: str) -> Iterator[Started]:
    """Run a platform with its data and its log in a folder, which goes with it. Raises Problem.

    `more` are further flags of `up`.
    """
    data, log = DataFolder(folder / "platform"), folder / "log"
    data.root.mkdir(parents=True, mode=0o711)
    ours, theirs = socket.socketpair()  # should this process be killed, the platform ends by itself
    with ours, theirs, log.open("w") as errors:
        flags = ("--port", str(port), "--data", str(data.root), "--lifeline", str(theirs.fileno()), *more)
        process = subprocess.Popen(
            (sys.executable, "-P", "-m", "cli.main", "up", *flags),
            stdout=subprocess.PIPE,
            stderr=errors,
            env=without_ours(),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # Ctrl-C is for the command, which stops the platform
            text=True,
        )
        theirs.close()
        try:
            yield _started(process, data, log)
        finally:
            process.terminate()
            process.wait(_STOP_WITHIN)
            shutil.rmtree(folder)


def _started(process: "subprocess.Popen[str]", data: DataFolder, log: Path) -> Started:
    assert process.stdout is not None  # noqa: S101  for mypy: it was asked for
    line = process.stdout.readline().strip()
    if not line:
        raise Problem("unavailable", f"The platform did not start:\n{log.read_text()}")
    notes = [text for text in log.read_text().splitlines() if text.startswith("Not guaranteed")]
    platform = Platform(line.rsplit(" ", 1)[1], data.admin_key.read_text().strip())
    return Started(platform, line, notes, data)
