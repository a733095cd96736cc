"""Walking and removing trees that strangers have made: of any depth, with any links and permissions in them.

os.walk and shutil.rmtree recurse (till Python 3.12), and hold a descriptor for each level: a thousand folders
in one another, which a build makes in a moment, are more than they can take.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

_LEAST = 1 << 10  # bytes that an entry without content counts for: its inode takes room too
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def walk(
    top: Path, left: Callable[[int, str], None] | None = None
) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield (descriptor, path below top, names in it) of each folder, a folder before those in it.

    The descriptor and the path, a list of names, are valid until the next one is asked for. `left` is told
    the descriptor of the parent and the name of each folder below top when all in it has been yielded. Links
    are not followed. What is removed meanwhile is passed over. Raises OSError, also where somebody has moved
    folders, so that it finds itself in another one than it should.
    """
    path: list[str] = []
    trail: list[tuple[tuple[int, int], list[str]]] = []  # which folder, and what is to be visited in it
    folder = os.open(top, _FOLDER)
    try:
        while True:
            names = os.listdir(folder)  # noqa: PTH208  of a descriptor
            yield folder, path, names
            trail.append((_identity(folder), [name for name in names if is_folder(name, folder)]))
            while True:
                if trail[-1][1]:
                    path.append(trail[-1][1].pop())
                    try:
                        folder = _change(folder, path[-1], None)
                    except FileNotFoundError:
                        path.pop()
                        continue
                    break
                trail.pop()
                if not trail:
                    return
                folder = _change(folder, "..", trail[-1][0])
                name = path.pop()
                if left is not None:
                    left(folder, name)
    finally:
        os.close(folder)


def remove(top: Path) -> None:
    """Remove a tree, also one in which permissions were taken away. Raises OSError."""
    if not stat.S_ISDIR(top.lstat().st_mode):
        top.unlink()
        return
    top.chmod(0o700)
    for folder, _, names in walk(top, left=lambda parent, name: os.rmdir(name, dir_fd=parent)):
        for name in names:
            if is_folder(name, folder):
                os.chmod(name, 0o700, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
    top.rmdir()


def taken(status: os.stat_result) -> int:
    """Return how many bytes an entry takes on the disk, whatever size it claims to have."""
    return max(status.st_blocks * 512, _LEAST)


def is_folder(name: str, folder: int) -> bool:
    """Tell whether a name in a folder, given by its descriptor, is a folder itself and no link to one."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _change(folder: int, name: str, expected: tuple[int, int] | None) -> int:
    """Open another folder from this one, and close this one."""
    other = os.open(name, _FOLDER, dir_fd=folder)
    if expected is not None and _identity(other) != expected:
        os.close(other)
        raise OSError(errno.ESTALE, "the tree was changed while it was walked")
    os.close(folder)
    return other
