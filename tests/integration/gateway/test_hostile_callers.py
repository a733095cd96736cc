"""Callers who want to hold the gateway up: heads that come slowly, heads without end, odd paths, bodies that inflate."""

import asyncio
import contextlib
import gzip
import json

import pytest

import gateway.connections
from tests.integration.gateway.conftest import KEY, Rack
from tests.integration.gateway.test_calls import mirror

_HEAD = b"GET /function/hello HTTP/1.1\r\nHost: h\r\n"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a head take a moment only. Asked for before `rack`, which reads it."""
    monkeypatch.setattr(gateway.connections, "_IDLE", 0.3)


@pytest.mark.usefixtures("short")
class TestAHeadThatDoesNotCome:
    @pytest.mark.parametrize(
        "sent",
        [b"", b"GET /fun", _HEAD, _HEAD + b"\r\n" + _HEAD],
        ids=["nothing", "a line", "half", "the second"],
    )
    async def test_the_connection_is_closed(self, rack: Rack, sent: bytes) -> None:
        await rack.deploy("hello")
        reader, writer = await rack.connect()
        writer.write(sent)
        assert (await asyncio.wait_for(reader.read(), 10)).count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")
        writer.close()

    async def test_a_head_that_drips_gains_no_time(self, rack: Rack) -> None:
        await rack.deploy("hello")
        reader, writer = await rack.connect()

        async def drip() -> None:
            while True:
                writer.write(b"X")
                await asyncio.sleep(0.02)  # a byte now and then is the attack

        writer.write(_HEAD)
        dripping = asyncio.create_task(drip())
        with contextlib.suppress(ConnectionResetError):  # the last bytes of the drip were not read
            assert await asyncio.wait_for(reader.read(), 10) == b""
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        writer.close()


async def test_a_flood_of_headers_ends_the_connection(rack: Rack) -> None:
    await rack.deploy("hello")
    reader, writer = await rack.connect()
    writer.write(_HEAD)
    line, sent = b"X-Flood: " + b"x" * 8000 + b"\r\n", 0
    answer = asyncio.create_task(reader.read())
    try:
        while not (answer.done() or writer.is_closing()) and sent < 64 << 20:
            writer.write(line * 8)
            sent += len(line) * 8
            await asyncio.wait_for(writer.drain(), 10)
    except ConnectionError:
        pass
    got = await asyncio.wait_for(asyncio.gather(answer, return_exceptions=True), 10)
    assert sent < 64 << 20, got
    assert not rack.service.acquires
    writer.close()
    async with rack.get("/function/hello") as other:
        assert await other.text() == "hello"


@pytest.mark.parametrize(
    "path",
    [
        "/function/../api/v1/secrets",
        "/function/%2e%2e/api/v1/secrets",
        "/function/hello/../../api/v1/secrets",
        "/function/hello/..%2f..%2fapi/v1/secrets",
        "/function/%00/x",
        "/function/hello%00",
        "/function//hello",
        "/git/../api/v1/secrets",
        "/git/..%2f..%2fadmin.key",
        "/ui/../../../../etc/passwd",
        "/ui/%2e%2e/%2e%2e/etc/passwd",
        "/api/v1/functions/..%2f..%2fsecrets",
        "//api/v1/secrets",
        "/data/v1/../../api/v1/keys",
    ],
)
async def test_a_path_leads_to_no_other_place_than_it_says(rack: Rack, path: str) -> None:
    """Without a key: nothing but refusals, and what a public function makes of what is its own."""
    await rack.deploy("hello", mirror)
    raw = await rack.raw(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    if raw.status == 200:
        target = json.loads(raw.body)["target"]
        assert path == f"/function/hello{target}"
    else:
        assert raw.status in (400, 401, 404)
        assert b"root:" not in raw.data


async def test_a_body_that_would_inflate_is_counted_and_passed_on_as_it_came(rack: Rack) -> None:
    bomb = gzip.compress(bytes(32 << 20))
    assert len(bomb) < 1 << 20
    await rack.deploy("mirror", mirror)
    async with rack.http.post(
        rack.url("/function/mirror"), data=bomb, headers={"Content-Encoding": "gzip"}
    ) as answer:
        assert len(json.loads(await answer.read())["body"]) == len(bomb)
    headers = {
        "Authorization": f"Bearer {KEY}",
        "Content-Encoding": "gzip",
        "Content-Type": "application/json",
    }
    async with rack.http.put(rack.url("/api/v1/secrets/BOMB"), data=bomb, headers=headers) as answer:
        assert 400 <= answer.status < 500
