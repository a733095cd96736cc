"""Ways out of a sandbox: functions with an allow-list that want to reach what is not on it.

The function service and the data API run as they do on a platform; what is to be reached listens on this
machine's loopback, which is exactly what a hostile function wants.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support import service as support
from tests.support.service import Service

_START = """
import os, sys
from pathlib import Path
from pilotlight.privileges import drop
if int(sys.argv[1]):
    drop(int(sys.argv[1]), keep=map(Path, sys.argv[2:]))
os.execv(sys.executable, [sys.executable, "-m", "cli.main", "baas", "--data", sys.argv[2]])
"""

ASK = """
import socket
def ask(request, port=8002):
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request.encode())
        connection.settimeout(10)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
            if answer.startswith(b"HTTP/1.1 200 Connection established"):
                break  # a tunnel, which ends when we do
    return answer.decode("latin-1")
def connect(target, more=""):
    return ask(f"CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n{more}\\r\\n")
def status(answer):
    return int(answer.split()[1])
"""
"""For the start of an attack: requests to the proxy of the sandbox, as bytes."""


@pytest_asyncio.fixture(params=support.modes(), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with support.running(request.param) as running, _data_api(running, request.param):
        yield running


@contextlib.asynccontextmanager
async def _data_api(service: Service, user: int) -> AsyncIterator[None]:
    outside = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
    environment = {name: text for name, text in os.environ.items() if name.lower() not in outside}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _START, str(user if user != os.geteuid() else 0), str(service.data.root)),
        cwd=support.ROOT,
        env=environment,
    )
    try:
        async with asyncio.timeout(60):
            while process.returncode is None and not service.data.socket("listeners").exists():
                await asyncio.sleep(0.02)
        yield
    finally:
        process.terminate()
        async with asyncio.timeout(20):
            await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inside() -> AsyncIterator["Inside"]:
    """A server of this machine that nobody outside may reach."""
    server = Inside()
    await server.start()
    yield server
    server.server.close()


class Inside:
    """Answers each request with a redirect to what it was told, and keeps what came."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.location = "/"

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            head = (await reader.read(65536)).decode("latin-1")
            self.came.append(head.partition("\r\n")[0])
            answer = f"HTTP/1.1 302 Found\r\nLocation: {self.location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            writer.write(answer.encode())
            await writer.drain()
        writer.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def asked(service: Service, name: str, source: str) -> Any:
    """Run source with the tools of this page in a function; it calls its result `result`."""
    status, text = await service.ask(name, ASK + source)
    assert status == 200, text
    return json.loads(text)


async def test_without_an_entry_there_is_no_way_out_at_all(service: Service) -> None:
    await service.deploy("closed", {"handler.py": support.PROBE})
    source = """
import os
try:
    ask("CONNECT example.org:443 HTTP/1.1\\r\\n\\r\\n")
    result = "connected"
except ConnectionRefusedError:
    result = [name for name in os.environ if "PROXY" in name.upper()]
"""
    assert await asked(service, "closed", source) == []


@pytest.mark.parametrize("snapshot", [False, True], ids=["forked", "snapshot"])
async def test_only_what_is_named_is_reached_however_it_is_spelled(
    service: Service, inside: Inside, snapshot: bool
) -> None:
    name, port = f"spelling-{'copy' if snapshot else 'own'}", inside.port
    egress = (f"127.0.0.1:{port}", "example.org:443")
    slow = "import time\ntime.sleep(0.05)\n" if snapshot else ""
    await service.deploy(name, {"handler.py": slow + support.PROBE}, egress=egress)
    if snapshot:
        for _ in range(6):
            lease = await service.acquire(name)
            await service.client.invocations.stop(lease.id, "the next one shall be started anew")
    came = len(inside.came)
    hosts = [
        *("127.0.0.1", "localhost", "127.1", "0.0.0.0", "2130706433", "0x7f000001", "0177.0.0.1"),
        *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "169.254.169.254", "[fe80::1]", "10.0.0.1"),
        *("metadata.google.internal", "127.0.0.1.nip.io", "127.0.0.1@example.org", "example.org"),
    ]
    source = f"""
answers = {{}}
for host in {hosts!r}:
    answers[host] = status(connect(f"{{host}}:{port}"))
result = answers
"""
    answers = await asked(service, name, source)
    assert answers.pop("127.0.0.1") == 200
    assert {host: code for host, code in answers.items() if code not in (400, 403)} == {}
    source = f"""
result = [
    status(connect("127.0.0.1:22")),
    status(connect("169.254.169.254:80")),
    status(ask("GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\\r\\nHost: example.org\\r\\n\\r\\n")),
    status(ask("GET http://localhost:{port}/ HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n\\r\\n")),
    status(connect("169.254.169.254:80", "Host: 127.0.0.1:{port}\\r\\n")),
]
"""
    assert await asked(service, name, source) == [403] * 5
    assert len(inside.came) - came <= 1  # the one connection that is allowed, and says nothing


async def test_a_name_that_leads_to_this_machine_or_its_network_is_refused(
    service: Service, inside: Inside
) -> None:
    """What DNS rebinding comes to: the name is allowed, and resolves to where it must not lead."""
    await service.deploy(
        "rebinding", {"handler.py": support.PROBE}, egress=(f"localhost:{inside.port}", "*.localhost:80")
    )
    came = len(inside.came)
    source = f"""
answer = connect("localhost:{inside.port}")
plain = ask("GET http://localhost:{inside.port}/ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
result = [status(answer), status(plain), "127.0.0.1" in answer or "::1" in answer]
"""
    assert await asked(service, "rebinding", source) == [403, 403, True]
    assert len(inside.came) == came


@pytest.mark.parametrize(
    "place", ["http://169.254.169.254/latest/", "http://localhost:PORT/", "http://127.0.0.1:22/"]
)
async def test_a_redirect_leads_no_further_than_the_list(
    service: Service, inside: Inside, place: str
) -> None:
    await service.deploy("redirected", {"handler.py": support.PROBE}, egress=(f"127.0.0.1:{inside.port}",))
    inside.location = place.replace("PORT", str(inside.port))
    source = f"""
first = ask("GET http://127.0.0.1:{inside.port}/start HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
(place,) = [line.partition(": ")[2] for line in first.splitlines() if line.startswith("Location: ")]
result = [status(first), place, status(ask(f"GET {{place}} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"))]
"""
    assert await asked(service, "redirected", source) == [302, inside.location, 403]
    assert inside.came[-1] == "GET /start HTTP/1.1"


async def test_neither_the_data_api_nor_the_proxy_forwards_what_was_smuggled_behind_a_request(
    service: Service, inside: Inside
) -> None:
    await service.deploy("smuggling", {"handler.py": support.PROBE}, egress=(f"127.0.0.1:{inside.port}",))
    source = f"""
second = "GET http://169.254.169.254/ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"
result = [
    ask("GET http://127.0.0.1:{inside.port}/one HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" + second).count("HTTP/1.1"),
    status(ask("GET http://127.0.0.1:{inside.port}/\\r\\nX: y HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")),
    status(ask("GET /data/v1/x?app=other HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n", 8001)),
    status(ask("GET http://127.0.0.1:{inside.port}/ HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n", 8001)),
]
"""
    one, split, other, proxied = await asked(service, "smuggling", source)
    assert one == 1  # it is not answered by two servers
    assert split in (302, 400)
    assert (other, proxied) == (400, 404)  # its own app, and no other; no proxy
