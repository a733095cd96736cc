"""The file of a backup: a tar, packed with gzip. Its first member tells what it is, its last what was in it.

So a file that was cut short, changed, or made by something else is told from a whole one. Ordinary tools list
and unpack it as well.
"""

import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
import time
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from pilotlight import trees
from pilotlight.problems import Problem

FORMAT: Final = 1
_HEAD: Final = "pilotlight-backup.json"
_END: Final = "end.json"
_LEVEL: Final = 3  # of compression: what more would save takes several times as long
_PIECE: Final = 1 << 20
_KINDS: Final = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link"}


class _Sum:
    """What all members come to: their names, kinds, modes, lengths, and what is in them."""

    def __init__(self) -> None:
        self.members = 0
        self._digest = hashlib.sha256()

    def begin(self, member: tarfile.TarInfo) -> None:
        """Count a member; what is in it goes to `add`."""
        self.members += 1
        self._digest.update(
            msgspec.msgpack.encode(
                (
                    os.fsencode(member.name),
                    member.type,
                    member.mode,
                    member.size,
                    os.fsencode(member.linkname),
                )
            )
        )

    def add(self, data: bytes) -> None:
        self._digest.update(data)

    def told(self) -> dict[str, Any]:
        """Return what the end of the file says."""
        return {"members": self.members, "sha256": self._digest.hexdigest()}


class _Read(io.RawIOBase):
    """What is read of a file is added to the sum."""

    def __init__(self, file: IO[bytes], total: _Sum) -> None:
        self._file = file
        self._sum = total

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._sum.add(data)
        return data


class Writer:
    """Writes an archive; it is whole once `end` has been called."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(  # noqa: SIM115  closed by `end`; without it the file is for the bin
            fileobj=file, mode="w:gz", compresslevel=_LEVEL, format=tarfile.PAX_FORMAT
        )
        self._sum = _Sum()
        head = {"format": FORMAT, "pilotlight": version("pilotlight"), "made": time.time()}
        self.text(_HEAD, json.dumps(head))

    def text(self, name: str, text: str) -> None:
        """Add a file with a text."""
        data = text.encode()
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
        self._add(member, io.BytesIO(data))

    def folder(self, name: str) -> None:
        """Add a folder that further ones lie in."""
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o700, int(time.time())
        self._add(member)

    def file(self, name: str, path: Path) -> None:
        """Add a file, as long as it is now: others may be appending to it. Raises OSError."""
        with path.open("rb") as file:
            self._add(_member(name, os.fstat(file.fileno())), file)

    def tree(self, name: str, top: Path) -> None:
        """Add a folder with all that is in it. Raises OSError."""
        self._add(_member(name, top.lstat()))
        for folder, path, names in trees.walk(top):
            for each in names:
                self._entry("/".join((name, *path, each)), each, folder)

    def _entry(self, name: str, own: str, folder: int) -> None:
        status = os.stat(own, dir_fd=folder, follow_symlinks=False)
        member = _member(name, status)
        if member.type == tarfile.REGTYPE:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(own, flags, dir_fd=folder), "rb") as file:
                self._add(member, file)
            return
        if member.type == tarfile.SYMTYPE:
            member.linkname = os.readlink(own, dir_fd=folder)
        self._add(member)

    def _add(self, member: tarfile.TarInfo, file: IO[bytes] | None = None) -> None:
        self._sum.begin(member)
        self._tar.addfile(member, None if file is None else _Read(file, self._sum))

    def end(self) -> None:
        """Write down what is in it. Raises OSError."""
        self.text(_END, json.dumps(self._sum.told()))
        self._tar.close()


def _member(name: str, status: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        member.type = tarfile.SYMTYPE
    else:
        member.size = status.st_size
    return member


class Reader:
    """Unpacks an archive. Nothing of it may be used until `unpack` has come to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def unpack(self, folder: Path) -> dict[str, Any]:
        """Unpack all into a folder, and return what the head says.

        Raises Problem `invalid-request` where it is no whole backup that this version reads, and OSError.
        """
        try:
            with self._path.open("rb") as file:
                try:
                    tar = tarfile.open(fileobj=file, mode="r|gz")  # noqa: SIM115  closed below
                except tarfile.TarError as error:
                    raise self._refusal("it is no backup of Pilotlight") from error
                with tar:
                    return self._unpack(tar, folder)
        except (tarfile.TarError, zlib.error, EOFError, ValueError, KeyError) as error:
            raise self._refusal(f"it is damaged, or was cut short ({error})") from error

    def _unpack(self, tar: tarfile.TarFile, folder: Path) -> dict[str, Any]:
        total = _Sum()
        head = self._head(tar, total)
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while (member := tar.next()) is not None:
                if member.name == _END:
                    told = json.loads(_content(tar, member).read())
                    if told != total.told():
                        raise self._refusal("what is in it is not what was put into it")
                    return head
                total.begin(member)
                self._put(tar, member, top, total)
        finally:
            os.close(top)
        raise self._refusal("its end is missing")

    def _head(self, tar: tarfile.TarFile, total: _Sum) -> dict[str, Any]:
        member = tar.next()
        if member is None or member.name != _HEAD:
            raise self._refusal("it is no backup of Pilotlight")
        total.begin(member)
        text = _content(tar, member).read()
        total.add(text)
        head: dict[str, Any] = json.loads(text)
        if head["format"] != FORMAT:
            raise self._refusal(
                f"it was made by a newer Pilotlight, {head['pilotlight']}: restore it with that one"
            )
        return head

    def _put(self, tar: tarfile.TarFile, member: tarfile.TarInfo, top: int, total: _Sum) -> None:
        """Make one member, and nothing outside of the folder, whatever its name and former links are."""
        *parents, name = member.name.split("/")
        if member.type not in _KINDS or not name or {"", ".", ".."} & {*parents, name}:
            raise self._refusal(f"it holds {member.name!r}, which no backup does")
        with _inside(top, parents) as folder:
            if member.isdir():
                os.mkdir(name, 0o700, dir_fd=folder)
            elif member.issym():
                os.symlink(member.linkname, name, dir_fd=folder)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
                    content = _content(tar, member)
                    while data := content.read(_PIECE):
                        total.add(data)
                        file.write(data)
                    file.flush()
                    os.fchmod(file.fileno(), member.mode & 0o777)
                    os.utime(file.fileno(), (member.mtime, member.mtime))
            if member.isdir():
                os.chmod(name, member.mode & 0o777 | 0o700, dir_fd=folder)

    def _refusal(self, reason: str) -> Problem:
        return Problem("invalid-request", f"{self._path} can't be restored: {reason}.")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} is no file")
    return content


@contextlib.contextmanager
def _inside(top: int, parents: list[str]) -> Iterator[int]:
    """Open a folder below `top`, by way of folders alone."""
    folder = os.dup(top)
    try:
        for name in parents:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        yield folder
    finally:
        os.close(folder)
