"""Attacks from within functions, on real sandboxes: as root, as an ordinary user, and on Docker.

Each test sends the code of an attack to a function that runs what it is sent. What a machine can't enforce
must be named by `guarantees()`; then that is what is asserted.
"""

import ast
import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from runtimes.declaration import load_all
from tests.support import images, shells
from tests.support import service as support
from tests.support.attacks import (
    TRY,
    appeared,
    deploy_guest,
    deploy_probes,
    deploy_snapshot,
    kept,
    kinds,
    processes_with,
)
from tests.support.service import Service

GUEST = "pilotlight-test-attacked:1"


@pytest_asyncio.fixture(params=support.engines(support.REMAPPED), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == support.DOCKER:
            stack.enter_context(images.imported(GUEST, images.of_python()))
        running = await stack.enter_async_context(support.running(request.param))
        await deploy_probes(running)
        await deploy_snapshot(running, "restored")
        if request.param == support.DOCKER:
            await deploy_guest(running, "guest", GUEST)
        yield WithShells(**vars(running))


class WithShells(Service):
    """Has a `shell` to probe besides functions: one of the function `probe`."""

    async def probe(self, name: str, source: str) -> Any:
        if name != "shell":
            return await super().probe(name, source)
        program = (
            "import json, sys; scope = {}; exec(sys.stdin.read(), scope); print(json.dumps(scope['result']))"
        )
        answer, errors, ended = await shells.run(
            self, "probe", "/usr/bin/python3", "-c", program, typed=source
        )
        assert ended.code == 0, errors
        return json.loads(answer)


@pytest.fixture(params=["probe", "native", "restored"])
def function(request: pytest.FixtureRequest) -> str:
    """A function that runs Python: forked from a zygote, a program of its own, forked from a snapshot."""
    return str(request.param)


@pytest.fixture(params=["probe", "native", "restored", "shell", "guest"])
def python(request: pytest.FixtureRequest) -> str:
    """What runs Python: such a function, the command of a shell, or a function in an image of its own."""
    return str(request.param)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_where_the_engine_forks_there_is_a_function_from_a_snapshot(service: Service) -> None:
    functions = {f.name: f for f in await service.client.control.functions()}
    assert functions["restored"].snapshot == service.forks, functions["restored"].snapshot_refusal
    assert not functions["probe"].snapshot


# Files of the host


async def test_nothing_of_the_host_can_be_read(service: Service, python: str) -> None:
    data = service.data
    paths = [
        *(
            "/etc/shadow",
            "/etc/gshadow",
            "/etc/ssh",
            "/etc/machine-id",
            "/root",
            "/home",
            "/var/lib",
            "/var/log",
        ),
        *(
            "/opt",
            "/srv",
            "/mnt",
            "/media",
            "/boot",
            "/work",
            "/run/docker.sock",
            "/run/systemd",
            "/lost+found",
        ),
        *("/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/sys", "/proc/sysrq-trigger", "/proc/modules"),
        *("/proc/cmdline", "/proc/meminfo", "/proc/net/../2", "/sys/kernel", "/sys/fs/cgroup", "/dev/mem"),
        *(
            "/dev/kmsg",
            "/dev/sda",
            "/dev/vda",
            "/dev/tty",
            "/dev/pts",
            "/dev/kvm",
            "/dev/fuse",
            "/dev/net/tun",
        ),
        *(str(p) for p in (data.admin_key, data.root, data.registry, data.run, data.layers)),
    ]
    found = await service.probe(python, f"{TRY}\nresult = {{p: attempt(look, p) for p in {paths!r}}}")
    ways = _to_interpreters() | ({"/dev/pts": {"ptmx"}} if python == "shell" else {})  # its own terminals
    assert {
        path: what
        for path, what in found.items()
        if what != "ENOENT" and not (what[0] == "[" and set(ast.literal_eval(what)) <= ways.get(path, set()))
    } == {}


def _to_interpreters() -> dict[str, set[str]]:
    """Return what may be seen in folders above interpreters that lie elsewhere than in the system's."""
    ways: dict[str, set[str]] = {}
    for runtime in load_all().values():
        for place in (Path(i.folder) for i in runtime.find() if i.folder):
            for below, above in zip((place, *place.parents), place.parents, strict=False):
                ways.setdefault(str(above), set()).add(below.name)
    return ways


async def test_the_root_holds_what_a_program_needs_and_no_more(service: Service, python: str) -> None:
    source = "import os\nresult = {p: os.listdir(p) for p in ('/etc', '/dev', '/sys', '/run')}"
    found = await service.probe(python, source)
    assert (found["/sys"], found["/run"]) == ([], [])
    assert set(found["/dev"]) == {
        *(
            "fd",
            "full",
            "null",
            "ptmx",
            "pts",
            "random",
            "shm",
            "stderr",
            "stdin",
            "stdout",
            "tty",
            "urandom",
        ),
        "zero",
    }
    covered = {"ld.so.preload"} if python == "guest" else set()  # Docker leaves a file where it mounted one
    assert set(found["/etc"]) - covered <= {
        *("alternatives", "group", "hostname", "hosts", "ld.so.cache", "localtime", "mime.types", "mtab"),
        *("nsswitch.conf", "os-release", "passwd", "protocols", "resolv.conf", "services", "ssl"),
    }


async def test_the_ways_out_of_the_root_are_closed(service: Service, python: str) -> None:
    source = f"""{TRY}
inside = set(os.listdir("/"))
roots = ["/proc/1/root", "/proc/self/root", "/proc/self/cwd/../../../../..", "/..", "/dev/fd/../root"]
result = [attempt(lambda p=p: set(os.listdir(p)) == inside) for p in roots]
"""
    assert set(await service.probe(python, source)) <= {"True", "EACCES"}


async def test_no_descriptor_leads_to_the_host(service: Service, python: str) -> None:
    source = f"{TRY}\nresult = [links(), *(attempt(links, p) for p in os.listdir('/proc') if p.isdigit())]"
    own, *others = await service.probe(python, source)
    assert kinds(own) <= {
        "pipe",
        "socket",
        "anon_inode",
        "/dev/null",
        *(k for k in kinds(own) if k.startswith("/proc/")),
    }
    for links in others:
        assert links == "EACCES" or kinds(eval(links)) <= {
            *kinds(own),
            "pipe",
            "socket",
            "/dev/null",
            "anon_inode",
        }
    # null, twice the output, the event loop and its wake-up, the listener, this connection, the folder
    assert len(own) <= 9


async def test_no_descriptor_leads_to_the_host_during_the_import(service: Service) -> None:
    source = f"{TRY}\nimport json\nfound = links()\ndef handle(request):\n    return json.dumps(found)\n"
    await service.deploy("early", {"handler.py": source})
    links = json.loads((await service.ask("early"))[1])
    assert kinds(links) <= {"pipe", "socket", "anon_inode", "/dev/null", "/proc/1/fd"}
    assert len(links) <= 7


async def test_nothing_can_be_written_but_tmp(service: Service, python: str) -> None:
    source = f"""{TRY}
refusals = ("EROFS", "EACCES", "EPERM", "ENOENT")
result = {{}}
for folder, _, _ in os.walk("/"):
    if not folder.startswith(("/proc", "/tmp", "/usr/share", "/usr/lib/")):
        answer = attempt(lambda: open(folder + "/written-by-a-function", "wb"))
        if answer not in refusals:
            result[folder] = answer
for path in ("/etc/passwd", "/function/handler.py", "/function/server", "/usr/bin/env", "/dev/null", "/"):
    for what in (lambda: os.chmod(path, 0o777), lambda: os.rename(path, path + "x"), lambda: os.truncate(path, 0)):
        answer = attempt(what)
        if answer not in refusals and path not in ("/dev/null", "/"):
            result[path] = answer
"""
    assert await service.probe(python, source) == {}


async def test_links_lead_across_no_mount(service: Service, python: str) -> None:
    source = f"""{TRY}
files = ["/function/handler.py", "/function/server", "/usr/bin/env", "/etc/passwd", "/proc/self/status"]
hard = [attempt(os.link, path, "/tmp/linked") for path in files if os.path.exists(path)]
os.symlink("/", "/tmp/root")
os.symlink("/tmp/root/etc/passwd", "/tmp/way")
def write(path):
    open(path, "a").close()
result = [hard, attempt(write, "/tmp/way"), attempt(look, "/tmp/root/root"), attempt(os.rename, "/etc/passwd", "/tmp/x")]
os.unlink("/tmp/root"), os.unlink("/tmp/way")
"""
    hard, soft, root, moved = await service.probe(python, source)
    assert len(hard) >= 3
    assert set(hard) <= {"EXDEV", "EPERM", "EROFS"}
    assert (soft in ("EROFS", "EACCES"), root, moved in ("EXDEV", "EROFS", "EACCES")) == (
        True,
        "ENOENT",
        True,
    )


async def test_tmp_is_bounded_in_bytes_and_in_files(service: Service) -> None:
    await service.deploy("filling", {"handler.py": support.PROBE}, memory=64 << 20)
    source = f"""{TRY}
def fill():
    with open("/tmp/big", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * (1 << 20))
            if file.tell() > 1 << 30:
                return
def litter():
    for number in range(1_000_000):
        open(f"/tmp/{{number}}", "wb").close()
result = [attempt(fill), os.path.getsize("/tmp/big"), os.unlink("/tmp/big"), attempt(litter), len(os.listdir("/tmp"))]
"""
    bytes_end, size, _, files_end, files = await service.probe("filling", source)
    assert (bytes_end, files_end) == ("ENOSPC", "ENOSPC")
    assert size <= 32 << 20
    assert files <= 8192


async def test_tmp_and_memory_files_count_towards_the_memory_limit(service: Service) -> None:
    if not await kept(service, "memory limit of each function"):
        return
    await service.deploy("hoarding", {"handler.py": support.PROBE}, memory=64 << 20)
    lease = await service.acquire("hoarding")
    source = """
import os
open("/tmp/some", "wb").write(b"x" * (30 << 20))
held = os.memfd_create("more")
for _ in range(60):
    os.write(held, b"x" * (1 << 20))
result = 1
"""
    with pytest.raises(EOFError):
        await support.request(lease, source)
    assert (await service.client.invocations.diagnose(lease.id))[0] == "out-of-memory"


async def test_no_device_can_be_made(service: Service, python: str) -> None:
    source = f"""{TRY}
import stat
kinds = (stat.S_IFBLK, stat.S_IFCHR)
result = [attempt(os.mknod, f"/tmp/device-{{kind}}", kind | 0o666, os.makedev(1, 1)) for kind in kinds]
"""
    assert await service.probe(python, source) == ["EPERM", "EPERM"]


# System calls

_CALLS = {
    "mount": '165, b"none", b"/tmp", b"tmpfs", 0, None',
    "umount2": '166, b"/tmp", 2',
    "pivot_root": '155, b"/tmp", b"/tmp"',
    "chroot": '161, b"/tmp"',
    "unshare(user)": "272, 0x10000000",
    "unshare(mount)": "272, 0x20000",
    "setns": "308, 0, 0",
    "open_tree": '428, -100, b"/", 1',
    "move_mount": '429, -100, b"/tmp", -100, b"/proc", 0',
    "fsopen": '430, b"tmpfs", 0',
    "fspick": '433, -100, b"/", 0',
    "mount_setattr": '442, -100, b"/", 0, None, 0',
    "ptrace": "101, 0, 0, 0, 0",
    "process_vm_readv": "310, 1, None, 0, None, 0, 0",
    "process_vm_writev": "311, 1, None, 0, None, 0, 0",
    "kcmp": "312, 1, 1, 0, 0, 0",
    "pidfd_getfd": "438, 0, 0, 0",
    "bpf": "321, 5, None, 0",
    "perf_event_open": "298, None, 0, -1, -1, 0",
    "userfaultfd": "323, 0",
    "io_uring_setup": "425, 8, None",
    "keyctl": "250, 0, -3, 0",
    "add_key": '248, b"user", b"x", b"y", 1, -3',
    "request_key": '249, b"user", b"x", None, -3',
    "name_to_handle_at": '303, -100, b"/", None, None, 0',
    "open_by_handle_at": "304, -100, None, 0",
    "fanotify_init": "300, 0, 0",
    "personality": "135, 0x0040000",
    "modify_ldt": "154, 0, None, 0",
    "clone(user)": "56, 0x10000011, None, None, None, None",
    "clone(net)": "56, 0x40000011, None, None, None, None",
    "clone3": "435, None, 0",
    "init_module": "175, None, 0, None",
    "finit_module": "313, 0, None, 0",
    "kexec_load": "246, 0, 0, None, 0",
    "reboot": "169, 0, 0, 0, None",
    "swapon": '167, b"/tmp/x", 0',
    "syslog": "103, 3, None, 0",
    "settimeofday": "164, None, None",
    "clock_settime": "227, 0, None",
    "sethostname": '170, b"x", 1',
    "iopl": "172, 3",
    "ioperm": "173, 0, 1, 1",
    "acct": "163, None",
    "quotactl": "179, 0, None, 0, None",
    "ioctl(TIOCSTI)": "16, 0, 0x5412, None",
    "one that no kernel has": "9999",
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86_64")
async def test_system_calls_that_lead_outside_are_refused(service: Service, python: str) -> None:
    calls = ",\n".join(f"{name!r}: call({arguments})" for name, arguments in _CALLS.items())
    source = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(number, *arguments) != -1:
        return "done"
    return errno.errorcode[ctypes.get_errno()]
result = {{{calls}}}
"""
    answers = await service.probe(python, source)
    expected = dict.fromkeys(_CALLS, "EPERM")
    assert answers == expected | {"clone3": "ENOSYS", "one that no kernel has": "ENOSYS"}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="these are calls of x86")
@pytest.mark.parametrize(
    "code",
    [b"\xb8\x14\x00\x00\x00\xcd\x80\xc3", b"\xb8\x27\x00\x00\x40\x0f\x05\xc3"],
    ids=["getpid of i386", "getpid of x32"],
)
async def test_the_calls_of_another_architecture_kill_the_process(service: Service, code: bytes) -> None:
    source = f"""
import ctypes, mmap, os
pid = os.fork()
if pid == 0:
    page = mmap.mmap(-1, 4096, prot=7)
    page.write({code!r})
    ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    os._exit(0)
status = os.waitpid(pid, 0)[1]
result = os.WTERMSIG(status) if os.WIFSIGNALED(status) else "it went on"
"""
    assert await service.probe("probe", source) == signal.SIGSYS


async def test_only_ordinary_sockets_can_be_made(service: Service, python: str) -> None:
    source = f"""{TRY}
import socket as s
def make(*arguments):
    s.socket(*arguments).close()
odd = {{
    "raw": (s.AF_INET, s.SOCK_RAW, 1), "raw6": (s.AF_INET6, s.SOCK_RAW, 58), "ping": (s.AF_INET, s.SOCK_DGRAM, 1),
    "packet": (s.AF_PACKET, s.SOCK_RAW, 0x300), "old packet": (s.AF_INET, 10, 0x300),
    "sctp": (s.AF_INET, s.SOCK_STREAM, 132), "mptcp": (s.AF_INET, s.SOCK_STREAM, 262),
    "udplite": (s.AF_INET, s.SOCK_DGRAM, 136), "vsock": (40, s.SOCK_STREAM, 0), "alg": (38, s.SOCK_SEQPACKET, 0),
    "netfilter": (16, s.SOCK_RAW, 12), "audit": (16, s.SOCK_RAW, 9), "bluetooth": (31, s.SOCK_RAW, 0),
    "key": (15, s.SOCK_RAW, 2), "xdp": (44, s.SOCK_RAW, 0), "tipc": (30, s.SOCK_RAW, 0),
}}
ordinary = [(f, k, 0) for f in (s.AF_UNIX, s.AF_INET, s.AF_INET6) for k in (s.SOCK_STREAM, s.SOCK_DGRAM)]
ordinary += [(s.AF_INET, s.SOCK_STREAM, 6), (s.AF_INET, s.SOCK_DGRAM, 17)]
result = [{{name: attempt(make, *kind) for name, kind in odd.items()}}, [attempt(make, *kind) for kind in ordinary]]
"""
    refused, ordinary = await service.probe(python, source)
    assert {
        name: answer for name, answer in refused.items() if answer not in ("EPERM", "EPROTONOSUPPORT")
    } == {}
    assert set(ordinary) <= {"None", "EAFNOSUPPORT"}


# Privileges


async def test_no_privilege_is_left(service: Service, python: str) -> None:
    source = "result = dict(l.split(':', 1) for l in open('/proc/self/status').read().splitlines())"
    status = {name: text.strip() for name, text in (await service.probe(python, source)).items()}
    sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert {name: int(status[name], 16) for name in sets} == dict.fromkeys(sets, 0)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    # An ordinary user can't leave its own group; it is the only one that means anything in there
    assert set(status["Groups"].split()) <= {"65534", status["Gid"].split()[0]}
    assert "0" not in status["Uid"].split()


async def test_each_sandbox_has_a_user_of_its_own(service: Service) -> None:
    users = {await service.probe(name, "import os\nresult = os.getuid()") for name in ("probe", "native")}
    if await kept(service, "a user id of its own for each sandbox"):
        assert len(users) == 2
        remapped = service.mode == support.REMAPPED  # by dockerd, to users far from those of the host
        assert min(users) > (10_000 if remapped else 65_536)


async def test_set_uid_programs_gain_nothing(service: Service, python: str) -> None:
    source = """
import os, subprocess
script = "id -u; su -c 'id -u' root; mount -t tmpfs none /tmp; unshare -Ur id -u"
told = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
result = [bool(os.statvfs("/usr/bin").f_flag & os.ST_NOSUID), told.stdout.split(), os.getuid()]
"""
    without, users, own = await service.probe(python, source)
    assert without
    assert users == [str(own)]


async def test_users_groups_and_priorities_cannot_be_raised(service: Service, python: str) -> None:
    source = f"""{TRY}
import resource
actions = [
    (os.setuid, 0), (os.setgid, 0), (os.setgroups, [0]), (os.chown, "/tmp", 0, 0), (os.nice, -5),
    (os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
]
def more_files():
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 19, 1 << 19))
    except ValueError:
        raise PermissionError(errno.EPERM, "")
result = [attempt(*action) for action in actions] + [attempt(more_files)]
"""
    assert set(await service.probe(python, source)) <= {"EPERM", "EINVAL", "EACCES"}


# Processes


async def test_other_processes_are_invisible(service: Service, python: str) -> None:
    source = "import os\nresult = sorted(int(p) for p in os.listdir('/proc') if p.isdigit())"
    seen = await service.probe(python, source)
    assert seen[0] == 1
    assert len(seen) <= 2


async def test_the_first_process_of_a_sandbox_gives_nothing_away(service: Service, python: str) -> None:
    source = f"""{TRY}
def read(name):
    return open(f"/proc/1/{{name}}", "rb").read(65536).decode(errors="replace")
result = [attempt(read, name) for name in ("environ", "cmdline", "comm")]
"""
    for text in await service.probe(python, source):
        assert str(service.data.root) not in text
        assert str(support.ROOT) not in text
        assert "PILOTLIGHT_KEY" not in text


async def test_killing_everybody_kills_only_oneself(service: Service, function: str) -> None:
    bystander = await service.acquire("probe")
    killer = await service.acquire(function)
    with contextlib.suppress(EOFError):
        await support.request(killer, "import os\nos.kill(-1, 9)\nos.kill(1, 9)\nresult = 1")
    assert await support.request(bystander, "result = 2") == (200, "2")
    for lease in (bystander, killer):
        await service.client.invocations.stop(lease.id, "the test is over")


async def test_a_fork_bomb_is_bounded_and_gone_with_its_instance(service: Service) -> None:
    if not await kept(service, "limit of processes and threads"):
        return
    await service.deploy("bomb", {"handler.py": support.PROBE})
    lease = await service.acquire("bomb")
    source = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            os.execv("/bin/sleep", ["sleep", "7655"])
        count += 1
except OSError as error:
    result = [count, error.errno]
"""
    status, text = await support.request(lease, source)
    count, error = json.loads(text)
    assert (status, count < 200, error) == (200, True, errno.EAGAIN)
    assert await service.ask("probe", "result = 3") == (200, "3")
    await service.client.invocations.stop(lease.id, "it is a bomb")
    assert processes_with(b"sleep\x007655\x00", "cmdline") == []


async def test_processes_that_left_their_session_are_gone_with_their_instance(service: Service) -> None:
    lease = await service.acquire("probe")
    source = """
import subprocess
for _ in range(5):
    subprocess.Popen(["sleep", "7654"], start_new_session=True)
result = 1
"""
    assert await support.request(lease, source) == (200, "1")
    await appeared(b"sleep\x007654\x00", 5)
    await service.client.invocations.stop(lease.id, "it left processes behind")
    assert processes_with(b"sleep\x007654\x00", "cmdline") == []


# The network and other functions


async def test_the_loopback_of_the_host_is_out_of_reach(service: Service, python: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = f"""{TRY}
import socket
port = {listener.getsockname()[1]}
result = [attempt(socket.create_connection, (host, port), 2) for host in ("127.0.0.1", "localhost", "0.0.0.0")]
"""
        assert set(await service.probe(python, source)) == {"ECONNREFUSED"}


async def test_there_is_no_network_but_loopback(service: Service, python: str) -> None:
    source = f"""{TRY}
import socket
hosts = ["1.1.1.1", "169.254.169.254", "10.0.0.1", "172.17.0.1", "224.0.0.1"]
def send(host):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (host, 53))
result = [attempt(send, h) for h in hosts] + [attempt(socket.create_connection, (h, 80), 2) for h in hosts]
"""
    assert set(await service.probe(python, source)) == {"ENETUNREACH"}


async def test_abstract_sockets_of_the_host_are_out_of_reach(service: Service, python: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0pilotlight-attacked")
        listener.listen()
        source = f"{TRY}\nimport socket\nconnect = socket.socket(socket.AF_UNIX).connect\nresult = attempt(connect, '\\0pilotlight-attacked')"
        assert await service.probe(python, source) == "ECONNREFUSED"


async def test_the_sockets_of_the_platform_are_out_of_reach(service: Service, python: str) -> None:
    sockets = [str(path) for path in service.data.run.rglob("*") if path.is_socket()]
    assert str(service.data.socket("function-service")) in sockets
    sockets += ["/run/systemd/private", "/run/docker.sock", "/run/dbus/system_bus_socket"]
    source = f"{TRY}\nimport socket\nresult = [attempt(socket.socket(socket.AF_UNIX).connect, p) for p in {sockets!r}]"
    assert set(await service.probe(python, source)) == {"ENOENT"}


async def test_nobody_elses_secret_is_in_the_memory_of_a_function(service: Service, python: str) -> None:
    """Instances are forked from processes that others are forked from too: nothing may have stayed there."""
    secret = "canary-" + "0123456789abcdef" * 2
    await service.client.vault.put_secret("CANARY", secret)
    source = "import os\nkept = os.environ['CANARY'] * 9\n" + support.PROBE
    await service.deploy("knowing", {"handler.py": source}, secrets=("CANARY",))
    assert await service.probe("knowing", "import os\nresult = os.environ['CANARY']") == secret
    await service.deploy(
        "knowing-too", {"handler.py": "import time\ntime.sleep(0.05)\n" + source}, secrets=("CANARY",)
    )
    assert await service.probe("knowing-too", "result = 1") == 1
    look = """
import os, re
wanted, found, read = re.compile(("can" + "ary-").encode() + b"[0-9a-f]{32}"), [], 0
memory = os.open("/proc/self/mem", os.O_RDONLY)
for line in open("/proc/self/maps").read().splitlines():
    ends, modes = line.split()[:2]
    if modes[0] != "r" or "[v" in line:
        continue
    start, end = (int(number, 16) for number in ends.split("-"))
    for at in range(start, end, 1 << 20):
        try:
            piece = os.pread(memory, min((1 << 20) + 64, end - at), at)
        except OSError:
            continue
        read += len(piece)
        found += [match.decode() for match in wanted.findall(piece)]
os.close(memory)
result = [read, sorted(set(found))]
"""
    read, found = await service.probe("knowing", look)
    assert found == [secret]  # so it would be found
    read, found = await service.probe(python, look)
    assert read > 1 << 20
    assert found == []


async def test_two_functions_share_nothing(service: Service) -> None:
    await service.deploy("left", {"handler.py": support.PROBE})
    await service.deploy("right", {"handler.py": support.PROBE})
    left = await service.acquire("left")
    source = """
import builtins, ctypes, os, socket
open("/tmp/left", "w").write("left")
builtins.held = [socket.create_server(("127.0.0.1", 4711)), socket.socket(socket.AF_UNIX)]
held[1].bind("\\0left")
held[1].listen()
result = ctypes.CDLL(None).shmget(4711, 4096, 0o1666)
"""
    status, made = await support.request(left, source)
    assert (status, int(made) >= 0) == (200, True)
    source = f"""{TRY}
import ctypes, socket
result = [os.listdir("/tmp"), attempt(socket.create_connection, ("127.0.0.1", 4711)),
          attempt(socket.socket(socket.AF_UNIX).connect, "\\0left"), ctypes.CDLL(None).shmget(4711, 4096, 0),
          [p for p in os.listdir("/proc") if p.isdigit()]]
"""
    assert await service.probe("right", source) == [[], "ECONNREFUSED", "ECONNREFUSED", -1, ["1"]]
    await service.client.invocations.stop(left.id, "the test is over")


async def test_a_node_function_is_confined_likewise(service: Service) -> None:
    if not any(name.startswith("node") for name in await service.client.builds.runtimes()):
        pytest.skip("this machine has no Node")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = f"""
const fs = require("fs"), net = require("net"), child = require("child_process");
const attempt = (action) => {{ try {{ return String(action()); }} catch (error) {{ return error.code; }} }};
const connect = (options) => new Promise((done) => {{
  const socket = net.connect(options, () => done("connected"));
  socket.on("error", (error) => done(error.code));
}});
return {{
  answers: [
    attempt(() => fs.readFileSync("/etc/shadow")),
    attempt(() => fs.readdirSync({json.dumps(str(service.data.root))})),
    attempt(() => fs.writeFileSync("/function/x", "x")),
    await connect({{host: "127.0.0.1", port: {listener.getsockname()[1]}}}),
    await connect({{host: "1.1.1.1", port: 80}}),
  ],
  status: fs.readFileSync("/proc/self/status", "utf8"),
  processes: fs.readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name)).length,
  unshare: child.spawnSync("unshare", ["-Ur", "true"]).status,
  links: fs.readdirSync("/proc/self/fd").map((name) => attempt(() => fs.readlinkSync("/proc/self/fd/" + name))),
}};
"""
        found = await service.probe("node", source)
    assert found["answers"] == ["ENOENT", "ENOENT", "EROFS", "ECONNREFUSED", "ENETUNREACH"]
    assert found["unshare"] != 0
    assert found["processes"] == 2
    status = dict(line.split(":", 1) for line in found["status"].splitlines())
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    assert kinds(found["links"]) <= {"pipe", "socket", "anon_inode", "/dev/null", "ENOENT", "/proc/2/fd"}
