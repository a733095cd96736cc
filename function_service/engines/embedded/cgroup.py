"""Control groups: limits on memory, CPU and processes, in version 1 and 2 of the kernel's interface.

One group a sandbox, below one group of ours that carries the label of the data folder, so that a restart
finds and removes what a killed process left. Sources: cgroups(7), Documentation/admin-guide/cgroup-v{1,2}.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from function_service.engines.embedded import syscalls

CONTROLLERS = ("memory", "cpu", "pids")
_ROOT = Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds, of the CPU quota
PLATFORM = "platform"  # the leaf for our own processes below a delegated group


@dataclass(frozen=True)
class Hierarchy:
    """Where groups can be made: a folder for each controller that is there (in version 2 all the same)."""

    version: int
    folders: dict[str, Path]
    missing: dict[str, str]  # controller → why it can't be had


def _mounts() -> list[tuple[str, str, str]]:
    """Return (mount point, type, options) of every control group file system, from /proc/self/mounts."""
    rows = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [(row[1], row[2], row[3]) for row in rows if row[2] in ("cgroup", "cgroup2")]


def own_group() -> Path | None:
    """Return the folder of this process's group in version 2, or None where that is not in use."""
    if not (_ROOT / "cgroup.controllers").exists():
        return None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return _ROOT / line[3:].lstrip("/")
    return None


def delegated(group: Path) -> bool:
    """Tell whether systemd has given this group away (Delegate=), so that we may make groups in it."""
    for attribute in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, attribute) == b"1":
                return True
    return False


def delegated_base() -> Path | None:
    """Return the group that this process was given, and is in, or in whose leaf `platform` it is."""
    group = own_group()
    if group is None:
        return None
    base = group.parent if group.name == PLATFORM else group
    # A user's own systemd gives groups away by their owner alone (252 sets no attribute there)
    if os.geteuid() == 0:
        given = delegated(base) or _is_of_container(base)
    else:
        given = base.stat().st_uid == os.geteuid()
    return base if given and os.access(base / "cgroup.procs", os.W_OK) else None


def _is_of_container(group: Path) -> bool:
    """Tell whether a group is the uppermost that is seen here, and not that of the machine."""
    return group == _ROOT and (group / "cgroup.events").exists()  # the machine's own has none, cgroups(7)


def open_own() -> None:
    """Make the groups of a container writable for what is in it, where they are shown to it read-only.

    Docker shows them so, also to who may mount. Where this is not permitted nothing happens.
    """
    own = {line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    attributes = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    for place in _closed(Path("/proc/self/mountinfo").read_text(), own):
        try:
            syscalls.mount("none", place, None, syscalls.MS_REMOUNT | syscalls.MS_BIND | attributes)
        except PermissionError:
            return


def _closed(mountinfo: str, own: Container[str]) -> list[str]:
    """Return where groups whose paths are in `own` are mounted read-only, given a mountinfo (proc(5))."""
    found = []
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        root, place, options = mount.split()[3:6]
        if filesystem.startswith("cgroup") and root in own and "ro" in options.split(","):
            found.append(place)
    return found


def find(label: str) -> Hierarchy:
    """Find where groups can be made, and make our own top group there. Changes nothing else."""
    if own_group() is not None:
        return _find_v2(label)
    folders: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for controller in CONTROLLERS:
        mount = next((m for m in _mounts() if m[1] == "cgroup" and controller in m[2].split(",")), None)
        if mount is None:
            missing[controller] = "this kernel has no such controller"
            continue
        folder = Path(mount[0]) / label
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            missing[controller] = f"{mount[0]}: {error.strerror}"
        else:
            folders[controller] = folder
    return Hierarchy(1, folders, missing)


def _find_v2(label: str) -> Hierarchy:
    base = delegated_base()
    if base is not None:
        _empty_into_leaf(base)
    elif os.geteuid() == 0:
        base = _ROOT
    if base is None:
        reason = "this process is in no control group that systemd delegated to it"
        return Hierarchy(2, {}, dict.fromkeys(CONTROLLERS, reason))
    folder = base / label
    try:
        _enable(base)
        folder.mkdir(exist_ok=True)
        _enable(folder)
    except OSError as error:
        return Hierarchy(2, {}, dict.fromkeys(CONTROLLERS, f"{base}: {error.strerror}"))
    have = (folder / "cgroup.subtree_control").read_text().split()
    missing = {c: f"{base} is not given it" for c in CONTROLLERS if c not in have}
    return Hierarchy(2, {c: folder for c in CONTROLLERS if c in have}, missing)


def above(hierarchy: Hierarchy) -> "Group":
    """Return the group of ours above all that are made in a hierarchy."""
    folders = {controller: folder.parent for controller, folder in hierarchy.folders.items()}
    name = next((folder.name for folder in hierarchy.folders.values()), "")
    return Group(Hierarchy(hierarchy.version, folders, hierarchy.missing), name, make=False)


def of(pid: int) -> "Group":
    """Return the group in which somebody else, such as Docker, has put a process. Raises OSError."""
    folders: dict[str, Path] = {}
    version = 1 if own_group() is None else 2
    name = ""
    mounts = {m[0]: m[2].split(",") for m in _mounts() if m[1] == "cgroup"}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if version == 2 and not controllers:
            folder = _ROOT / path.lstrip("/")
            folders, name = dict.fromkeys(CONTROLLERS, folder.parent), folder.name
        for controller in controllers.split(",") if version == 1 else ():
            mount = next((at for at, options in mounts.items() if controller in options), None)
            if controller in CONTROLLERS and mount is not None:
                folder = Path(mount) / path.lstrip("/")
                folders[controller], name = folder.parent, folder.name
    group = Group(Hierarchy(version, folders, {}), name, make=False)
    group.learn_limits()
    return group


def _enable(folder: Path) -> None:
    """Let the groups below folder have what folder itself has of our controllers."""
    have = (folder / "cgroup.controllers").read_text().split()
    wanted = " ".join(f"+{c}" for c in CONTROLLERS if c in have)
    if wanted:
        (folder / "cgroup.subtree_control").write_text(wanted)


def _empty_into_leaf(base: Path) -> None:
    """Move every process of base into a leaf: only a group without processes can have controllers below."""
    leaf = base / PLATFORM
    leaf.mkdir(exist_ok=True)
    for pid in (base / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (leaf / "cgroup.procs").write_text(pid)


class Group:
    """The group of one sandbox. Each method does what it can with the controllers that are there.

    Its files are written by plain system calls: every cold start writes a dozen of them.
    """

    def __init__(self, hierarchy: Hierarchy, name: str, *, make: bool = True) -> None:
        """Make it, unless that is somebody else's to do (see `of`)."""
        self._version = hierarchy.version
        self._folders = {controller: f"{folder}/{name}" for controller, folder in hierarchy.folders.items()}
        self._unique = list(dict.fromkeys(self._folders.values()))
        self._set: dict[tuple[str, str], str] = {}
        self._stat: int | None = None
        for folder in self._unique if make else ():
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)  # noqa: PTH102
                self._set["cpu", "cpu.idle"] = "0"
        if self._version == 2 and "memory" in self._folders:
            self._write("memory", "memory.oom.group", "1")

    def learn_limits(self) -> None:
        """Read which limits somebody else has set."""
        names = {1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), 2: ("memory.max",)}
        for name in names[self._version]:
            if limit := self._read("memory", name).strip():
                self._set["memory", name] = limit

    def _write(self, controller: str, name: str, value: str) -> None:
        if controller in self._folders and self._set.get((controller, name)) != value:
            _write(f"{self._folders[controller]}/{name}", value)
            self._set[controller, name] = value

    def _read(self, controller: str, name: str) -> str:
        try:
            return _text(f"{self._folders[controller]}/{name}")
        except (KeyError, OSError):
            return ""  # the controller is missing on this machine, which `doctor` says

    def add(self, pid: int) -> None:
        """Put a process into the group."""
        for folder in self._unique:
            _write(f"{folder}/cgroup.procs", str(pid))

    def limit(self, memory: int, processes: int) -> None:
        """Limit memory (bytes, swap included) and the number of processes and threads."""
        if self._version == 1:
            names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
            if memory > int(self._set.get(("memory", names[0]), memory)):
                names.reverse()  # the second one, which counts swap too, must never be below the first
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting
                    self._write("memory", name, str(memory))
        else:
            self._write("memory", "memory.max", str(memory))
            with contextlib.suppress(FileNotFoundError):  # likewise
                self._write("memory", "memory.swap.max", "0")
        self._write("pids", "pids.max", str(processes))

    def limit_cpu(self, cores: float) -> None:
        """Limit CPU time to a number of cores."""
        quota = max(1000, int(cores * _PERIOD))
        if self._version == 1:
            self._write("cpu", "cpu.cfs_quota_us", str(quota))
        else:
            self._write("cpu", "cpu.max", f"{quota} {_PERIOD}")

    def limit_met(self) -> int:
        """Return how often its processes were stopped because they had used their CPU time.

        It is asked for so often that the file stays open, until the group is removed.
        """
        try:
            if self._stat is None:
                self._stat = os.open(f"{self._folders['cpu']}/cpu.stat", os.O_RDONLY | os.O_CLOEXEC)
            _, _, number = os.pread(self._stat, 1 << 12, 0).partition(b"nr_throttled ")
        except (KeyError, OSError):
            return 0  # no controller, as `doctor` says, or the group is gone
        return int(number.split(None, 1)[0]) if number else 0

    def give_way(self) -> None:
        """Run only while nobody beside this group wants to; before Linux 5.15 nothing changes."""
        with contextlib.suppress(FileNotFoundError):
            self._write("cpu", "cpu.idle", "1")

    def give_way_no_more(self) -> None:
        """Run like others again."""
        with contextlib.suppress(FileNotFoundError):
            self._write("cpu", "cpu.idle", "0")

    def memory(self) -> int:
        """Return the bytes in use, without the page cache that the kernel would give up at once."""
        stat = dict(line.split() for line in self._read("memory", "memory.stat").splitlines())
        if self._version == 1:
            return int(stat.get("rss", 0)) + int(stat.get("mapped_file", 0))
        return int(self._read("memory", "memory.current") or 0) - int(stat.get("inactive_file", 0))

    def memory_peak(self) -> int:
        """Return the most bytes that were in use; 0 where the kernel does not tell (version 2 till 5.18)."""
        name = "memory.max_usage_in_bytes" if self._version == 1 else "memory.peak"
        return int(self._read("memory", name) or 0)

    def cpu_seconds(self) -> float:
        """Return the CPU time used."""
        if self._version == 2:
            stat = dict(line.split() for line in self._read("cpu", "cpu.stat").splitlines())
            return int(stat.get("usage_usec", 0)) / 1e6
        return 0.0

    def processes(self) -> int:
        """Return how many processes and threads there are."""
        return int(self._read("pids", "pids.current") or 0)

    def out_of_memory(self) -> bool:
        """Tell whether the kernel has killed a process here because memory had run out."""
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        counts = dict(line.split() for line in self._read("memory", name).splitlines())
        return int(counts.get("oom_kill", 0)) > 0

    def remove(self) -> bool:
        """Remove the group; False while the kernel still holds a dying process in it."""
        if self._stat is not None:
            os.close(self._stat)
            self._stat = None
        remaining = [folder for folder in self._unique if not _remove(folder)]
        return not remaining


def _text(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 16).decode()
    finally:
        os.close(descriptor)


def _write(path: str, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _remove(folder: str | Path) -> bool:
    try:
        os.rmdir(folder)  # noqa: PTH106
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def sweep(hierarchy: Hierarchy, *, spare: Container[str] = (), top: bool = False) -> None:
    """Kill and remove every group below ours but those to `spare`, and with `top` our own as well.

    Takes at most five seconds.
    """
    deadline = time.monotonic() + 5
    for base in dict.fromkeys(hierarchy.folders.values()):
        while True:
            for folder in (child for child in base.iterdir() if child.is_dir() and child.name not in spare):
                while not _remove(folder) and time.monotonic() < deadline:
                    _kill(folder)
                    time.sleep(0.005)
            # One of ours may have come at the last moment, and be about to go by itself
            if not top or _remove(base) or time.monotonic() >= deadline:
                break
            time.sleep(0.005)


def _kill(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
