"""What an app takes of the memory of the data API: so much at a time, also where it sends or reads slowly."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import aiohttp
import pytest

from baas import room, sending

Session = aiohttp.ClientSession
DOCUMENT = "x" * 900_000


@pytest.fixture
def slow(cart: Session) -> Iterator["Slow"]:
    with ExitStack() as stack:
        yield Slow(cart, stack)


class Slow:
    """Connections of a function that take their time."""

    def __init__(self, cart: Session, stack: ExitStack) -> None:
        self._port = cart._base_url.port
        self._stack = stack

    async def begin(self, request: bytes) -> socket.socket:
        """Send what is given, and no more; take as little as can be."""
        connection = self._stack.enter_context(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", self._port))
        await loop.sock_sendall(connection, request)
        return connection


async def put(client: Session, path: str, **headers: str) -> int:
    async with client.put(path, json=DOCUMENT, headers=headers) as response:
        return response.status


async def get(client: Session, path: str, **headers: str) -> int:
    async with client.get(path, headers=headers) as response:
        await response.read()
        return response.status


@asynccontextmanager
async def soon() -> AsyncIterator[None]:
    async with asyncio.timeout(20):
        yield


@pytest.mark.parametrize(
    "announced", [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nf0000\r\n"]
)
async def test_bodies_that_do_not_come_to_their_end_take_room_of_their_app_alone(
    cart: Session,
    operator: Session,
    slow: Slow,
    announced: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "MOST", 2 << 20)
    begun = b"PUT /things/slow HTTP/1.1\r\nHost: x\r\n" + announced + bytes(0xF0000 - 1)
    connections = [await slow.begin(begun) for _ in range(2)]
    async with soon():
        while (status := await put(cart, "/things/k")) != 429:
            assert status in (201, 204)
    assert await put(operator, "/data/v1/things/k", **{"Pilotlight-App": "another"}) == 201
    for connection in connections:
        connection.close()
    async with soon():
        while await put(cart, "/things/k") == 429:
            await asyncio.sleep(0.01)


async def test_answers_that_nobody_takes_do_so_too_and_are_cut_off(
    cart: Session, operator: Session, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST", 8 << 20)
    monkeypatch.setattr(sending, "_STALLED", 3.0)
    for app in ("shop", "another"):
        for number in range(5):
            assert await put(operator, f"/data/v1/things/{number}", **{"Pilotlight-App": app}) == 201
    for _ in range(2):
        await slow.begin(b"GET /things HTTP/1.1\r\nHost: x\r\n\r\n")
    async with soon():
        while (status := await get(cart, "/things")) != 429:
            assert status == 200
        assert await get(operator, "/data/v1/things") == 429
        assert await get(operator, "/data/v1/things", **{"Pilotlight-App": "another"}) == 200
        while await get(cart, "/things") == 429:
            await asyncio.sleep(0.01)


async def test_what_is_large_comes_whole(cart: Session) -> None:
    for key in "abc":
        assert await put(cart, f"/things/{key}") == 201
    async with cart.get("/things/a") as response:
        assert (await response.json(), response.headers["ETag"][0]) == (DOCUMENT, '"')
        assert response.headers["Content-Type"] == "application/json"
    async with cart.head("/things/a") as response:
        assert (int(response.headers["Content-Length"]), await response.read()) == (len(DOCUMENT) + 2, b"")
