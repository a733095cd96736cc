"""A control group in which limits can be set, for this very process: one of systemd's, or of a container's.

A login shell sits in session-N.scope, which systemd keeps to itself, and so does what it starts. So `up`,
and `doctor` which tells what `up` would get, ask for a scope of their own with Delegate=yes and are moved
into it: the call that systemd-run makes for a program that it starts, here for one that runs already.
Standard output, signals and the terminal stay as they are.

A container has a group of its own, which has to be made writable only.

Where neither is possible nothing happens, and the guarantees tell.
"""

import logging
import os
import subprocess
import time
from pathlib import Path
from typing import Final

from function_service.engines.embedded import cgroup
from pilotlight.settings import inherited

_log = logging.getLogger(__name__)

_WITHIN: Final = 10.0
# What busctl needs. It would tell NOTIFY_SOCKET of its own end, where `up` is to say that it serves
_BUS: Final = ("PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS")
_SYSTEMD: Final = Path("/run/systemd/system")  # is there when systemd is process 1, sd_booted(3)


def request() -> None:
    """Open the group of a container; under systemd, move into a delegated scope, if this is not yet one."""
    cgroup.open_own()
    if not _SYSTEMD.is_dir() or cgroup.own_group() is None or cgroup.delegated_base() is not None:
        return
    pid = str(os.getpid())
    scope = f"pilotlight-{pid}.scope"
    manager = "--system" if os.geteuid() == 0 else "--user"
    # StartTransientUnit(name, mode, properties, auxiliary units), org.freedesktop.systemd1(5)
    properties = ["3", "Description", "s", "Pilotlight", "PIDs", "au", "1", pid, "Delegate", "b", "true"]
    command = [
        *("busctl", manager, "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"),
        *("org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"),
        *(scope, "fail", *properties, "0"),
    ]
    try:
        asked = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=_WITHIN,
            stdin=subprocess.DEVNULL,
            env=inherited(*_BUS),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("systemd could not be asked for a control group: %s", error)
        return
    if asked.returncode != 0:
        _log.warning("systemd gave no control group: %s", asked.stderr.strip())
        return
    _wait_until_in(scope)


def _wait_until_in(scope: str) -> None:
    """Wait for the end of what StartTransientUnit began."""
    deadline = time.monotonic() + _WITHIN
    while (group := cgroup.own_group()) is None or group.name != scope:
        if time.monotonic() > deadline:
            _log.warning("systemd did not move this process into its control group within %g s", _WITHIN)
            return
        time.sleep(0.005)
