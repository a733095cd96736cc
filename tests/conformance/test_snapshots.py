"""Instances that are forked from a snapshot: as quick as promised, right, and as well kept apart as any other."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support import service as support
from tests.support.service import Service

SLOW = """
import json, os, random, time, uuid
TOKEN = os.urandom(8).hex()  # the same in all copies of one import
deadline = time.monotonic() + 0.05
while time.monotonic() < deadline: pass
%s
def handle(request):
    scope = {"TOKEN": TOKEN, **globals()}
    exec(request.text, scope)
    return json.dumps(scope["result"])
"""


@pytest_asyncio.fixture(params=support.modes(), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with support.running(request.param) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def fresh(service: Service, name: str, source: str = "result = TOKEN") -> Any:
    """Run source in an instance that was started for it."""
    lease = await service.acquire(name)
    assert lease.cold
    status, text = await support.request(lease, source)
    await service.client.invocations.stop(lease.id, "test")
    assert status == 200, text
    return json.loads(text)


async def snapshot_of(service: Service, name: str, import_: str = "", **config: Any) -> None:
    """Deploy a slow function and wait until its instances come from a snapshot."""
    await service.deploy(name, {"handler.py": SLOW % import_}, **config)
    tokens = [await fresh(service, name), await fresh(service, name)]
    async with asyncio.timeout(60):
        while tokens[-1] != tokens[-2]:
            tokens.append(await fresh(service, name))


async def test_a_slow_import_happens_once_for_many_instances(service: Service) -> None:
    await snapshot_of(service, "slow")
    tokens = {await fresh(service, "slow") for _ in range(5)}
    assert len(tokens) == 1


async def test_copies_have_random_numbers_of_their_own(service: Service) -> None:
    await snapshot_of(service, "random")
    source = "import secrets, tempfile\nresult = [random.random(), uuid.uuid4().hex, tempfile.mktemp(), secrets.token_hex()]"
    answers = [await fresh(service, "random", source) for _ in range(3)]
    for values in zip(*answers, strict=True):
        assert len(set(values)) == 3


async def test_copies_see_the_present_time(service: Service) -> None:
    await snapshot_of(service, "clock")
    first, second = [await fresh(service, "clock", "result = time.time()") for _ in range(2)]
    assert second > first


async def test_hooks_run_before_the_snapshot_and_after_each_restore(service: Service) -> None:
    await snapshot_of(
        service,
        "hooked",
        "from pilotlight import after_restore, before_snapshot\n"
        "seen = []\n"
        "before_snapshot(lambda: seen.append('before'))\n"
        "after_restore(lambda: seen.append('after'))\n",
    )
    assert await fresh(service, "hooked", "result = seen") == ["before", "after"]


async def test_after_restore_hooks_run_without_a_snapshot_too(service: Service) -> None:
    source = "from pilotlight import after_restore\nseen = []\nafter_restore(lambda: seen.append('after'))\n"
    await service.deploy(
        "unhurried", {"handler.py": source + support.PROBE.replace("scope = {}", "scope = globals()")}
    )
    assert await fresh(service, "unhurried", "result = seen") == ["after"]


@pytest.mark.parametrize(
    ("name", "import_"),
    [
        (
            "refusing",
            "from pilotlight import before_snapshot\n@before_snapshot\ndef no(): raise RuntimeError('no')\n",
        ),
        (
            "threaded",
            "import threading\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n",
        ),
        ("writing", "open('/tmp/cache', 'w').write('x')\n"),
    ],
)
async def test_what_a_fork_would_break_gets_no_snapshot(service: Service, name: str, import_: str) -> None:
    await service.deploy(name, {"handler.py": SLOW % import_})
    tokens = [await fresh(service, name) for _ in range(6)]
    assert len(set(tokens)) == 6


async def test_a_new_revision_never_runs_in_a_copy_of_the_old_one(service: Service) -> None:
    await snapshot_of(service, "replaced", "VERSION = 1")
    await service.deploy("replaced", {"handler.py": SLOW % "VERSION = 2"})
    assert await fresh(service, "replaced", "result = VERSION") == 2


async def test_a_changed_secret_reaches_copies(service: Service) -> None:
    await service.client.vault.put_secret("TOKEN", "old")
    await snapshot_of(service, "secretive", "SECRET = os.environ['TOKEN']", secrets=("TOKEN",))
    await service.client.vault.put_secret("TOKEN", "new")
    async with asyncio.timeout(60):
        while await fresh(service, "secretive", "result = SECRET") != "new":
            pass


async def test_copies_are_confined_like_every_instance(service: Service) -> None:
    await snapshot_of(service, "confined")
    source = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(*call):
    return libc.syscall(*call) == -1 and ctypes.get_errno() in (1, 38)
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
def raises(function):
    try: function()
    except OSError: return True
    return False
result = {
    "capabilities": {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16},
    "filtered": status["Seccomp"] == "2" and status["NoNewPrivs"] == "1",
    "unshare": all(refused(272, flags) for flags in (0x20000000, 0x10000000, 0x6e020000, 0x40000000)),
    "setns": refused(308, os.open("/proc/self/ns/pid", os.O_RDONLY), 0x20000000),
    "mount": refused(165, b"none", b"/tmp", b"tmpfs", 0, 0) and refused(166, b"/tmp", 2) and refused(166, b"/proc", 2),
    "read-only": raises(lambda: open("/function/x", "w")) and raises(lambda: open("/x", "w")),
    "alone": sorted(name for name in os.listdir("/proc") if name.isdecimal()) == ["1"],
    "first": os.getpid() == 1,
    "tmp": os.listdir("/tmp") == [],
    "host": raises(lambda: os.listdir("/root")) and not os.path.exists("/home"),
    "outside": raises(lambda: socket.create_connection(("127.0.0.1", 22), 1)),
    "data": socket.create_connection(("127.0.0.1", 8001), 1) is not None,
}
"""
    answers = await fresh(service, "confined", source)
    assert [name for name, kept in answers.items() if not kept] == []


async def test_copies_of_one_snapshot_are_kept_apart_from_each_other(service: Service) -> None:
    await snapshot_of(service, "apart", max_instances=5)
    first, second = await service.acquire("apart"), await service.acquire("apart")
    leave = """
import socket, threading
open("/tmp/left", "w").write("mine")
server = socket.create_server(("127.0.0.1", 9999))
hidden = socket.socket(socket.AF_UNIX); hidden.bind("\\0name"); hidden.listen()
globals()["kept"] = [server, hidden]
import builtins; builtins.kept = [server, hidden]
result = [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup")]
"""
    _, namespaces = await support.request(first, leave)
    look = """
import socket
def reaches(family, address):
    try: socket.socket(family).connect(address)
    except OSError: return False
    return True
result = [
    os.path.exists("/tmp/left"), reaches(socket.AF_INET, ("127.0.0.1", 9999)), reaches(socket.AF_UNIX, "\\0name"),
    [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup")],
]
"""
    _, text = await support.request(second, look)
    found = json.loads(text)
    assert found[:3] == [False, False, False]
    assert not set(found[3]) & set(json.loads(namespaces))
    for lease in (first, second):
        await service.client.invocations.stop(lease.id, "test")


async def test_nothing_of_an_instance_reaches_the_next_one(service: Service) -> None:
    await snapshot_of(service, "clean", "STATE = []\n")
    assert await fresh(service, "clean", "STATE.append(1)\nresult = STATE") == [1]
    assert await fresh(service, "clean", "STATE.append(2)\nresult = STATE") == [2]


async def test_a_function_that_ends_is_diagnosed_as_ever(service: Service) -> None:
    await snapshot_of(service, "ending")
    lease = await service.acquire("ending")
    with pytest.raises(EOFError):
        await support.request(lease, "print('farewell', flush=True)\nos._exit(6)")
    kind, detail, lines = await service.client.invocations.diagnose(lease.id)
    assert kind == "crashed"
    assert "code 6" in detail
    assert lines == ["farewell"]


async def test_a_hostile_import_cannot_use_what_forking_needs(service: Service) -> None:
    """The snapshot itself runs the import with one capability; this is what the import can do with it."""
    import_ = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    return [libc.syscall(*arguments), ctypes.get_errno()]
TRIED = {
    "user namespace": call(272, 0x10000000), "all at once": call(272, 0x7e020000), "mount": call(165, b"none", b"/tmp", b"tmpfs", 0, 0),
    "unmount": call(166, b"/tmp", 2), "open_tree": call(428, -100, b"/", 1), "fsopen": call(430, b"tmpfs", 0),
    "mount namespace": call(308, os.open("/proc/self/ns/mnt", os.O_RDONLY), 0x20000), "pivot_root": call(155, b"/tmp", b"/tmp"),
    "hostname": call(170, b"x", 1), "bpf": call(321, 0, 0, 0), "keyctl": call(250, 0, 0), "chroot": call(161, b"/tmp"),
}
"""
    await snapshot_of(service, "hostile", import_)
    tried = await fresh(service, "hostile", "result = TRIED")
    assert {
        name: answer for name, answer in tried.items() if answer[0] != -1 or answer[1] not in (1, 38)
    } == {}


async def test_copies_have_the_way_out_that_the_manifest_allows(service: Service) -> None:
    await snapshot_of(service, "outgoing", egress=("example.com:443",))
    source = "import socket\nresult = [os.environ['HTTPS_PROXY'], socket.create_connection(('127.0.0.1', 8002), 1) is not None]"
    for _ in range(3):
        assert await fresh(service, "outgoing", source) == ["http://127.0.0.1:8002", True]
