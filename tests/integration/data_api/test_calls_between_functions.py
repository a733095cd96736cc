"""Functions that call functions: what reaches the gateway, and what comes back."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from pilotlight import sockets
from pilotlight.datafolder import DataFolder
from tests.support.baas import Baas, Granter


class Gateway:
    """A stand-in that remembers the requests on the gateway's private socket."""

    def __init__(self) -> None:
        self.heads: list[web.BaseRequest] = []
        self.gone = asyncio.Event()
        self.release = asyncio.Event()

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        self.heads.append(http)
        match http.path:
            case "/function/echo":
                response = web.StreamResponse(headers={"X-Mine": "yes", "Connection": "X-Hop", "X-Hop": "1"})
                await response.prepare(http)
                async for chunk in http.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
            case "/function/slow":
                try:
                    await self.release.wait()
                finally:
                    self.gone.set()
                return web.Response(text="late")
            case "/function/breaks":
                response = web.StreamResponse()
                await response.prepare(http)
                await response.write(b"half")
                assert http.transport is not None
                http.transport.abort()
                return response
            case _:
                return web.Response(
                    status=418, body=b"\x1f\x8bnot really gzip", headers={"Content-Encoding": "gzip"}
                )


@pytest.fixture
async def gateway(baas: Baas, data: DataFolder) -> AsyncIterator[Gateway]:
    gateway = Gateway()
    http = web.Server(gateway.handle, handler_cancellation=True, auto_decompress=False)
    server = await asyncio.get_running_loop().create_server(http, sock=sockets.listen(data.socket("gateway")))
    yield gateway
    gateway.release.set()
    server.close()
    http.pre_shutdown()
    await http.shutdown(1)
    data.socket("gateway").unlink()


async def test_the_caller_is_named_and_can_not_be_forged(
    gateway: Gateway, cart: aiohttp.ClientSession
) -> None:
    headers = {
        "Pilotlight-Caller": "admin",
        "PILOTLIGHT-CALLER": "root",
        "X-Own": "1",
        "Connection": "X-Hop",
        "X-Hop": "2",
    }
    async with cart.get("/function/x/y%2Fz?a=%20b", headers=headers) as response:
        assert (response.status, response.headers["Content-Encoding"]) == (418, "gzip")
    [head] = gateway.heads
    assert head.headers.getall("Pilotlight-Caller") == ["cart"]
    assert head.headers["X-Own"] == "1"
    assert "X-Hop" not in head.headers
    assert head.raw_path == "/function/x/y%2Fz?a=%20b"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_any_method_and_body_passes(gateway: Gateway, cart: aiohttp.ClientSession, method: str) -> None:
    async with cart.request(method, "/function/echo", data=b"body") as response:
        assert (response.status, await response.read()) == (200, b"body")
        assert response.headers["X-Mine"] == "yes"
        assert "X-Hop" not in response.headers
    assert gateway.heads[0].method == method
    assert gateway.heads[0].headers["Content-Length"] == "4"


async def test_head_and_empty_bodies_pass(gateway: Gateway, cart: aiohttp.ClientSession) -> None:
    async with cart.head("/function/other") as response:
        assert (response.status, response.headers["Content-Length"]) == (418, "17")
    async with cart.get("/function/echo") as response:
        assert await response.read() == b""
    assert all("Transfer-Encoding" not in head.headers for head in gateway.heads)


async def test_bodies_stream_both_ways(gateway: Gateway, cart: aiohttp.ClientSession) -> None:
    answered = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await answered.wait()  # the answer to the first part comes before the second is sent
        yield b"second"

    async with cart.post("/function/echo", data=body()) as response:
        assert await asyncio.wait_for(response.content.readexactly(5), 5) == b"first"
        answered.set()
        assert await response.read() == b"second"


async def test_a_large_body_passes_whole(gateway: Gateway, cart: aiohttp.ClientSession) -> None:
    async def body() -> AsyncIterator[bytes]:
        for i in range(64):
            yield bytes([i]) * 65536

    async with cart.post("/function/echo", data=body()) as response:
        assert await response.read() == b"".join([bytes([i]) * 65536 for i in range(64)])


async def test_a_client_that_asks_first_is_told_to_go_on(
    gateway: Gateway, cart: aiohttp.ClientSession
) -> None:
    async with cart.post("/function/echo", data=b"body", expect100=True) as response:
        assert await response.read() == b"body"


async def test_a_caller_that_goes_away_ends_the_call(gateway: Gateway, cart: aiohttp.ClientSession) -> None:
    with pytest.raises(TimeoutError):
        await cart.get("/function/slow", timeout=aiohttp.ClientTimeout(total=0.2))
    await asyncio.wait_for(gateway.gone.wait(), 5)


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(
    gateway: Gateway, cart: aiohttp.ClientSession
) -> None:
    async with cart.get("/function/breaks") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_gateway_that_is_away_is_told(cart: aiohttp.ClientSession) -> None:
    async with cart.get("/function/x") as response:
        assert (response.status, response.headers["Pilotlight-Error"]) == (503, "unavailable")
        assert response.headers["Retry-After"] == "1"


async def test_revoking_ends_calls_under_way(gateway: Gateway, granter: Granter) -> None:
    port = granter.grant("dying")
    async with aiohttp.ClientSession() as client:
        call = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/function/slow"))
        async with asyncio.timeout(5):
            while not gateway.heads:
                await asyncio.sleep(0.005)
        granter.revoke("dying")
        with pytest.raises(aiohttp.ClientConnectionError):
            await asyncio.wait_for(call, 5)
    await asyncio.wait_for(gateway.gone.wait(), 5)
