"""Removes folders that a build filled, whatever permissions it took away, and measures them."""

import contextlib
import logging
import os
import shutil
from pathlib import Path

_log = logging.getLogger(__name__)


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it; for a thread. What can't be removed is logged."""
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            place = Path(parent) / name
            if not place.is_symlink():
                # package managers make read-only folders (Go's modules); another user's stay as they are
                with contextlib.suppress(PermissionError):
                    place.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _log.error("%s can't be removed; remove it by hand, as root", folder)


def size(folder: Path) -> int:
    """Return what the files in a folder take, in bytes; for a thread."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # git renames and removes its own meanwhile
                total += (Path(parent) / name).lstat().st_size
    return total
