"""Functions that want to hurt the function service itself, or other functions through it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pilotlight.problems import Problem
from tests.support import service as support
from tests.support.attacks import HELLO, deploy_probes, deploy_snapshot
from tests.support.service import Service


@pytest_asyncio.fixture(params=support.modes(), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with support.running(request.param) as running:
        await deploy_probes(running)
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")

_LIES = {
    "a grant of egress": b'{"egress": true}',
    "rubbish": b"\x00\xff not json",
    "deep nesting": b"[" * 100_000,
    "a list": b"[1, 2, 3]",
    "a number": b"7",
    "an attachment": b'{"mounts": ["/etc"], "handler": "x", "env": {}}',
    "both an error and ready": b'{"error": "I am not loaded", "ready": false}',
    "a fork": b'{"forked": "x", "exited": "y", "status": 0}',
}


@pytest.mark.parametrize("lie", _LIES.values(), ids=_LIES.keys())
async def test_what_is_said_on_the_control_channel_during_the_import_is_not_believed(
    service: Service, lie: bytes
) -> None:
    source = f"""
import os, socket
for descriptor in range(3, 64):
    try:
        channel = socket.socket(fileno=os.dup(descriptor))
        if channel.type == socket.SOCK_SEQPACKET:
            for _ in range(3):
                socket.send_fds(channel, [{lie[:50]!r} * {len(lie) // len(lie[:50])}], [0, 1])
    except OSError:
        pass
def handle(request):
    return "hello"
"""
    for egress in ((), ("example.org:443",)):
        revision = await service.prepare("liar", {"handler.py": source}, egress=egress)
        with pytest.raises(Problem) as caught:
            await service.client.builds.verify(revision)
        assert caught.value.kind == "init-failed"
        assert await service.ask("probe", "result = 4") == (200, "4")


async def test_a_function_that_says_it_is_ready_and_is_not_hurts_only_itself(service: Service) -> None:
    source = """
import os, socket
for descriptor in range(3, 64):
    try:
        channel = socket.socket(fileno=os.dup(descriptor))
        if channel.type == socket.SOCK_SEQPACKET:
            channel.send(b'{"ready": true}')
    except OSError:
        pass
os._exit(0)
"""
    await service.deploy("pretender", {"handler.py": source})
    with contextlib.suppress(Problem):  # it may be dead before it is ready, too
        lease = await service.acquire("pretender")
        assert (await service.client.invocations.diagnose(lease.id))[0] == "crashed"
    assert await service.ask("probe", "result = 6") == (200, "6")
    await service.client.control.delete_function("pretender")


_TALKING = """
import os, socket, time
if os.fork() == 0:
    time.sleep(0.3)  # till the snapshot has said that it is ready
    while True:
        for descriptor in range(3, 64):
            try:
                channel = socket.socket(fileno=os.dup(descriptor))
                if channel.type == socket.SOCK_SEQPACKET:
                    for message in MESSAGES:
                        socket.send_fds(channel, [message], [0, 1, 2, 0, 1, 2])
            except OSError:
                pass
"""


@pytest.mark.parametrize(
    "messages",
    [
        [b'{"forked": "x"}', b'{"exited": "y", "status": 0}', b'{"refused": "z", "error": "e"}'],
        [b'{"status": "none"}', b"{}", b'{"forked": {}}', b'{"forked": [], "exited": 1}'],
        [b"rubbish", b"[]", b'"x"'],
    ],
    ids=["unknown children", "unknown messages", "no messages"],
)
async def test_a_snapshot_that_talks_without_end_neither_stops_the_service_nor_fills_its_descriptors(
    service: Service, messages: list[bytes]
) -> None:
    before = _descriptors(service)
    source = _TALKING.replace("MESSAGES", repr(messages)) + support.PROBE
    await deploy_snapshot(service, "talking", source)
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(20):
        began = loop.time()
        await service.client.control.apps()
        waits.append(loop.time() - began)
        await asyncio.sleep(0.05)  # spread over the time in which it talks
    assert max(waits) < 1.0
    assert _descriptors(service) < before + 60
    for name in ("probe", "talking"):
        assert await service.ask(name, "result = 10") == (200, "10")
    await service.client.control.delete_function("talking")


def _descriptors(service: Service) -> int:
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("name", ["probe", "native"])
async def test_rubbish_on_every_descriptor_hurts_only_the_function(service: Service, name: str) -> None:
    lease = await service.acquire(name)
    source = """
import os
for descriptor in range(1, 64):
    for data in (b"rubbish" * 100, b'{"mounts": []}', b'{"exited": "x", "status": 0}\\n', b"\\0" * 4096):
        try:
            os.set_blocking(descriptor, False)
            os.write(descriptor, data)
        except OSError:
            pass
os._exit(0)
"""
    with contextlib.suppress(EOFError):
        await support.request(lease, source)
    await service.client.invocations.stop(lease.id, "it writes rubbish")
    assert await service.ask(name, "result = 5") == (200, "5")


_FLOODS = {
    "empty lines": "b'\\n' * 65536",
    "short lines": "b'x\\n' * 32768",
    "no line end": "b'x' * 65536",
    "zeros": "bytes(65536)",
    "not text": "bytes(range(256)) * 256",
}


@pytest.mark.parametrize("data", _FLOODS.values(), ids=_FLOODS.keys())
async def test_a_flood_of_output_does_not_stop_the_service(service: Service, data: str) -> None:
    await service.deploy("flooding", {"handler.py": support.PROBE})
    lease = await service.acquire("flooding")
    source = f"""
import os
for _ in range(3):
    if os.fork() == 0:
        os.closerange(3, 64)  # the connection, whose end the caller waits for
        while True:
            os.write(1, {data})
result = 1
"""
    assert await support.request(lease, source) == (200, "1")
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(30):
        began = loop.time()
        await service.client.control.apps()
        waits.append(loop.time() - began)
        await asyncio.sleep(0.05)  # spread over more than one second, which is the measure of the reader
    assert max(waits) < 1.0
    await service.client.invocations.stop(lease.id, "it floods")
    kept = sum(path.stat().st_size for path in service.data.logs.glob("flooding.*"))
    assert kept < 16 << 20
    await service.client.control.delete_function("flooding")
    assert not list(service.data.logs.glob("flooding.*"))


async def test_a_poisoned_sandbox_is_never_used_again(service: Service) -> None:
    poison = "open('/tmp/poison', 'w').write('x')\nimport builtins\nbuiltins.poisoned = True\nraise ValueError('poison')\n"
    revision = await service.prepare("poison", {"handler.py": poison})
    for _ in range(3):
        with pytest.raises(Problem, match="poison"):
            await service.client.builds.verify(revision)
    await service.deploy("clean", {"handler.py": support.PROBE})
    source = "import builtins, os\nresult = [hasattr(builtins, 'poisoned'), os.listdir('/tmp')]"
    for _ in range(6):
        lease = await service.acquire("clean")
        assert await support.request(lease, source) == (200, "[false, []]")
        await service.client.invocations.stop(lease.id, "the next one shall be fresh")


async def test_an_environment_that_is_too_big_is_told(service: Service) -> None:
    revision = await service.prepare("heavy", HELLO, env={"BIG": "x" * (300 << 10)})
    with pytest.raises(Problem, match="environment") as caught:
        await service.client.builds.verify(revision)
    assert caught.value.kind == "init-failed"


async def test_the_environment_cannot_be_used_to_take_over_the_first_process(service: Service) -> None:
    """It is set by whoever pushes, and only reaches the function once all privileges are gone."""
    env = {
        "LD_PRELOAD": "/function/evil.so",
        "PYTHONSTARTUP": "/function/evil.py",
        "BASH_ENV": "/function/evil.sh",
    }
    for name, files, config in (
        ("preloaded", {"handler.py": support.PROBE}, {}),
        (
            "preloaded-native",
            {"server": "#!/bin/sh\nexec perl -e 'exit 3'\n"},
            {"runtime": "native", "handler": "server"},
        ),
    ):
        revision = await service.prepare(name, files, env=env, **config)
        with contextlib.suppress(Problem):
            await service.client.builds.verify(revision)
    assert await service.ask("probe", "result = 8") == (200, "8")


async def test_a_handler_name_cannot_lead_out_of_the_function(service: Service) -> None:
    for handler in (
        "../../etc/passwd:x",
        "/etc/passwd:x",
        "os:nothing",
        "handler:__doc__",
        ":",
        "",
        "handler:handle:x",
    ):
        revision = await service.prepare("odd-handler", HELLO, handler=handler)
        with pytest.raises(Problem) as caught:
            await service.client.builds.verify(revision)
        assert caught.value.kind == "init-failed", handler
    for handler in ("../../bin/sh", "/bin/sh", "../usr/bin/env"):
        revision = await service.prepare("odd-native", HELLO, runtime="native", handler=handler)
        with pytest.raises(Problem):
            await service.client.builds.verify(revision)
    assert await service.ask("probe", "result = 9") == (200, "9")


async def test_descriptors_sent_to_the_caller_are_not_kept(service: Service) -> None:
    """A function can attach descriptors to what it writes on its Unix socket; whoever reads plainly drops them."""
    lease = await service.acquire("probe")
    source = """
import os, socket
for descriptor in range(3, 64):
    try:
        connection = socket.socket(fileno=os.dup(descriptor))
        if connection.type == socket.SOCK_STREAM and connection.family == socket.AF_UNIX and not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            connection.getpeername()
            socket.send_fds(connection, [b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n42"], [0] * 10)
            os._exit(0)
    except OSError:
        pass
"""
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert await support.request(lease, source) == (200, "42")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    await service.client.invocations.stop(lease.id, "the test is over")
