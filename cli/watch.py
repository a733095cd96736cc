"""Notices that files of a folder have changed, by looking again and again."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

IGNORED: Final = (".git", ".venv", "__pycache__", "node_modules")
"""Folders that programs fill, rather than people."""

_PAUSE: Final = 0.2  # seconds between two looks


def changes(folder: Path) -> Iterator[None]:
    """Yield at once, then each time that something has changed and stayed so for one look."""
    told = None
    seen = _look(folder)
    while True:
        if seen != told:
            told = seen
            yield
        time.sleep(_PAUSE)
        before, seen = seen, _look(folder)
        while seen != before:  # an editor is at it, or a checkout
            time.sleep(_PAUSE)
            before, seen = seen, _look(folder)


def _look(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in IGNORED]
        for name in files:
            path = os.path.join(parent, name)  # noqa: PTH118  twice as quick
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            found[path] = (status.st_mtime_ns, status.st_size, status.st_mode)
    return found
