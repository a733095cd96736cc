"""Interpreters outside of the system's folders: what version managers, and people by hand, have installed.

Nothing is run here, since most of what is found is never used: the files tell enough. An installation is
taken if sandboxes, which have users of their own, can use it where it lies: its folder is mounted for them.
"""

import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

_OTHERS_MAY_READ, _OTHERS_MAY_ENTER = 0o004, 0o005
_ELF64 = b"\x7fELF\x02\x01"  # of 64 bits, the low byte first, as all machines are that we run on
_LOADER = 3  # PT_INTERP, elf(5): the segment that holds the path of the loader
_SYSTEM = "/usr"
# What sandboxes have of their own there, and what is gone after the next start of the machine
_COVERED = (
    *("/build", "/dependencies", "/dev", "/function", "/proc", "/run", "/runtime", "/source", "/sys", "/tmp"),  # noqa: S108
    *("/tools", "/var/tmp"),  # noqa: S108
)


def installed(name: re.Pattern[str], places: Iterable[str]) -> Iterator[tuple[Path, Path]]:
    """Yield the real path and the prefix of each program `name` in PATH and in `places`, in this order.

    `places` are patterns of folders; of those that match one pattern, the highest version comes first. What
    is linked to a program of another name, scripts, and what lies in the system's own folders are left out.
    """
    # The environment is read here, as no caller has anything to do with it
    folders = [Path(folder) for folder in os.get_exec_path() if folder.startswith("/")]
    for place in places:
        top, pattern = (_home(), place[2:]) if place.startswith("~/") else (Path("/"), place[1:])
        folders += sorted(_matching(top, pattern) if top else (), key=_by_version, reverse=True)
    found: set[Path] = set()
    for folder in folders:
        for path in _programs(folder, name):
            if path not in found:
                found.add(path)
                yield path, path.parent.parent


def usable(executable: Path, prefix: Path, library: Path) -> bool:
    """Tell whether a sandbox can run the executable. `library` is a file that the installation must have."""
    try:
        return (
            executable.parent == prefix / "bin"
            and _may_be_shown(prefix)
            and all(
                path.stat().st_mode & _OTHERS_MAY_ENTER == _OTHERS_MAY_ENTER
                for path in (prefix, executable.parent, executable, *_between(prefix, library))
            )
            and bool(library.stat().st_mode & _OTHERS_MAY_READ)
            and _is_for_this_system(executable)
        )
    except (OSError, ValueError):  # the latter where it names a place that no file has
        return False


def folder_of(prefix: Path) -> str | None:
    """Return what must be mounted for an installation; None where it is the system's and there anyway."""
    return None if prefix.is_relative_to(_SYSTEM) else str(prefix)


def _home() -> Path | None:
    try:
        return Path.home().resolve()
    except RuntimeError:
        return None  # this user has none


def _matching(top: Path, pattern: str) -> list[Path]:
    try:
        return list(top.glob(pattern))
    except OSError:
        return []  # somebody else's home


def _by_version(path: Path) -> list[tuple[int, str]]:
    """Order 3.12.10 after 3.12.9."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", str(path))]


def _programs(folder: Path, name: re.Pattern[str]) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return  # PATH may name what is not there, or what this user must not see
    for entry in entries:
        if name.fullmatch(entry.name):
            path = entry.resolve()
            if name.fullmatch(path.name):
                yield path


def _may_be_shown(prefix: Path) -> bool:
    """Tell whether functions may see all that is below prefix: no home, and nothing as wide as /opt."""
    if len(prefix.parts) <= 2:
        return False
    home = _home()
    covered = any(prefix.is_relative_to(place) for place in _COVERED)
    return not covered and (home is None or not home.is_relative_to(prefix))


def _between(prefix: Path, library: Path) -> list[Path]:
    """Return the folders on the way from prefix to a file below it."""
    return [parent for parent in library.parents if parent != prefix and parent.is_relative_to(prefix)]


def _is_for_this_system(executable: Path) -> bool:
    """Tell a program whose loader is the system's from a script, and from one of another system (Nix)."""
    loader = loader_of(executable)
    return loader is not None and loader.exists() and loader.parts[1].startswith(("lib", "usr"))


def loader_of(executable: Path) -> Path | None:
    """Return the loader that a program names, elf(5); None for what is no program, or names none."""
    with executable.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or not head.startswith(_ELF64):
            return None
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        if size < 56:
            return None
        file.seek(table)
        entries = file.read(size * count)
        for start in range(0, len(entries) - 55, size):
            kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", entries, start)
            if kind == _LOADER:
                file.seek(offset)
                path = Path(os.fsdecode(file.read(min(length, 4096)).rstrip(b"\0")))
                return path if path.is_absolute() and len(path.parts) > 2 else None
    return None
