"""Control groups of both versions, in folders that look like the kernel's."""

import errno
import os
from pathlib import Path

import pytest

from function_service.engines.embedded import cgroup
from function_service.engines.embedded.cgroup import Group, Hierarchy

V1_FILES = {
    "memory": ("cgroup.procs", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    "cpu": ("cgroup.procs", "cpu.cfs_quota_us", "cpu.idle"),
    "pids": ("cgroup.procs", "pids.max"),
}
V2_FILES = (
    "cgroup.procs",
    "memory.oom.group",
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "cpu.max",
    "cpu.idle",
)


@pytest.fixture
def v2(tmp_path: Path) -> Hierarchy:
    return Hierarchy(2, dict.fromkeys(cgroup.CONTROLLERS, tmp_path), {})


@pytest.fixture
def v1(tmp_path: Path) -> Hierarchy:
    folders = {controller: tmp_path / controller for controller in cgroup.CONTROLLERS}
    for folder in folders.values():
        folder.mkdir()
    return Hierarchy(1, folders, {})


def put(folder: Path, **files: str) -> None:
    """Write files as the kernel makes them; a dot is written as two underscores."""
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def one(hierarchy: Hierarchy) -> Group:
    """Make a group in folders that already have the files that a kernel makes with them."""
    for controller, folder in hierarchy.folders.items():
        (folder / "one").mkdir(exist_ok=True)
        for name in V2_FILES if hierarchy.version == 2 else V1_FILES[controller]:
            (folder / "one" / name).touch()
    return Group(hierarchy, "one")


def test_one_folder_in_version_2_and_one_for_each_controller_in_version_1(
    v2: Hierarchy, v1: Hierarchy
) -> None:
    one(v2)
    assert (v2.folders["memory"] / "one/memory.oom.group").read_text() == "1"
    Group(v1, "one")
    assert all((folder / "one").is_dir() for folder in v1.folders.values())
    assert not (v1.folders["memory"] / "one/memory.oom.group").exists()


def test_limits_of_version_2(v2: Hierarchy) -> None:
    group, folder = one(v2), v2.folders["memory"] / "one"
    group.add(4711)
    group.limit(64 << 20, 100)
    group.limit_cpu(0.25)
    read = {p.name: p.read_text() for p in folder.iterdir()}
    assert read == {
        "cgroup.procs": "4711",
        "memory.oom.group": "1",
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "pids.max": "100",
        "cpu.max": "25000 100000",
        "cpu.idle": "",
    }


def test_who_gives_way_is_idle_until_it_is_needed(v1: Hierarchy, v2: Hierarchy) -> None:
    for hierarchy in (v1, v2):
        group, file = one(hierarchy), hierarchy.folders["cpu"] / "one/cpu.idle"
        group.give_way()
        assert file.read_text() == "1"
        group.give_way_no_more()
        assert file.read_text() == "0"
        file.unlink()  # Linux before 5.15
        group.give_way()
        group.give_way_no_more()
        assert not file.exists()


def test_how_often_the_limit_was_met(v1: Hierarchy, v2: Hierarchy) -> None:
    for hierarchy in (v1, v2):
        group, folder = one(hierarchy), hierarchy.folders["cpu"] / "one"
        assert group.limit_met() == 0  # before a limit is set, some kernels tell nothing
        put(folder, cpu__stat="nr_periods 12\nnr_throttled 7\nthrottled_usec 5\n")
        assert group.limit_met() == 7
        put(folder, cpu__stat="nr_periods 13\nnr_throttled 8\nthrottled_usec 5\n")
        assert group.limit_met() == 8


def test_a_group_leaves_no_file_open(v1: Hierarchy) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    group = one(v1)
    put(v1.folders["cpu"] / "one", cpu__stat="nr_throttled 7\n")
    assert group.limit_met() == 7
    with pytest.raises(OSError, match="not empty"):  # these folders hold real files
        group.remove()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_new_group_need_not_be_told_to_give_way_no_more(v1: Hierarchy) -> None:
    """Each cold start would write it."""
    group = Group(v1, "new")
    group.give_way_no_more()
    assert list((v1.folders["cpu"] / "new").iterdir()) == []
    group = one(v1)  # a former service may have left it giving way
    group.give_way_no_more()
    assert (v1.folders["cpu"] / "one/cpu.idle").read_text() == "0"


@pytest.mark.parametrize(("first", "second"), [(64 << 20, 128 << 20), (128 << 20, 64 << 20)])
def test_limits_of_version_1_change_in_the_order_that_the_kernel_takes(
    v1: Hierarchy, first: int, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory with swap must never be below memory alone (memcg returns EINVAL)."""
    limits = {"memory.limit_in_bytes": 1 << 60, "memory.memsw.limit_in_bytes": 1 << 60}
    plain = cgroup._write

    def write(path: str, text: str) -> None:
        if (name := Path(path).name) in limits:
            changed = limits | {name: int(text)}
            if changed["memory.memsw.limit_in_bytes"] < changed["memory.limit_in_bytes"]:
                raise OSError(errno.EINVAL, "Invalid argument")
            limits.update(changed)
        plain(path, text)

    monkeypatch.setattr(cgroup, "_write", write)
    group = one(v1)
    for memory in (first, second, second):
        group.limit(memory, 128)
        assert set(limits.values()) == {memory}
    group.limit_cpu(0.001)
    assert (v1.folders["cpu"] / "one/cpu.cfs_quota_us").read_text() == "1000"


def test_use_of_version_2(v2: Hierarchy) -> None:
    group, folder = one(v2), v2.folders["memory"] / "one"
    put(folder, memory__current="5000", memory__peak="7000", pids__current="3\n")
    put(folder, memory__stat="anon 3000\ninactive_file 1000\n", cpu__stat="usage_usec 1500000\nuser_usec 1\n")
    put(folder, memory__events="low 0\noom 1\noom_kill 0\noom_group_kill 0\n")
    assert (group.memory(), group.memory_peak(), group.processes(), group.cpu_seconds()) == (
        4000,
        7000,
        3,
        1.5,
    )
    assert not group.out_of_memory()
    put(folder, memory__events="oom 1\noom_kill 2\n")
    assert group.out_of_memory()


def test_use_of_version_1(v1: Hierarchy) -> None:
    group = one(v1)
    memory = v1.folders["memory"] / "one"
    put(memory, memory__stat="cache 9\nrss 3000\nmapped_file 500\n", memory__max_usage_in_bytes="7000")
    put(memory, memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    put(v1.folders["pids"] / "one", pids__current="3")
    assert (group.memory(), group.memory_peak(), group.processes()) == (3500, 7000, 3)
    assert group.out_of_memory()


@pytest.mark.parametrize("version", [1, 2])
def test_where_there_are_no_controllers_everything_is_unknown_and_nothing_fails(version: int) -> None:
    group = Group(Hierarchy(version, {}, dict.fromkeys(cgroup.CONTROLLERS, "none here")), "one")
    group.add(1)
    group.limit(1 << 20, 1)
    group.limit_cpu(1.0)
    assert (group.memory(), group.memory_peak(), group.processes(), group.cpu_seconds()) == (0, 0, 0, 0.0)
    assert not group.out_of_memory()
    assert group.remove()


def test_a_group_that_is_gone_has_been_removed(v1: Hierarchy) -> None:
    group = Group(v1, "one")
    assert group.remove()
    assert group.remove()
    assert all(list(folder.iterdir()) == [] for folder in v1.folders.values())


def test_a_group_that_the_kernel_still_holds_is_not_removed(
    v2: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, busy = one(v2), True
    plain = os.rmdir

    def rmdir(path: Path, **rest: int) -> None:
        if busy:
            raise OSError(errno.EBUSY, "Device or resource busy")
        for file in Path(path).iterdir():  # in a real one, files are no hindrance
            file.unlink()
        plain(path, **rest)

    monkeypatch.setattr(os, "rmdir", rmdir)
    assert not group.remove()
    busy = False
    assert group.remove()


def test_sweeping_removes_what_a_former_run_left(v1: Hierarchy) -> None:
    for folder in v1.folders.values():
        for name in ("one", "two"):
            (folder / name).mkdir()
    cgroup.sweep(v1)
    assert all(list(folder.iterdir()) == [] for folder in v1.folders.values())
    cgroup.sweep(v1, top=True)
    assert not any(folder.exists() for folder in v1.folders.values())


def test_sweeping_waits_for_a_group_that_comes_meanwhile(
    v1: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = cgroup._remove

    def busy_once(folder: Path) -> bool:
        if folder in v1.folders.values() and not (folder.parent / f"{folder.name}-seen").exists():
            (folder.parent / f"{folder.name}-seen").touch()
            (folder / "late").mkdir()
            return False  # as the kernel says of a group with others in it
        return remove(folder)

    monkeypatch.setattr(cgroup, "_remove", busy_once)
    cgroup.sweep(v1, top=True)
    assert not any(folder.exists() for folder in v1.folders.values())


def test_sweeping_spares_what_lives_on(v1: Hierarchy) -> None:
    for folder in v1.folders.values():
        for name in ("one", "two"):
            (folder / name).mkdir()
    cgroup.sweep(v1, spare={"two"})
    assert all([path.name for path in folder.iterdir()] == ["two"] for folder in v1.folders.values())


def test_a_kernel_without_swap_accounting_limits_the_rest(v1: Hierarchy, v2: Hierarchy) -> None:
    for hierarchy, file in ((v1, "memory.memsw.limit_in_bytes"), (v2, "memory.swap.max")):
        group, folder = one(hierarchy), hierarchy.folders["memory"] / "one"
        (folder / file).unlink()
        group.limit(64 << 20, 100)
        assert not (folder / file).exists()
        assert (hierarchy.folders["pids"] / "one/pids.max").read_text() == "100"


MOUNTINFO = """\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:2 - sysfs sysfs rw
31 22 0:27 /docker/4711 /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:9 - cgroup cgroup rw,memory
32 22 0:28 /docker/4711 /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime - cgroup cgroup rw,pids
33 22 0:29 /docker /sys/fs/cgroup/cpu ro,nosuid,nodev,noexec,relatime - cgroup cgroup rw,cpu
34 22 0:30 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate
35 22 0:31 / /sys/kernel/debug ro,relatime - debugfs debugfs rw
"""


@pytest.mark.parametrize(
    ("own", "closed"),
    [
        ("/docker/4711", ["/sys/fs/cgroup/memory"]),
        ("/", ["/sys/fs/cgroup"]),  # in a namespace of control groups
        ("/system.slice/pilotlight.service", []),  # what is above of it is somebody else's
    ],
)
def test_what_is_opened_is_the_container_s_own_and_was_closed(own: str, closed: list[str]) -> None:
    assert cgroup._closed(MOUNTINFO, {own}) == closed


@pytest.mark.parametrize("leaf", [".", cgroup.PLATFORM])
def test_in_a_container_the_uppermost_group_is_its_own(
    leaf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path)
    monkeypatch.setattr(cgroup, "own_group", lambda: tmp_path / leaf)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / leaf).mkdir(exist_ok=True)
    put(tmp_path, cgroup__procs="")
    assert cgroup.delegated_base() is None  # it is the machine's
    put(tmp_path, cgroup__events="populated 1\n")
    assert cgroup.delegated_base() == tmp_path
