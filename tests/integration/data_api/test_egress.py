"""The proxy on real sockets: what passes, what is refused, and what it connects to."""

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from baas.dial import Dialer
from baas.egress import EgressProxy
from baas.egress_rules import IPAddress, Rules
from baas.metrics import Metrics
from pilotlight.settings import OutsideProxy


class Target:
    """A server that keeps what it was sent, answers, and ends."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(65536)
        self.received.append(data)
        if data == b"hold":
            await reader.read()
        writer.write(b"answer to " + data[:5])
        writer.close()


@pytest.fixture
async def target() -> AsyncIterator[tuple[Target, int]]:
    target = Target()
    server = await asyncio.start_server(target.handle, "127.0.0.1", 0)
    yield target, server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


class Names:
    """A resolver that answers what a test says, and counts how often it was asked."""

    def __init__(self, **addresses: str) -> None:
        self.addresses = {name.replace("_", "."): text.split() for name, text in addresses.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[IPAddress]:
        self.asked.append(host)
        if host not in self.addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return [ipaddress.ip_address(text) for text in self.addresses[host]]


class Proxy:
    """A running proxy, and how to talk to it."""

    def __init__(self) -> None:
        self.metrics = Metrics()

    async def start(
        self,
        entries: list[str],
        *,
        names: Names | None = None,
        outside: OutsideProxy | None = None,
        **more: Any,
    ) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        listener.setblocking(False)
        dialer = Dialer(outside, names or Names())
        self.service = EgressProxy(
            Rules(entries), dialer, self.metrics, connections=more.pop("connections", 8), **more
        )
        await self.service.start(listener)

    async def open(self, head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode())
        return reader, writer

    async def say(self, head: str) -> bytes:
        reader, writer = await self.open(head)
        try:
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()

    async def refused(self, head: str) -> dict[str, Any]:
        answer = await self.say(head)
        start, _, body = answer.partition(b"\r\n\r\n")
        document: dict[str, Any] = json.loads(body)
        assert start.startswith(f"HTTP/1.1 {document['status']} ".encode())
        assert b"Content-Type: application/problem+json" in start
        return document

    def outcomes(self, name: str) -> float:
        return (
            self.metrics.registry.get_sample_value("pilotlight_egress_connections_total", {"outcome": name})
            or 0
        )


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    yield proxy
    await proxy.service.close(0)


def connect(target: str) -> str:
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"


async def test_a_tunnel_passes_bytes_both_ways_until_both_ends_close(
    proxy: Proxy, target: tuple[Target, int]
) -> None:
    server, port = target
    await proxy.start([f"127.0.0.1:{port}"])
    reader, writer = await proxy.open(connect(f"127.0.0.1:{port}"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.read(), 5) == b"answer to hello"
    assert server.received == [b"hello"]
    writer.close()
    async with asyncio.timeout(5):
        while proxy.outcomes("served") != 1:
            await asyncio.sleep(0.005)


async def test_what_a_client_sends_early_is_not_lost(proxy: Proxy, target: tuple[Target, int]) -> None:
    _, port = target
    await proxy.start([f"127.0.0.1:{port}"])
    reader, writer = await proxy.open(connect(f"127.0.0.1:{port}") + "early")
    writer.write_eof()
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"answer to early")
    writer.close()


async def test_a_plain_request_passes_with_its_body(proxy: Proxy, target: tuple[Target, int]) -> None:
    server, port = target
    await proxy.start([f"127.0.0.1:{port}"])
    answer = await proxy.say(
        f"POST http://127.0.0.1:{port}/a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
    )
    assert answer == b"answer to POST "
    head = f"POST /a?b HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    assert b"".join(server.received) in (head.encode() + b"body", head.encode())


async def test_what_is_not_named_is_refused_with_the_entry_to_add(proxy: Proxy) -> None:
    names = Names(evil_example="8.8.8.8")
    await proxy.start(["api.example:443"], names=names)
    document = await proxy.refused(connect("Evil.example:443"))
    assert (document["status"], document["entry"]) == (403, "evil.example:443")
    assert "egress" in document["detail"]
    assert names.asked == []  # a name that may not be reached is not even looked up: names can carry secrets
    assert (await proxy.refused(connect("api.example:444")))["entry"] == "api.example:444"
    assert (await proxy.refused("GET http://evil.example/ HTTP/1.1\r\n\r\n"))["entry"] == "evil.example:80"
    assert proxy.outcomes("forbidden") == 3


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0"]
)
async def test_a_name_that_leads_inside_is_refused(proxy: Proxy, address: str) -> None:
    await proxy.start(["api.example:443"], names=Names(api_example=address))
    document = await proxy.refused(connect("api.example:443"))
    assert document["status"] == 403
    assert ipaddress.ip_address(document["entry"].rpartition(":")[0].strip("[]")) == ipaddress.ip_address(
        address
    )


async def test_a_name_that_leads_inside_passes_when_the_address_is_named_too(
    proxy: Proxy, target: tuple[Target, int]
) -> None:
    _, port = target
    names = Names(db_internal="127.0.0.1")
    await proxy.start([f"db.internal:{port}", f"127.0.0.1:{port}"], names=names)
    assert b"200 Connection established" in await proxy.say(connect(f"db.internal:{port}") + "hello")
    assert names.asked == ["db.internal"]  # once: what was checked is what was connected to


async def test_only_the_addresses_that_passed_the_check_are_tried(
    proxy: Proxy, target: tuple[Target, int]
) -> None:
    server, port = target
    # The second one would answer, but only the first is an entry, and there nobody listens
    await proxy.start(
        [f"two.example:{port}", f"127.0.0.2:{port}"], names=Names(two_example="127.0.0.2 127.0.0.1")
    )
    document = await proxy.refused(connect(f"two.example:{port}"))
    assert (document["status"], document["type"].rpartition(":")[2]) == (502, "unreachable")
    assert server.received == []


async def test_a_name_that_is_not_there_is_told(proxy: Proxy) -> None:
    await proxy.start(["none.example:443"])
    document = await proxy.refused(connect("none.example:443"))
    assert document["status"] == 502
    assert "none.example" in document["detail"]


async def test_what_is_no_request_is_refused(proxy: Proxy) -> None:
    await proxy.start([])
    assert (await proxy.refused("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))["status"] == 400
    assert (await proxy.refused("A: " + "x" * 70_000 + "\r\n\r\n"))["status"] == 400


async def test_a_client_that_goes_away_in_the_middle_of_a_request_is_no_fault(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    await proxy.start([])
    _, writer = await proxy.open("CONNECT a")
    writer.close()
    async with asyncio.timeout(5):
        while proxy.outcomes("broken") != 1:
            await asyncio.sleep(0.005)
    assert not caplog.records


async def test_a_silent_tunnel_is_ended(proxy: Proxy, target: tuple[Target, int]) -> None:
    _, port = target
    await proxy.start([f"127.0.0.1:{port}"], idle=0.1)
    reader, writer = await proxy.open(connect(f"127.0.0.1:{port}") + "hold")
    assert await asyncio.wait_for(reader.read(), 5) == b"HTTP/1.1 200 Connection established\r\n\r\n"
    writer.close()


async def test_connections_are_bounded(proxy: Proxy, target: tuple[Target, int]) -> None:
    _, port = target
    await proxy.start([f"127.0.0.1:{port}"], connections=2)
    held = [await proxy.open(connect(f"127.0.0.1:{port}") + "hold") for _ in range(2)]
    for reader, _ in held:
        await reader.readuntil(b"\r\n\r\n")
    assert (await proxy.refused(connect(f"127.0.0.1:{port}")))["status"] == 429
    for _, writer in held:
        writer.close()


async def test_closing_breaks_tunnels_off(proxy: Proxy, target: tuple[Target, int]) -> None:
    _, port = target
    await proxy.start([f"127.0.0.1:{port}"])
    reader, writer = await proxy.open(connect(f"127.0.0.1:{port}") + "hold")
    await reader.readuntil(b"\r\n\r\n")
    await proxy.service.close(0)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    with pytest.raises(OSError, match=r".*"):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.close()


class TestBehindAnotherProxy:
    """The machine reaches the outside only through a proxy of its own."""

    @pytest.fixture
    async def outer(self) -> AsyncIterator[tuple[OutsideProxy, list[bytes]]]:
        heads: list[bytes] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head)
            if b"denied.example" in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nVia: outer\r\n\r\n")
                writer.write(b"tunnelled " + await reader.read(65536))
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        yield OutsideProxy("127.0.0.1", port, authorization="Basic xyz", direct=("near.example",)), heads
        server.close()
        await server.wait_closed()

    async def test_a_tunnel_goes_through_both(
        self, proxy: Proxy, outer: tuple[OutsideProxy, list[bytes]]
    ) -> None:
        await proxy.start(["api.example:443"], outside=outer[0])  # which is not resolved here
        answer = await proxy.say(connect("api.example:443") + "hello")
        assert answer == b"HTTP/1.1 200 Connection established\r\n\r\ntunnelled hello"
        assert outer[1] == [
            b"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\nProxy-Authorization: Basic xyz\r\n\r\n"
        ]

    async def test_the_rules_hold_all_the_same(
        self, proxy: Proxy, outer: tuple[OutsideProxy, list[bytes]]
    ) -> None:
        await proxy.start(["inside.example:443"], outside=outer[0], names=Names(inside_example="10.0.0.1"))
        for target in ("other.example:443", "inside.example:443", "10.0.0.1:443"):
            assert (await proxy.refused(connect(target)))["status"] == 403
        assert outer[1] == []

    async def test_its_refusal_is_told(self, proxy: Proxy, outer: tuple[OutsideProxy, list[bytes]]) -> None:
        await proxy.start(["denied.example:443"], outside=outer[0])
        document = await proxy.refused(connect("denied.example:443"))
        assert document["status"] == 502
        assert "407" in document["detail"]

    async def test_some_hosts_are_reached_directly(
        self, proxy: Proxy, outer: tuple[OutsideProxy, list[bytes]]
    ) -> None:
        await proxy.start(["a.near.example:443"], outside=outer[0], names=Names(a_near_example="127.0.0.1"))
        assert (await proxy.refused(connect("a.near.example:443")))["status"] == 403
        assert outer[1] == []
