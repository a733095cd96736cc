"""Transactions as operators and functions meet them: all or nothing."""

import asyncio
import io
import time
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from baas.draft import MAX_WRITTEN
from baas.request import MAX_TRANSACTION
from baas.transaction import MAX_OPERATIONS

Session = aiohttp.ClientSession
URL = "/data/v1/transactions"
JSON = {"Content-Type": "application/json"}


def on(op: str, key: str, collection: str = "accounts", **more: Any) -> dict[str, Any]:
    return {"op": op, "collection": collection, "key": key, **more}


async def transact(
    client: Session, *operations: dict[str, Any], url: str = URL
) -> tuple[int, dict[str, Any]]:
    async with client.post(url, json={"operations": operations}) as response:
        return response.status, await response.json(content_type=None)


async def read(client: Session, key: str, collection: str = "accounts") -> tuple[Any, str | None]:
    async with client.get(f"/data/v1/{collection}/{key}") as response:
        return (await response.json(), response.headers["ETag"]) if response.status == 200 else (None, None)


async def test_each_kind_of_operation_is_made_and_answered(cart: Session) -> None:
    for key, value in (("p", {"a": 1}), ("j", {"a": 1}), ("d", 0), ("c", 0), ("n", {"n": 5})):
        await cart.put(f"/accounts/{key}", json=value)
    _, checked = await read(cart, "c")
    status, answer = await transact(
        cart,
        on("put", "new", value={"x": [1, "ü"]}),
        on("put", "d", value=1),
        on("patch", "p", merge={"b": 2, "a": None}),
        on("patch", "j", patch=[{"op": "add", "path": "/b", "value": 3}]),
        on("increment", "n", by=2, field="/n"),
        on("increment", "count"),
        {"op": "create", "collection": "log", "value": "made"},
        on("delete", "d"),
        on("check", "c", if_match=checked),
        on("check", "none", if_none_match="*"),
        url="/transactions",
    )
    assert status == 200
    results = answer["results"]
    assert [result["status"] for result in results] == [201, 204, 200, 200, 200, 200, 201, 204, 204, 204]
    assert [result.get("value") for result in results] == [None] * 4 + [7, 1] + [None] * 4
    for index, (key, value) in enumerate(
        [
            ("new", {"x": [1, "ü"]}),
            ("d", None),
            ("p", {"b": 2}),
            ("j", {"a": 1, "b": 3}),
            ("n", {"n": 7}),
            ("count", 1),
        ]
    ):
        assert await read(cart, key) == (value, results[index].get("etag"))
    assert await read(cart, results[6]["key"], "log") == ("made", results[6]["etag"])
    assert results[8] == {"key": "c", "status": 204, "etag": checked}
    assert results[9] == {"key": "none", "status": 204}


async def test_a_lost_precondition_is_named_and_nothing_is_changed(operator: Session) -> None:
    await operator.put("/data/v1/accounts/a", json=1)
    _, tag = await read(operator, "a")
    for lost, stands in (
        (on("check", "a", if_match='"7"'), tag),
        (on("put", "a", value=2, if_none_match="*"), tag),
        (on("delete", "none", if_match="*"), None),
    ):
        status, answer = await transact(operator, on("put", "b", value=1), on("increment", "c"), lost)
        assert (status, answer["operation"], answer.get("etag")) == (412, 2, stands)
        assert "Operation 2:" in answer["detail"]
    assert await read(operator, "a") == (1, tag)
    for key in "bc":
        assert await read(operator, key) == (None, None)


@pytest.mark.parametrize(
    ("refused", "status"),
    [
        (on("increment", "text"), 409),
        (on("delete", "none"), 404),
        (on("patch", "text", patch=[{"op": "test", "path": "", "value": 1}]), 409),
        (on("put", "k", value=1, ttll=3), 400),
        (on("put", "k", value=1, ttl=-3), 400),
        (on("put", "k"), 400),
        (on("put", ".", value=1), 400),
        (on("put", "k", collection="-", value=1), 400),
        (on("put", "k", collection="transactions", value=1), 400),
        (on("increment", "changes"), 400),
        (on("put", "k", value=1, if_match="17"), 400),
        (on("patch", "k", merge=1, patch=[]), 400),
        (on("check", "k"), 400),
        (on("get", "k"), 400),
        ({"op": "create", "collection": "c", "value": 1, "if_match": "*"}, 400),
    ],
)  # fmt: skip
async def test_what_can_not_be_done_undoes_all(
    operator: Session, refused: dict[str, Any], status: int
) -> None:
    await operator.put("/data/v1/accounts/text", json="text")
    found, answer = await transact(operator, on("put", "first", value=1), refused)
    assert (found, answer["status"]) == (status, status)
    assert "peration 1:" in answer["detail"] or "operations[1]" in answer["detail"]
    assert await read(operator, "first") == (None, None)


async def test_later_operations_see_what_earlier_ones_did(operator: Session) -> None:
    await operator.put("/data/v1/accounts/k", json={"n": 1})
    _, tag = await read(operator, "k")
    status, answer = await transact(
        operator,
        on("increment", "k", field="/n", if_match=tag),
        on("increment", "k", field="/n", by=10),
        on("patch", "k", merge={"seen": True}, if_match="*"),
        on("put", "l", value=1, if_none_match="*"),
        on("delete", "l"),
        on("put", "l", value=2, if_none_match="*"),
        on("delete", "l"),
    )
    assert status == 200
    results = answer["results"]
    assert [result.get("value") for result in results[:2]] == [2, 12]
    value, etag = await read(operator, "k")
    assert value == {"n": 12, "seen": True}
    assert {result.get("etag") for result in results[:3]} == {etag}  # the one that stands in the end
    assert ["etag" in result for result in results[3:]] == [False] * 4
    assert await read(operator, "l") == (None, None)
    status, answer = await transact(operator, on("put", "k", value=1), on("put", "k", value=2, if_match=etag))
    assert (status, answer["operation"]) == (412, 1)


async def test_a_life_is_given_for_each_and_kept_by_what_changes_a_part(operator: Session) -> None:
    await operator.put("/data/v1/accounts/old?ttl=1000", json=1)
    await transact(
        operator,
        on("put", "short", value=1, ttl=0.05),
        on("put", "k", value=1, ttl=500.5),
        on("increment", "k"),
        on("increment", "old"),
        on("put", "for-ever", value=1, ttl=1),
        on("put", "for-ever", value=1),
    )
    async with operator.get("/data/v1/accounts") as response:
        ends = {each["key"]: each.get("expires") for each in (await response.json())["documents"]}
    assert ends["old"] - ends["k"] == pytest.approx(500, abs=60)
    assert ends["for-ever"] is None
    async with asyncio.timeout(30):
        while (await read(operator, "short"))[0] is not None:
            await asyncio.sleep(0.01)


async def test_transfers_at_once_neither_make_nor_lose_money(cart: Session) -> None:
    names = [f"{i}" for i in range(4)]
    for name in names:
        await cart.put(f"/accounts/{name}", json=100)

    async def transfer(number: int) -> None:
        source, target = names[number % 4], names[(number * 7 + 1) % 4]
        status, _ = await transact(
            cart, on("increment", source, by=-1), on("increment", target), url="/transactions"
        )
        assert status == 200

    await asyncio.gather(*(transfer(number) for number in range(60)))
    assert sum([(await read(cart, name))[0] for name in names]) == 400


async def test_others_have_their_turn_while_a_large_document_is_changed_many_times(operator: Session) -> None:
    await operator.put("/data/v1/accounts/large", json={"text": "x" * 500_000})
    patches = [on("patch", "large", merge={"a": number}) for number in range(MAX_OPERATIONS)]
    changing = asyncio.create_task(transact(operator, *patches))
    turns = [time.perf_counter()]
    while not changing.done():
        await asyncio.sleep(0)
        turns.append(time.perf_counter())
    assert (await changing)[0] == 200
    longest = max(after - before for before, after in pairwise(turns))
    assert longest < (turns[-1] - turns[0]) / 2


async def test_too_many_or_too_much_is_refused(operator: Session) -> None:
    status, answer = await transact(operator, *[on("increment", "k")] * (MAX_OPERATIONS + 1))
    assert (status, str(MAX_OPERATIONS) in answer["detail"]) == (413, True)
    assert (await transact(operator, *[on("increment", "k")] * MAX_OPERATIONS))[0] == 200
    assert (await read(operator, "k"))[0] == MAX_OPERATIONS
    assert (await transact(operator))[0] == 400
    large_body = io.BytesIO(b" " * (MAX_TRANSACTION + 1))
    async with operator.post(URL, data=large_body, headers=JSON) as response:
        assert response.status == 413
    large = "x" * 1_000_000
    for i in range(5):
        await operator.put(f"/data/v1/accounts/large-{i}", json={"text": large})
    grown = [on("patch", f"large-{i}", merge={"a": 1}) for i in range(5)]
    status, answer = await transact(operator, *grown)
    assert (status, answer["operation"], str(MAX_WRITTEN) in answer["detail"]) == (413, 4, True)
    assert (await transact(operator, *[on("delete", f"large-{i}") for i in range(5)]))[0] == 200


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"operations": 1}', b'{"operations": [], "more": 1}', b'"\xff"']
)
async def test_what_is_no_transaction_is_refused(operator: Session, body: bytes) -> None:
    async with operator.post(URL, data=body, headers=JSON) as response:
        assert response.status == 400
        assert (await response.json(content_type=None))["detail"]


@pytest.mark.parametrize("baas", [100_000], indirect=True)
async def test_what_it_would_take_counts_as_a_whole(operator: Session) -> None:
    half = "x" * 60_000
    status, answer = await transact(operator, on("put", "a", value=half), on("put", "b", value=half))
    assert (status, answer["status"]) == (413, 413)
    assert await read(operator, "a") == (None, None)
    assert (await transact(operator, on("put", "a", value=half)))[0] == 200
    # What one gives back another may take
    assert (await transact(operator, on("delete", "a"), on("put", "b", value=half)))[0] == 200


async def test_no_app_reaches_into_another(operator: Session, cart: Session) -> None:
    await operator.put("/data/v1/accounts/k", json=1, headers={"Pilotlight-App": "other"})
    assert (await transact(cart, on("check", "k", if_match="*"), url="/transactions"))[0] == 412
    async with cart.post("/data/v1/transactions?app=other", json={"operations": []}) as response:
        assert response.status == 400
    for name in ("other/accounts", "../other/accounts"):
        status, _ = await transact(cart, on("put", "k", name, value=2), url="/transactions")
        assert status == 400


class TestReservedNames:
    async def test_transactions_is_no_collection(self, cart: Session) -> None:
        for method, path in (("PUT", "/transactions/k"), ("PATCH", "/transactions/k")):
            async with cart.request(method, path, json=1) as response:
                assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD, DELETE")
        async with cart.post("/transactions/k/increment") as response:
            assert response.status == 404
        async with cart.get("/transactions") as response:
            assert (await response.json())["documents"] == []

    async def test_changes_is_no_key(self, cart: Session) -> None:
        async with cart.put("/accounts/changes", json=1) as response:
            assert (response.status, response.headers["Allow"]) == (405, "GET, DELETE")
        async with cart.post("/accounts/changes/increment") as response:
            assert response.status == 404
        async with cart.delete("/accounts/changes") as response:
            assert response.status == 404
        async with cart.put("/changes/changed", json=1) as response:
            assert response.status == 201  # as a collection it is like any other
