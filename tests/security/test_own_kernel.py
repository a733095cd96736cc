"""Attacks from within containers that have a kernel of their own: on what leads out of them, the tunnel.

What that kernel shows of itself is its own affair; that nothing of this machine is in reach is asserted.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from function_service.contract import Exit, Image
from tests.support import images, shells
from tests.support import service as support
from tests.support.attacks import TRY
from tests.support.service import Service

BOOT_ID = "/proc/sys/kernel/random/boot_id"
VOLUMES_SERVER = """#!/bin/sh
mkdir -p /tmp/www
for folder in /data /run/spool /tmp /function/deep; do
  if (echo >$folder/x); then echo yes; else echo no; fi
done >/tmp/www/index.html 2>/dev/null
exec busybox httpd -f -p "127.0.0.1:$PORT" -h /tmp/www
"""
ECHO = "def handle(request):\n    return request.body\n"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), *support.gvisor_needed()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    async with support.running(support.GVISOR) as running:
        await running.deploy("probe", {"handler.py": support.PROBE})
        await running.deploy("neighbour", {"handler.py": support.PROBE})
        yield running


@contextlib.asynccontextmanager
async def undisturbed(service: Service) -> AsyncIterator[None]:
    """See that a neighbour's instance, which ran before, answers afterwards."""
    lease = await service.acquire("neighbour")
    assert await support.request(lease, "kept = 1\nresult = 1") == (200, "1")
    yield
    assert await support.request(lease, "result = 2") == (200, "2")
    await service.client.invocations.release(lease.id)


async def test_it_is_another_kernel_and_the_guarantees_say_so(service: Service) -> None:
    release, boot = await service.probe(
        "probe", f"{TRY}\nresult = [os.uname().release, attempt(look, {BOOT_ID!r})]"
    )
    assert release != os.uname().release
    assert boot == "ENOENT"
    [told] = [g for g in await service.client.control.guarantees() if "root file system" in g.name]
    assert told.reason == "by the runtime runsc, with a kernel of its own"


async def test_nothing_of_this_machine_can_be_read_but_its_programs(service: Service) -> None:
    data = service.data
    paths = ["/etc/shadow", "/etc/ssh", "/root", "/home", "/var/lib", "/run/docker.sock", "/work", "/dev/mem"]
    paths += [str(p) for p in (data.admin_key, data.root, data.registry, data.run, data.layers)]
    found = await service.probe("probe", f"{TRY}\nresult = {{p: attempt(look, p) for p in {paths!r}}}")
    assert set(found.values()) <= {"ENOENT", "[]"}, found
    processes = await service.probe(
        "probe", "import os\nresult = [p for p in os.listdir('/proc') if p.isdigit()]"
    )
    assert len(processes) == 2  # process 1 and the function


async def test_code_and_programs_can_be_read_and_not_written(service: Service) -> None:
    source = f"""{TRY}
places = ("/function/x", "/function/handler.py", "/dependencies/x", "/tools/x", "/usr/x", "/etc/x", "/x", "/runtime/x")
result = [attempt(os.open, p, os.O_CREAT | os.O_WRONLY) for p in places]
"""
    assert set(await service.probe("probe", source)) <= {"EROFS", "EACCES", "ENOENT"}
    [code] = [p for p in service.data.layers.rglob("handler.py") if p.read_text() == support.PROBE]
    assert code.stat().st_nlink > 1  # a container has the very file


async def test_neither_a_network_nor_a_socket_of_this_machine_is_in_reach(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0pilotlight-attacked-from-afar")
        abstract.listen()
        source = f"""{TRY}
import socket
port = {listener.getsockname()[1]}
result = [attempt(socket.create_connection, (host, port), 2) for host in ("127.0.0.1", "1.1.1.1", "172.17.0.1")]
result.append(attempt(socket.socket(socket.AF_UNIX).connect, "\\0pilotlight-attacked-from-afar"))
"""
        here, *outside, unix = await service.probe("probe", source)
    assert (here, unix) == ("ECONNREFUSED", "ECONNREFUSED")
    assert set(outside) <= {"ENETUNREACH", "EHOSTUNREACH"}


@pytest.mark.parametrize(
    "nonsense",
    [
        "b'\\xff' * 100_000",
        "struct.pack('!IBI', 1, 1, 4) + struct.pack('!I', 7)",  # a connection to a listener that never was
        'struct.pack(\'!IBI\', 0, 0, 30) + b\'{"message": 1, "sent": ["x"]}\'',
    ],
)
async def test_who_speaks_in_the_tunnel_harms_only_his_own_instance(service: Service, nonsense: str) -> None:
    async with undisturbed(service):
        lease = await service.acquire("probe")
        source = f"""
import os, struct
for name in os.listdir("/proc/1/fd"):
    try:
        os.write(os.open(f"/proc/1/fd/{{name}}", os.O_WRONLY | os.O_NONBLOCK), {nonsense})
    except OSError:
        pass
result = 1
"""
        with contextlib.suppress(EOFError):  # the answer may go before the tunnel
            await support.request(lease, source)
        async with asyncio.timeout(60):  # it has cut itself off, and is ended
            while any(i.id == lease.instance for i in await service.client.control.instances("probe")):
                await asyncio.sleep(0.05)
    assert await service.ask("probe", "result = 3") == (200, "3")


async def test_who_ends_process_1_ends_only_his_own_instance(service: Service) -> None:
    async with undisturbed(service):
        lease = await service.acquire("probe")
        with contextlib.suppress(EOFError):
            await support.request(lease, "import os\nos.kill(1, 9)\nos.kill(-1, 9)\nresult = 1")
        with pytest.raises((EOFError, ConnectionRefusedError, FileNotFoundError)):
            await support.request(lease, "result = 1")
        kind, _, _ = await service.client.invocations.diagnose(lease.id)
        assert kind == "crashed"


async def test_a_flood_of_output_holds_up_nobody_else(service: Service) -> None:
    async with undisturbed(service):
        lease = await service.acquire("probe")
        flood = "import os\nfor _ in range(400): os.write(1, b'x' * 99_999 + b'\\n')\nresult = 1"
        flooding = asyncio.create_task(support.request(lease, flood))
        for _ in range(5):
            assert await service.ask("neighbour", "result = 4") == (200, "4")
        assert await flooding == (200, "1")
        await service.client.invocations.release(lease.id)


async def test_a_fork_bomb_and_a_memory_bomb_end_only_their_own_instances(service: Service) -> None:
    for bomb in (
        "import os\nwhile True:\n    os.fork()",
        "import threading\nwhile True:\n    threading.Thread(target=threading.Event().wait).start()",
        "kept = []\nwhile True:\n    kept.append(bytearray(1 << 24))",
        "with open('/tmp/x', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))",
    ):
        async with undisturbed(service):
            lease = await service.acquire("probe")
            with contextlib.suppress(EOFError, TimeoutError):
                async with asyncio.timeout(20):
                    await support.request(lease, bomb)
            await service.client.invocations.stop(lease.id, "it is a bomb")
            async with asyncio.timeout(60):
                while any(lease.instance in name for name in service.containers()):
                    await asyncio.sleep(0.05)
    assert await service.ask("probe", "result = 3") == (200, "3")


async def test_large_bodies_and_many_calls_at_once_arrive_whole(service: Service) -> None:
    await service.deploy("echo", {"handler.py": ECHO}, concurrency=8)
    lease = await service.acquire("echo")
    bodies = [os.urandom(1 << 20).hex() + str(n) for n in range(8)]
    assert [
        answer for _, answer in await asyncio.gather(*(support.request(lease, b) for b in bodies))
    ] == bodies
    await service.client.invocations.release(lease.id)


async def test_a_shell_has_a_terminal_in_it(service: Service) -> None:
    async with shells.shell(service, "probe", terminal=shells.TERMINAL) as opened:
        opened.type("tty; stty size; uname -r\n")
        shown = await opened.until("24 80\r\n")
        assert "/dev/pts/0\r\n" in shown
        opened.type("exit 5\n")
        assert await opened.end() == Exit(5)


async def test_where_the_processes_that_carry_die_their_containers_end_and_calls_work_again(
    service: Service,
) -> None:
    lease = await service.acquire("probe")
    [carrier] = [pid for pid in _children(service.process.pid) if "docker.carrying" in _command(pid)]
    os.kill(carrier, signal.SIGKILL)  # and all of its children with it
    async with asyncio.timeout(60):
        while await service.client.control.instances(None):
            await asyncio.sleep(0.05)
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        await support.request(lease, "result = 1")
    async with asyncio.timeout(60):
        while any(lease.instance in name for name in service.containers()):
            await asyncio.sleep(0.05)
    assert await service.ask("neighbour", "result = 5") == (200, "5")


async def test_volumes_of_an_image_can_be_read_and_not_written(service: Service) -> None:
    changes = ("VOLUME /data /run/spool /tmp /function/deep",)
    with support.client(service.dockerd) as api:
        data = images.packed({"data/kept": "x", "run/spool/kept": "x"})
        api.import_image_from_data(data, repository="volumes", tag="1", changes=changes)
    [image] = [i async for i in service.client.builds.image("volumes:1", "native") if isinstance(i, Image)]
    server = VOLUMES_SERVER
    await service.deploy(
        "volumes", {"handler": server}, image=image, runtime="native", handler="handler", timeout=60.0
    )
    status, text = await service.ask("volumes", method="GET")
    assert (status, text.split()) == (200, ["no", "no", "yes", "no"])


async def test_a_service_that_is_killed_leaves_no_container_behind() -> None:
    async with support.running(support.GVISOR) as service:
        await service.deploy("probe", {"handler.py": support.PROBE})
        assert await service.ask("probe", "result = 1") == (200, "1")
        assert service.containers()
        service.process.kill()
        with support.client(service.dockerd) as api:
            async with asyncio.timeout(60):
                wanted = {"label": f"pilotlight={service.data.label}"}
                while api.containers(filters=wanted):  # that run
                    await asyncio.sleep(0.1)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
