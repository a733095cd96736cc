"""The layer store: read-only trees under names that say what they were made from.

A layer is made in a work folder, then sealed: checked, made read-only, written to the disk, and moved to
its name in one step. What has its name is whole.
"""

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from function_service.contract import Layer
from function_service.engines.embedded.syscalls import sync_filesystem
from pilotlight.ids import is_name, new_id
from pilotlight.problems import Problem

_WORK = ".work"
_NOTE = ".note"


class LayerStore:
    """Layers in one folder: DIGEST/ is the tree, DIGEST.note what is known of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self) -> None:
        """Remove what was being made when a former process ended."""
        for leftover in self._folder.glob(f"*{_WORK}"):
            _remove_tree(leftover)
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
                _remove_tree(folder)

    def seal(self, digest: str, folder: Path, kind: str, description: str) -> None:
        """Make folder the layer of that digest; does nothing more than remove it if the layer exists.

        Raises Problem for what can't be in a layer (devices, sockets, pipes), and where the disk is full.
        """
        target = self.path(digest)
        if target.is_dir():
            _remove_tree(folder)
            return
        try:
            # Moved first, so that whoever made it can't reach it by its name while it is checked
            work = target.with_name(f"{new_id()}{_WORK}")
            folder.rename(work)
            total = _make_read_only(work)
            note = Layer(digest=digest, kind=kind, description=description, size=total, created=time.time())
            text = json.dumps({name: getattr(note, name) for name in note.__struct_fields__})
            target.with_name(digest + _NOTE).write_text(text)
            sync_filesystem(str(self._folder))
            work.rename(target)
        except OSError as error:
            raise Problem("unavailable", f"The layer could not be stored: {error.strerror}.") from error

    def remove(self, digest: str) -> None:
        """Remove a layer; running instances keep theirs, since they have it mounted."""
        target = self.path(digest)
        if target.is_dir():
            dying = target.with_name(digest + _WORK)
            target.rename(dying)
            target.with_name(digest + _NOTE).unlink(missing_ok=True)
            _remove_tree(dying)

    def all(self) -> list[Layer]:
        """List the layers, oldest first."""
        layers = []
        for note in self._folder.glob(f"*{_NOTE}"):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                if note.with_suffix("").is_dir():
                    layers.append(Layer(**json.loads(note.read_text())))
        return sorted(layers, key=lambda layer: layer.created)


def _make_read_only(top: Path) -> int:
    """Set owners and modes of a tree; return its size in bytes."""
    total = 0
    owner = os.geteuid(), os.getegid()
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder) / name
            status = path.lstat()
            os.lchown(path, *owner)
            if stat.S_ISLNK(status.st_mode):
                continue
            if stat.S_ISDIR(status.st_mode):
                path.chmod(0o755)
            elif stat.S_ISREG(status.st_mode):
                path.chmod(0o755 if status.st_mode & 0o111 else 0o644)
                total += status.st_size
            else:
                raise Problem("build-failed", f"{path.relative_to(top)} is not a file, folder or link.")
    os.lchown(top, *owner)
    top.chmod(0o755)
    return total


def _remove_tree(folder: Path) -> None:
    """Remove a tree, also one in which a function's build took permissions away."""
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(parent) / name
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder)
