"""What a tree of processes uses: processor time, wake-ups and memory, from /proc."""

import contextlib
import os
import re
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_SLEEPS = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)


def tree(root: int) -> list[int]:
    """Return a process and all that descend from it, also those in other namespaces."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(pids: list[int]) -> float:
    """Return the processor time that processes have used, those that are gone left out."""
    stats = (_stat(pid) for pid in pids)
    return sum(int(fields[11]) + int(fields[12]) for fields in stats if fields) / _TICK


def wakeups(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep and come back; 0 where it is gone."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):
            found = _SLEEPS.search(status.read_text())
            total += int(found[1]) if found else 0
    return total


def memory(root: int) -> int | None:
    """Return the memory of a process and all that descend from it in bytes, what is shared counted once.

    None where most of them may not be looked into.
    """
    sizes = [pss(pid) for pid in tree(root)]
    # None stands for a process that ended meanwhile too, so only where most can't be read, none may be
    readable = [size for size in sizes if size is not None]
    return sum(readable) if len(readable) > 0.9 * len(sizes) else None


def pss(pid: int) -> int | None:
    """Return the memory of a process in bytes, what is shared divided among its users.

    None where it is gone or may not be looked into, and 0 for one that has no memory (a kernel thread, a
    process that waits to be reaped).
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    match = _PSS.search(text)
    return int(match[1]) * 1024 if match else 0


def available_memory() -> int:
    """Return how much memory, in bytes, the kernel could still give to programs."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; None where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
