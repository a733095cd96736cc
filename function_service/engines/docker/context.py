"""What dockerd gets to build from: the files of a function's folder, without what .dockerignore names.

The folder is the builder's, of a stranger's commit. No link in it is followed here, and what belongs to
anybody else than the folder does, as a hard link could, is refused.
"""

import fnmatch
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import IO, Final

from function_service.engines.docker import dockerfile
from pilotlight import trees
from pilotlight.problems import Problem

DOCKERFILE: Final = "Dockerfile"
WRITTEN: Final = ".pilotlight.dockerfile"
"""The name under which dockerd gets the Dockerfile that we wrote; it can't be copied into an image."""

_IGNORE: Final = ".dockerignore"
_LONGEST: Final = 256 << 10  # bytes of a Dockerfile, or of a .dockerignore
_MOST: Final = 200  # patterns


class Ignored:
    """What .dockerignore says: the last pattern counts that fits a path, or a folder above it."""

    def __init__(self, text: str) -> None:
        """Raises Problem `build-failed`."""
        lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
        wanted = [line for line in lines if line and not line.startswith("#")]
        if len(wanted) > _MOST:
            raise Problem("build-failed", f"{_IGNORE} has more than {_MOST} patterns. Join some of them.")
        self._patterns = [(line.startswith("!"), _parts(line.removeprefix("!"))) for line in wanted]

    def __contains__(self, path: tuple[str, ...]) -> bool:
        ignored = False
        for excepted, parts in self._patterns:
            if parts and _fits(parts, path):
                ignored = not excepted
        return ignored


def _parts(pattern: str) -> list[str]:
    parts = os.path.normpath(pattern.strip().lstrip("/")).split("/")
    return [] if parts in (["."], [""]) else [part.replace("[^", "[!") for part in parts]


def _fits(pattern: list[str], path: tuple[str, ...]) -> bool:
    """Tell whether a pattern fits a path or a folder above; `**` stands for any number of folders.

    All ways through the pattern are walked at once, so that no pattern takes long.
    """
    states = _closure(pattern, {0})
    for name in path:
        reached = set()
        for state in states:
            if state < len(pattern) and pattern[state] == "**":
                reached.add(state)
            elif state < len(pattern) and fnmatch.fnmatchcase(name, pattern[state]):
                reached.add(state + 1)
        states = _closure(pattern, reached)
        if len(pattern) in states:
            return True
    return False


def _closure(pattern: list[str], states: set[int]) -> set[int]:
    """Add the states that are reached without a name: what follows `**`."""
    found = set(states)
    for state in sorted(states):
        following = state
        while following < len(pattern) and pattern[following] == "**":
            following += 1
            found.add(following)
    return found


def text(folder: Path, name: str, absent: str | None = None) -> str:
    """Return what a file at the top of a folder says; `absent` where there is none.

    Raises Problem `build-failed`.
    """
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if absent is not None and isinstance(error, FileNotFoundError):
            return absent
        raise Problem("build-failed", f"{name} can't be read: it has to be a file, and no link.") from error
    with os.fdopen(descriptor, "rb") as file:
        _judge(os.fstat(descriptor), folder.lstat().st_uid, name)
        content = file.read(_LONGEST + 1)
    if len(content) > _LONGEST:
        raise Problem("build-failed", f"{name} is longer than {_LONGEST >> 10} KB.")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Problem("build-failed", f"{name} is not UTF-8; save it as that.") from None


def recipe(folder: Path) -> dockerfile.Recipe:
    """Read and judge the Dockerfile of a folder. Raises Problem `build-failed`."""
    try:
        return dockerfile.read(text(folder, DOCKERFILE))
    except dockerfile.Mistaken as mistake:
        raise Problem("build-failed", f"{DOCKERFILE}: {mistake}") from mistake


def pack(folder: Path, written: str, into: IO[bytes]) -> None:
    """Write the folder as tar, with a Dockerfile that says `written`. Raises Problem, OSError."""
    owner = folder.lstat().st_uid
    ignored = Ignored(text(folder, _IGNORE, absent=""))
    with tarfile.open(fileobj=into, mode="w") as tar:
        for directory, path, names in trees.walk(folder):
            for name in sorted(names):
                shown = (*path, name)
                if shown not in ignored and shown not in ((WRITTEN,), (_IGNORE,)):
                    _add(tar, directory, name, "/".join(shown), owner)
        # dockerd itself takes away what this names, before anything is copied
        for name, content in ((_IGNORE, f"{_IGNORE}\n{WRITTEN}\n"), (WRITTEN, written)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content.encode())
            tar.addfile(entry, io.BytesIO(content.encode()))
    into.seek(0)


def _add(tar: tarfile.TarFile, directory: int, name: str, shown: str, owner: int) -> None:
    """Add one entry of a folder, held by its descriptor, as root's. Raises Problem, OSError."""
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    entry = tarfile.TarInfo(shown)
    entry.mode = 0o755 if stat.S_ISDIR(status.st_mode) or status.st_mode & 0o111 else 0o644
    if stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=directory)
        tar.addfile(entry)
    elif stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    else:
        # It may be another one by now; what is opened is what is judged
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, dir_fd=directory), "rb") as file:
            held = os.fstat(file.fileno())
            _judge(held, owner, shown)
            entry.size = held.st_size
            tar.addfile(entry, file)


def _judge(status: os.stat_result, owner: int, shown: str) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
        raise Problem("build-failed", f"{shown} is not a file of this function's own. Put a copy there.")
