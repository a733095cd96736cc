"""The files of a commit: read out of the bare repository, judged, and written to a folder.

A repository is what a stranger made, so nothing of it is checked out by git: the listing is judged as
data first, and only regular files and links that stay inside are written.
"""

import hashlib
import os
import subprocess
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from builder.limits import Limits
from builder.links import leaves
from builder.manifest import MANIFEST
from pilotlight.problems import Problem

_LFS = b"version https://git-lfs.github.com/spec/"
_SHOWN = 20  # mistakes of one kind in one message
_MAX_LINK = 4096  # PATH_MAX


@dataclass(frozen=True)
class Commit:
    """Where a commit is read: git's command line with the repository, and its whole environment."""

    git: tuple[str, ...]
    environment: Mapping[str, str]
    id: str


@dataclass(frozen=True)
class Entry:
    """One line of a commit's listing."""

    mode: str
    kind: str
    object: str
    size: int
    path: str


@dataclass(frozen=True)
class Tree:
    """What was written: of each path a digest of content and mode, the links, and the manifest's text."""

    files: Mapping[str, str]
    links: Mapping[str, str]
    manifest: bytes | None

    def digest(self, path: str) -> str:
        """Return a digest of everything under a folder ("." is the root)."""
        total = hashlib.sha256()
        prefix = "" if path == "." else path + "/"
        for name in sorted(self.files):
            if name.startswith(prefix):
                total.update(f"{name[len(prefix) :]}\0{self.files[name]}\n".encode())
        return total.hexdigest()

    def escaping(self, path: str) -> list[str]:
        """Return the links under a folder that lead out of it."""
        prefix = "" if path == "." else path + "/"
        inside = {
            name[len(prefix) :]: to
            for name, to in self.links.items()
            if not prefix or name.startswith(prefix)
        }
        return [f"{prefix}{name}" for name in sorted(inside) if leaves(name, inside)]


def extract(commit: Commit, into: Path, limits: Limits, stop: threading.Event) -> Tree:
    """Write the files of a commit to a new folder and return what they are; for a thread of its own.

    The manifest at the root is returned and not written: no function is made from it.
    Raises Problem `build-failed` for what must not be in a commit, `internal` where git fails; with half
    of the files, or none, once stop is set.
    """
    entries = list(_listing(commit, limits, stop))
    _judge(entries, limits)
    into.mkdir(mode=0o755)
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    manifest = None
    pointers = []
    for entry, content in _contents(commit, entries, stop):
        if entry.path == MANIFEST and entry.mode != "120000":
            manifest = content
            continue
        files[entry.path] = f"{entry.mode} {hashlib.sha256(content).hexdigest()}"
        if entry.mode == "120000":
            links[entry.path] = os.fsdecode(content)
        elif content.startswith(_LFS):
            pointers.append(entry.path)
        else:
            _write(into / entry.path, content, 0o755 if entry.mode == "100755" else 0o644)
    _refuse(pointers, "is a pointer of git-lfs, not the file itself. Commit the file itself")
    _refuse(
        [path for path in links if leaves(path, links)],
        "is a symbolic link that leads out of the repository. Put a copy of its target there",
    )
    for path, target in links.items():  # last, so that no file is written through one
        place = into / path
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        place.symlink_to(target)
    return Tree(files, links, manifest)


def _refuse(paths: list[str], why: str) -> None:
    if paths:
        lines = [f"{path!r} {why}." for path in paths[:_SHOWN]]
        if len(paths) > _SHOWN:
            lines.append(f"The same holds for {len(paths) - _SHOWN} more.")
        raise Problem("build-failed", "\n".join(lines))


def _listing(commit: Commit, limits: Limits, stop: threading.Event) -> Iterator[Entry]:
    command = [*commit.git, "ls-tree", "-r", "-z", "-l", "--full-tree", commit.id]
    with subprocess.Popen(
        command, env=commit.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018  for mypy
        try:
            rest = b""
            count = 0
            while (piece := process.stdout.read(1 << 16)) and not stop.is_set():
                *lines, rest = (rest + piece).split(b"\0")
                count += len(lines)
                if count > limits.files:
                    raise Problem(
                        "build-failed",
                        f"The commit has more than {limits.files} files. Leave out what can be made "
                        "from the rest (dependencies, build results).",
                    )
                for line in lines:
                    yield _entry(line)
            if process.wait() != 0:
                reason = process.stderr.read().decode(errors="replace").strip()
                raise Problem("build-failed", f"The commit {commit.id[:12]} can't be read: {reason}")
        finally:
            process.kill()


def _entry(line: bytes) -> Entry:
    about, _, name = line.partition(b"\t")
    mode, kind, name_of_object, size = about.decode().split()
    try:
        path = name.decode()
    except UnicodeDecodeError:
        raise Problem(
            "build-failed",
            f"The file name {name.decode(errors='backslashreplace')!r} is not UTF-8. Rename it.",
        ) from None
    return Entry(mode, kind, name_of_object, 0 if size == "-" else int(size), path)


def _judge(entries: list[Entry], limits: Limits) -> None:
    """Refuse a listing that must not be written. Raises Problem."""
    _refuse(
        [entry.path for entry in entries if entry.mode == "160000"],
        "is a submodule. Commit its files in its place",
    )
    _refuse(
        [entry.path for entry in entries if entry.mode not in ("100644", "100664", "100755", "120000")],
        "is neither a file nor a symbolic link. Leave it out",
    )
    _refuse(
        [entry.path for entry in entries if not _is_path(entry.path, limits)],
        "has a name that is not safe ('.git' or '..' in it, too long, or hidden characters). Rename it",
    )
    _refuse(
        [entry.path for entry in entries if entry.mode == "120000" and entry.size > _MAX_LINK],
        "is a symbolic link with a target that is too long. Leave it out",
    )
    _refuse(
        [entry.path for entry in entries if entry.size > limits.file],
        f"is larger than {_megabytes(limits.file)}, as large as a file may be. Leave it out",
    )
    total = sum(entry.size for entry in entries)
    if total > limits.tree:
        raise Problem(
            "build-failed",
            f"The files of the commit are {_megabytes(total)} together, and may be "
            f"{_megabytes(limits.tree)}. Leave out what can be made from the rest (dependencies, "
            "build results).",
        )
    _refuse_collisions(entries)


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f}MB" if size >= 1 << 20 else f"{size} bytes"


def _is_path(path: str, limits: Limits) -> bool:
    """Tell whether a path is relative and plain: no way out, no git folder, nothing that can't be shown."""
    if len(path.encode()) > limits.path or not path.isprintable():
        return False
    return all(
        part not in ("", ".", "..")
        and len(part.encode()) <= 255
        and unicodedata.normalize("NFKC", part).casefold().rstrip(". ") not in (".git", "git~1")
        for part in path.split("/")
    )


def _refuse_collisions(entries: list[Entry]) -> None:
    """Refuse names that are one and the same where case or Unicode's spelling does not count.

    The same check finds what is both a file and a folder in a listing that git would not have made.
    """
    seen: dict[str, tuple[str, bool]] = {}
    for entry in entries:
        parts = entry.path.split("/")
        for depth in range(1, len(parts) + 1):
            path, is_file = "/".join(parts[:depth]), depth == len(parts)
            folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
            known = seen.get(folded)
            if known is None:
                seen[folded] = (path, is_file)
            elif known[0] != path:
                raise Problem(
                    "build-failed",
                    f"{path!r} and {known[0]!r} differ only in case or in how Unicode spells them, so that "
                    "they are one file on many machines. Rename one of them.",
                )
            elif is_file or known[1]:
                raise Problem("build-failed", f"{path!r} stands in the commit twice. Make the commit anew.")


def _contents(commit: Commit, entries: list[Entry], stop: threading.Event) -> Iterator[tuple[Entry, bytes]]:
    """Yield every entry with its content, out of one `git cat-file`."""
    command = [*commit.git, "cat-file", "--batch"]
    with subprocess.Popen(
        command, env=commit.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  for mypy
        try:
            for entry in entries:
                if stop.is_set():
                    return
                process.stdin.write(f"{entry.object}\n".encode())
                process.stdin.flush()
                yield entry, _content(process.stdout, entry)
        finally:
            process.kill()


def _content(answers: IO[bytes], entry: Entry) -> bytes:
    head = answers.readline().split()
    if len(head) != 3 or head[1] != b"blob":
        raise Problem("build-failed", f"{entry.path!r} is missing from what was pushed. Push again.")
    content = answers.read(int(head[2]))
    if len(content) != entry.size or answers.read(1) != b"\n":
        raise Problem("internal", f"git broke off while {entry.path!r} was read.")
    return content


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
