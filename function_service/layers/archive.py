"""A layer as one stream of bytes, which are the same for the same tree: a tar archive, and back again."""

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pilotlight.problems import Problem

PIECE: Final = 256 << 10
"""About how many bytes `pack` yields at a time."""

_BLOCK: Final = 512  # bytes, of tar
_NAMES: Final = ("utf-8", "surrogateescape")


def pack(folder: Path) -> Iterator[bytes]:
    """Yield the archive of a layer, whose files stay as they are meanwhile. It blocks. Raises OSError.

    Of times only the whole seconds of files are in it, by which Python knows what it has compiled.
    """
    buffer = bytearray()
    for piece in _pieces(folder):
        buffer += piece
        if len(buffer) >= PIECE:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer) + bytes(2 * _BLOCK)


def _pieces(folder: Path) -> Iterator[bytes]:
    for path in _entries(folder):
        status = path.lstat()
        entry = tarfile.TarInfo(str(path.relative_to(folder)))
        if stat.S_ISDIR(status.st_mode):
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        elif stat.S_ISLNK(status.st_mode):
            entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
        else:
            entry.mode = 0o755 if status.st_mode & 0o111 else 0o644
            entry.size, entry.mtime = status.st_size, int(status.st_mtime)
        yield entry.tobuf(tarfile.GNU_FORMAT, *_NAMES)
        if entry.isreg():
            left = entry.size
            with path.open("rb") as file:
                while left:
                    content = file.read(min(left, PIECE))
                    if not content:
                        raise OSError(0, f"{path} has become shorter")
                    left -= len(content)
                    yield content
            yield bytes(-entry.size % _BLOCK)


def _entries(folder: Path) -> Iterator[Path]:
    """Yield all that is in a folder, by name, a folder before what is in it."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if path != folder:
            yield path
        if path == folder or (path.is_dir() and not path.is_symlink()):
            waiting += sorted(path.iterdir(), reverse=True)


def unpack(archive: Path, folder: Path) -> None:
    """Make the tree of an archive in an empty folder. It blocks.

    Raises Problem for what no layer can have been, OSError.
    """
    top = folder.resolve()
    try:
        with tarfile.open(archive, "r:", encoding=_NAMES[0], errors=_NAMES[1]) as tar:
            for entry in tar:
                path = folder / entry.name
                if ".." in Path(entry.name).parts or not path.parent.resolve().is_relative_to(top):
                    raise Problem(
                        "unavailable", f"A layer that was fetched leads out of its folder: {entry.name}"
                    )
                _place(tar, entry, path)
    except tarfile.TarError as error:
        raise Problem("unavailable", f"A layer that was fetched is no archive: {error}") from error


def _place(tar: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> None:
    if entry.isdir():
        path.mkdir()
        return
    if entry.issym():
        path.symlink_to(entry.linkname)
        return
    source = tar.extractfile(entry)
    if source is None:
        raise Problem("unavailable", f"A layer that was fetched has {entry.name}, which is no file.")
    with source, path.open("xb") as file:
        while content := source.read(PIECE):
            file.write(content)
    path.chmod(entry.mode & 0o777)
    os.utime(path, (entry.mtime, entry.mtime))
