"""The changes of a collection as server-sent events, as operators and functions read them."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from baas import feed, sending
from pilotlight.history import Gone
from pilotlight.problems import Problem
from pilotlight.store_sqlite import SqliteStore
from tests.support.baas import Baas, Granter

Session = aiohttp.ClientSession
Event = tuple[str, Any]


class Reader:
    """Reads events as a browser does: what has no data only moves the id on."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.id = ""

    async def lines(self) -> list[str] | None:
        """Return the next block, None at the end."""
        block: list[str] = []
        while line := (await self.response.content.readline()).decode():
            if line == "\n":
                return block
            block.append(line.removesuffix("\n"))
        return None

    async def next(self) -> Any:
        """Return the data of the next event, None at the end."""
        while (block := await self.lines()) is not None:
            fields = dict(line.split(": ", 1) for line in block if not line.startswith(":"))
            self.id = fields.get("id", self.id)
            if "data" in fields:
                return json.loads(fields["data"])
        return None

    async def take(self, count: int) -> list[Any]:
        async with asyncio.timeout(20):
            return [await self.next() for _ in range(count)]


@asynccontextmanager
async def reading(
    client: Session, path: str = "/data/v1/things/changes", **headers: str
) -> AsyncIterator[Reader]:
    async with client.get(path, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream"
        reader = Reader(response)
        assert "retry: 1000" in (await reader.lines() or [])
        yield reader


async def position(client: Session, path: str = "/data/v1/things") -> str:
    async with client.get(path) as response:
        return response.headers["Pilotlight-Position"]


async def test_changes_come_as_they_are_made(operator: Session, cart: Session) -> None:
    async with reading(cart, "/things/changes") as reader:
        async with cart.put("/things/k", json={"ü": "\u2028\n"}) as response:
            first = response.headers["ETag"]
        async with operator.patch(
            "/data/v1/things/k", data=b'{"b":1}', headers={"Content-Type": "application/merge-patch+json"}
        ) as response:
            second = response.headers["ETag"]
        await cart.put("/things/l?ttl=1000", json=2)
        await cart.delete("/things/k")
        events = await reader.take(4)
    assert events[0] == {"key": "k", "etag": first, "value": {"ü": "\u2028\n"}}
    assert events[1] == {"key": "k", "etag": second, "value": {"ü": "\u2028\n", "b": 1}}
    assert (events[2]["key"], events[2]["value"], events[2]["expires"] > 1e9) == ("l", 2, True)
    assert events[3] == {"key": "k", "deleted": True}


async def test_from_the_position_of_a_listing_nothing_is_missing(operator: Session) -> None:
    await operator.put("/data/v1/things/before", json=1)
    start = await position(operator)
    for i in range(250):
        await operator.put(f"/data/v1/things/{i}", json=i)
        await operator.put(f"/data/v1/others/{i}", json=i)
    async with reading(operator, f"/data/v1/things/changes?since={start}") as reader:
        assert [event["value"] for event in await reader.take(250)] == list(range(250))
        await operator.put("/data/v1/things/last", json="last")
        assert (await reader.take(1))[0]["value"] == "last"
        last = reader.id
    await operator.put("/data/v1/things/more", json="more")
    # The header is newer than what stands in the address, where a browser connects again
    async with reading(
        operator, f"/data/v1/things/changes?since={start}", **{"Last-Event-ID": last}
    ) as reader:
        assert [event["value"] for event in await reader.take(1)] == ["more"]


async def test_a_later_page_of_a_listing_has_no_position(operator: Session) -> None:
    for i in range(3):
        await operator.put(f"/data/v1/things/{i}", json=i)
    async with operator.get("/data/v1/things?limit=2") as response:
        assert "Pilotlight-Position" in response.headers
        cursor = (await response.json())["cursor"]
    async with operator.get(f"/data/v1/things?limit=2&cursor={cursor}") as response:
        assert "Pilotlight-Position" not in response.headers


async def test_a_document_that_expires_is_told_of(operator: Session) -> None:
    async with reading(operator) as reader:
        await operator.put("/data/v1/things/k?ttl=0.01", json=1)
        await operator.put("/data/v1/things/l", json=1)
        async with asyncio.timeout(30):
            events = [await reader.next() for _ in range(3)]
    assert events[2] == {"key": "k", "deleted": True, "expired": True}


async def test_what_a_transaction_changes_comes_together_once_each(operator: Session) -> None:
    async with reading(operator) as reader:
        operations = [{"op": "increment", "collection": "things", "key": key} for key in "abab"]
        operations.append({"op": "put", "collection": "things", "key": "c", "value": 1})
        operations.append({"op": "delete", "collection": "things", "key": "c"})
        await operator.post("/data/v1/transactions", json={"operations": operations})
        await operator.put("/data/v1/things/end", json=1)
        events = await reader.take(3)
    assert [(event["key"], event["value"]) for event in events] == [("a", 2), ("b", 2), ("end", 1)]


async def test_positions_that_are_not_kept_are_gone_and_others_refused(
    operator: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = await position(operator)
    era, _, number = now.partition("-")
    for since in (f"{era}-{int(number) + 1}", f"0000000000-{number}"):
        async with operator.get(f"/data/v1/things/changes?since={since}") as response:
            assert (response.status, response.headers["Pilotlight-Error"]) == (410, "gone")
            assert "anew" in (await response.json(content_type=None))["detail"]
    for since in ("1", "now", "0"):
        async with operator.get(f"/data/v1/things/changes?since={since}") as response:
            assert response.status == 400
    async with operator.get("/data/v1/things/changes?sinc=1") as response:
        assert response.status == 400
    async with reading(operator, "/data/v1/things/changes?since="):
        pass


async def test_a_reader_without_news_learns_that_and_where_it_is(
    operator: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_HEARTBEAT", 0.05)
    async with reading(operator) as reader, asyncio.timeout(20):
        await operator.put("/data/v1/others/k", json=1)
        now = await position(operator)
        while await reader.lines() != [": nothing new", f"id: {now}"]:
            pass


async def test_no_app_reads_of_another(operator: Session, cart: Session, granter: Granter) -> None:
    stranger = granter.grant("two", app="other", function="spy")
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{stranger}") as other,
        reading(other, "/things/changes") as theirs,
    ):
        await cart.put("/things/ours", json="secret")
        start = await position(cart, "/things")
        await other.put("/things/own", json="own")
        assert (await theirs.take(1))[0]["value"] == "own"
        async with reading(other, f"/things/changes?since={start}") as again:
            assert (await again.take(1))[0]["value"] == "own"
        async with other.get("/things/changes?app=shop") as response:
            assert response.status == 400


async def test_readers_are_bounded_and_one_that_goes_makes_room(
    operator: Session, baas: Baas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_OF_APP", 2)
    async with reading(operator), reading(operator, "/data/v1/others/changes"):
        async with operator.get("/data/v1/things/changes") as response:
            assert (response.status, "Retry-After" in response.headers) == (429, True)
        async with reading(operator, **{"Pilotlight-App": "another"}):
            pass
    async with asyncio.timeout(20):
        status = 429
        while status == 429:
            await asyncio.sleep(0.01)
            async with operator.get("/data/v1/things/changes") as response:
                status = response.status
    assert status == 200


async def test_a_reader_that_takes_nothing_is_cut_off_and_memory_stays_bounded(
    operator: Session, cart: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_STALLED", 0.2)
    port = cart._base_url.port
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stuck, ("127.0.0.1", port))
        await loop.sock_sendall(stuck, b"GET /things/changes HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await loop.sock_recv(stuck, 12)) == b"HTTP/1.1 200"
        async with asyncio.timeout(60):
            for i in range(20):
                await cart.put(f"/things/{i}", json="x" * 900_000)
            while "pilotlight_data_feeds 0.0" not in await (await operator.get("/metrics")).text():
                await asyncio.sleep(0.02)


async def test_at_the_end_of_the_service_feeds_end_at_once_and_well(operator: Session, baas: Baas) -> None:
    async with reading(operator) as reader, asyncio.timeout(20):
        baas.stopping.set()
        assert await reader.next() is None  # aiohttp would raise where it was broken off


async def test_feeds_end_as_well_while_the_store_is_away(
    operator: Session, baas: Baas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(operator) as reader:

        async def away(*_: object) -> None:
            raise Problem("unavailable", "The store is away.")

        monkeypatch.setattr(SqliteStore, "changes", away)
        async with asyncio.timeout(20):
            await operator.put("/data/v1/things/k", json=1)
            assert ": nothing new" in (await reader.lines() or [])
            baas.stopping.set()
            assert await reader.next() is None


async def test_one_whose_history_is_trimmed_under_way_is_told(
    operator: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(operator) as reader:

        async def gone(*_: object) -> None:
            raise Gone

        monkeypatch.setattr(SqliteStore, "changes", gone)
        await operator.put("/data/v1/things/k", json=1)
        async with asyncio.timeout(20):
            told = await reader.next()
            assert told["type"].endswith(":gone")
            assert await reader.next() is None
