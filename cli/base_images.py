"""Base images of the Debian packages that this machine gets, by mmdebstrap: no registry is needed."""

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pilotlight.problems import Problem

PACKAGES: Final = {
    "native": ("ca-certificates",),
    "python": ("ca-certificates", "python3"),
    "node": ("ca-certificates", "nodejs", "npm"),
}
"""What the base image of each runtime has, beyond the least that Debian is."""

_SOURCES: Final = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))
_LEFT_OUT: Final = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
_WITHIN: Final = 1800.0  # seconds


def make(runtime: str, suite: str, packages: Sequence[str], tar: Path) -> None:
    """Write a root file system as tar; what mmdebstrap says goes to stderr. Raises Problem."""
    if shutil.which("mmdebstrap") is None:
        raise Problem(
            "unavailable",
            "Base images are made of Debian's packages by mmdebstrap, which is not installed: "
            "apt-get install mmdebstrap. Or begin with an image of a registry: --from python:3.12-slim",
        )
    wanted = ",".join((*PACKAGES[runtime], *packages))
    command = ["mmdebstrap", "--variant=minbase", "--format=tar", f"--include={wanted}"]
    command += [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    command += [suite or _suite(), str(tar), *map(str, _sources())]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        raise Problem("unavailable", f"mmdebstrap was not done after {_WITHIN:g} s.") from None
    if done.returncode:
        raise Problem(
            "unavailable",
            f"mmdebstrap failed (exit code {done.returncode}); what it said stands above. It gets its "
            "packages where this machine's apt does: `apt-get update` shows whether that is in reach.",
        )


def _suite() -> str:
    """Return the name of this machine's Debian. Raises Problem."""
    try:
        name = platform.freedesktop_os_release().get("VERSION_CODENAME")
    except OSError:
        name = None
    if not name:
        raise Problem(
            "invalid-request", "This machine is no Debian. Name one whose packages it gets: --suite bookworm"
        )
    return name


def _sources() -> list[Path]:
    """Return the files that say where this machine's packages come from."""
    single, folder = _SOURCES
    found = [single] if single.is_file() and single.read_text().strip() else []
    return found + sorted(path for path in folder.glob("*") if path.suffix in (".list", ".sources"))
