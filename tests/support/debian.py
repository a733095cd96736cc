"""The packages that this machine has installed, as a root file system of their own: no mirror is needed."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_LEFT_OUT = ("/usr/share/doc/", "/usr/share/info/", "/usr/share/locale/", "/usr/share/man/")
_MADE = (
    "/etc/alternatives",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/passwd",
    "/etc/ssl/certs",
    "/var/lib/dpkg",
)
"""What packages need, and make themselves when they are installed."""
_EMPTY = ("/root", "/run", "/tmp", "/usr/local/bin", "/var/tmp")


def pack(packages: tuple[str, ...], tar: Path) -> None:
    """Write the files of packages, and of those that they depend on, as tar."""
    names = "\0".join(sorted({*_with_links(_files(_closure(packages)))})).encode()
    command = ["tar", "--create", "--file", str(tar), "--directory=/", "--no-recursion", "--null"]
    command += ["--verbatim-files-from", "--files-from=-"]
    subprocess.run(command, input=names, check=True)


def _closure(packages: tuple[str, ...]) -> list[str]:
    leave = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    command = ["apt-cache", "depends", "--recurse", "--installed", *(f"--no-{each}" for each in leave)]
    told = subprocess.run([*command, *packages], capture_output=True, text=True, check=True).stdout
    return [line for line in told.splitlines() if line and not line.startswith((" ", "<", "|"))]


def _files(packages: list[str]) -> set[Path]:
    told = subprocess.run(
        ["dpkg-query", "--listfiles", *packages], capture_output=True, text=True, check=True
    ).stdout
    listed = {Path(line) for line in told.splitlines() if line.startswith("/")}
    made = {
        Path(at, name) for top in _MADE for at, folders, files in os.walk(top) for name in (*folders, *files)
    }
    return {
        path
        for path in listed | made | {*map(Path, (*_MADE, *_EMPTY))}
        if not str(path).startswith(_LEFT_OUT)
    }


def _with_links(paths: set[Path]) -> Iterator[str]:
    """Yield each path where it really is, and the links among the folders that lead there."""
    for path in paths:
        if not os.path.lexists(path):
            continue  # it was left out when the package was installed
        folder = path.parent
        while folder != folder.parent:
            if folder.is_symlink():
                yield str(folder)[1:]
            folder = folder.parent
        yield str(path.parent.resolve() / path.name)[1:] or "."
