"""The layer store: read-only trees under names that say what they were made from.

A layer is made in a work folder, then sealed: checked, made read-only, written to the disk, and moved to
its name in one step. What has its name is whole.
"""

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from function_service.contract import Layer
from function_service.engines.embedded.syscalls import sync_filesystem
from pilotlight import trees
from pilotlight.ids import is_name, new_id
from pilotlight.problems import Problem

_WORK = ".work"
_NOTE = ".note"


class LayerStore:
    """Layers in one folder: DIGEST/ is the tree, DIGEST.note what is known of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes: dict[str, Layer] = {}  # those that were read, so that a list of many is no read of many

    def start(self) -> None:
        """Remove what was being made when a former process ended."""
        for leftover in self._folder.glob(f"*{_WORK}"):
            trees.remove(leftover)
        for note in self._folder.glob(f"*{_NOTE}"):
            if not note.with_suffix("").is_dir():
                note.unlink()

    def path(self, digest: str) -> Path:
        """Return the folder of a layer. Raises Problem for what can't be a digest."""
        if not is_name(digest):
            raise Problem("invalid-request", f"{digest!r} is not the digest of a layer.")
        return self._folder / digest

    def has(self, digest: str) -> bool:
        """Tell whether the layer is there."""
        return self.path(digest).is_dir()

    @contextlib.contextmanager
    def new(self) -> Iterator[Path]:
        """Give a work folder, which is gone afterwards unless it was sealed."""
        folder = self._folder / f"{new_id()}{_WORK}"
        folder.mkdir(mode=0o755)
        try:
            yield folder
        finally:
            if folder.exists():
                trees.remove(folder)

    def seal(self, digest: str, folder: Path, kind: str, description: str) -> None:
        """Make folder the layer of that digest; does nothing more than remove it if the layer exists.

        Raises Problem for what can't be in a layer (devices, sockets, pipes, files of another owner than
        the folder's), and where the disk is full; the folder is gone then too.
        """
        target = self.path(digest)
        work = target.with_name(f"{new_id()}{_WORK}")
        try:
            _make_movable(folder)
            # Moved first, so that whoever made it can't reach it by its name while it is checked
            folder.rename(work)
            if target.is_dir():
                return
            total = _make_read_only(work)
            note = Layer(digest=digest, kind=kind, description=description, size=total, created=time.time())
            text = json.dumps({name: getattr(note, name) for name in note.__struct_fields__})
            target.with_name(digest + _NOTE).write_text(text)
            sync_filesystem(str(self._folder))
            self._notes[digest] = note
            work.rename(target)
        except OSError as error:
            if not target.is_dir():  # else somebody was quicker to seal the same
                detail = f"The layer could not be stored: {error.strerror}."
                raise Problem("unavailable", detail) from error
        finally:
            if os.path.lexists(work):
                trees.remove(work)
            if not target.is_dir():
                target.with_name(digest + _NOTE).unlink(missing_ok=True)

    def withdraw(self, digest: str) -> Path:
        """Take a layer out of the store in one step; return its folder, for `trees.remove`.

        No instance may have it mounted: its files vanish there too.
        """
        dying = self._folder / f"{new_id()}{_WORK}"
        self.path(digest).rename(dying)
        self.path(digest).with_name(digest + _NOTE).unlink(missing_ok=True)
        self._notes.pop(digest, None)
        return dying

    def remove(self, digest: str) -> None:
        """Remove a layer, if it is there."""
        if self.has(digest):
            trees.remove(self.withdraw(digest))

    def forget_pages(self, kind: str) -> None:
        """Have the kernel drop what it holds in memory of the files of all layers of a kind."""
        for layer in self.all():
            if layer.kind == kind:
                for folder, _, files in os.walk(self.path(layer.digest)):
                    for name in files:
                        _forget(Path(folder) / name)

    def all(self) -> list[Layer]:
        """List the layers, oldest first."""
        with os.scandir(self._folder) as entries:
            names = {entry.name for entry in entries}
        layers = []
        for name in names:
            digest = name.removesuffix(_NOTE)
            if name.endswith(_NOTE) and digest in names:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    layers.append(self._note(digest))
        return sorted(layers, key=lambda layer: layer.created)

    def _note(self, digest: str) -> Layer:
        """Return what is known of a layer. Raises FileNotFoundError."""
        known = self._notes.get(digest)
        if known is None:
            text = (self._folder / (digest + _NOTE)).read_text()
            known = self._notes[digest] = Layer(**json.loads(text))
        return known


def _make_movable(folder: Path) -> None:
    """Let an ordinary user move a folder of its own: that writes into it, since `..` changes (rename(2))."""
    if os.geteuid() == 0:
        return
    try:
        held = os.open(folder, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        return  # what it is instead is told when it is looked at
    try:
        os.chmod(f"/proc/self/fd/{held}", 0o700)  # noqa: PTH101
    finally:
        os.close(held)


def _make_read_only(top: Path) -> int:
    """Check a tree and set its owners and modes; return how many bytes it takes. Raises Problem, OSError.

    Everything is held by a descriptor while it is looked at and changed, and must have the maker's owner: a
    hard link or a quick exchange must not lead to other files.
    """
    maker = top.lstat().st_uid
    if not stat.S_ISDIR(_take_over(top.name, None, top.parent, maker).st_mode):
        raise Problem("build-failed", "What was built is not a folder.")
    total = 0
    for folder, path, names in trees.walk(top):
        for name in names:
            total += trees.taken(_take_over(name, folder, Path(*path), maker))
    return total


def _take_over(name: str, folder: int | None, shown: Path, maker: int) -> os.stat_result:
    """Take one entry of a folder over from its maker; return what it was. `shown` is for messages."""
    where = name if folder is not None else shown / name
    held = os.open(where, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = os.fstat(held)
        mode = status.st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise Problem("build-failed", f"{shown / name} is not a file, folder or link.")
        if status.st_uid != maker:
            raise Problem("build-failed", f"{shown / name} belongs to somebody else than what it lies in.")
        path = f"/proc/self/fd/{held}"
        os.chown(path, os.geteuid(), os.getegid())
        if not stat.S_ISLNK(mode):
            # Only now, since a change of the owner may clear bits of the mode
            os.chmod(path, 0o755 if stat.S_ISDIR(mode) or mode & 0o111 else 0o644)  # noqa: PTH101
        return status
    finally:
        os.close(held)


def _forget(file: Path) -> None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # a link, or removed meanwhile
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
