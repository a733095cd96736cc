"""What a platform has and uses at a moment: processes, descriptors, mounts, control groups, memory, disk."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import processes
from benchmarks.platform import Platform
from pilotlight.datafolder import DataFolder

_MB: Final = float(1 << 20)
_RSS: Final = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)
_GROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Item:
    """One thing that is counted: how many there are, or how much. `unit` is empty for a count."""

    name: str
    unit: str
    value: float
    allowed: float  # growth that is none: what is kept on purpose, and what an allocator does not give back


def take(target: Platform) -> list[Item]:
    """Look at a platform that is at rest."""
    tree = processes.tree(target.pid)
    services = {pid: name for pid in tree if (name := _service(pid)) is not None}
    return [
        Item("processes", "", len(tree), 0),
        Item("mounts", "", _mounts(tree), 0),
        Item("control groups", "", _groups(DataFolder(target.data).label), 0),
        *(Item(f"descriptors, {name}", "", _descriptors(pid), 8) for pid, name in services.items()),
        *(Item(f"memory, {name}", "MB", _memory(pid), 16) for pid, name in services.items()),
        *_disk(DataFolder(target.data)),
    ]


def _service(pid: int) -> str | None:
    """Return the name of a service, if the process is one."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"cli.main" in words:
            return words[words.index(b"cli.main") + 1].decode()
    return None


def _descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return 0


def _memory(pid: int) -> float:
    with contextlib.suppress(OSError):
        found = _RSS.search(Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 / _MB if found else 0.0
    return 0.0


def _mounts(tree: list[int]) -> int:
    """Count the mounts in all mount namespaces that the processes are in, each namespace once."""
    found: dict[str, int] = {}
    for pid in tree:
        with contextlib.suppress(OSError):
            space = str(Path(f"/proc/{pid}/ns/mnt").readlink())
            if space not in found:
                found[space] = Path(f"/proc/{pid}/mountinfo").read_text().count("\n")
    return sum(found.values())


def _groups(label: str) -> int:
    """Count the control groups of a platform, in all hierarchies."""
    return sum(label in f"{folder}/{name}" for folder, folders, _ in os.walk(_GROUPS) for name in folders)


def _disk(data: DataFolder) -> list[Item]:
    """Return what lies in the parts of a data folder.

    A database keeps the size that it once had, and its log that of what is written at once.
    """
    return [
        Item("disk, registry", "MB", _size(data.root, "registry.db*"), 8),
        Item("disk, documents", "MB", _size(data.documents, "*"), 16),
        Item("disk, layers", "MB", _size(data.layers, "*"), 0.1),
        Item("disk, logs", "MB", _size(data.logs, "*"), 0.1),
        Item("disk, repositories", "MB", _size(data.repositories, "*"), 0.1),
        Item("disk, builds", "MB", _size(data.builds, "*"), 0.1),
        Item("disk, audit log", "MB", _size(data.root, "audit*.jsonl"), 8),
        Item("entries of the folder of sockets", "", sum(1 for _ in data.run.rglob("*")), 0),
    ]


def _size(folder: Path, pattern: str) -> float:
    """Return what files take in MB, with all that lies in folders among them."""
    total = 0
    for entry in folder.glob(pattern):
        for path in (entry, *entry.rglob("*")) if entry.is_dir() else (entry,):
            with contextlib.suppress(OSError):
                status = path.lstat()
                total += status.st_blocks * 512
    return total / _MB
