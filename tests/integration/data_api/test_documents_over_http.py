"""The data API as operators and functions meet it."""

import asyncio
import io
import json
from typing import Any

import aiohttp
import pytest

from baas.documents import MAX_DOCUMENT

Session = aiohttp.ClientSession
MERGE = {"Content-Type": "application/merge-patch+json"}
PATCH = {"Content-Type": "application/json-patch+json"}


async def problem(response: aiohttp.ClientResponse, status: int, kind: str) -> dict[str, Any]:
    """Check that a response is a whole problem document, and return it."""
    document: dict[str, Any] = await response.json(content_type="application/problem+json")
    assert (response.status, response.headers["Pilotlight-Error"]) == (status, kind)
    assert document["status"] == status
    assert document["detail"]
    return document


async def test_no_answer_tells_what_the_server_is_made_of(operator: Session, cart: Session) -> None:
    for client, path in [(operator, "/metrics"), (operator, "/data/v1/things/k"), (cart, "/data/v1/things"),
                         (cart, "/nothing"), (cart, "/function/none")]:  # fmt: skip
        async with client.get(path) as response:
            assert response.headers["Server"] == "Pilotlight", path
    port = cart._base_url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"this is no HTTP\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert b"Server: Pilotlight\r\n" in answer


class TestDocuments:
    async def test_a_document_is_put_read_patched_and_deleted(self, operator: Session) -> None:
        async with operator.put("/data/v1/things/k", json={"a": 1}) as response:
            assert response.status == 201
            first = response.headers["ETag"]
        async with operator.get("/data/v1/things/k") as response:
            assert (response.status, response.headers["ETag"]) == (200, first)
            assert response.content_type == "application/json"
            assert await response.json() == {"a": 1}
        async with operator.put("/data/v1/things/k", json={"a": 2}) as response:
            assert response.status == 204
            assert response.headers["ETag"] != first
        async with operator.patch("/data/v1/things/k", data=b'{"b":3}', headers=MERGE) as response:
            assert (response.status, await response.json()) == (200, {"a": 2, "b": 3})
        async with operator.patch(
            "/data/v1/things/k", data=b'[{"op":"remove","path":"/a"}]', headers=PATCH
        ) as response:
            assert (response.status, await response.json()) == (200, {"b": 3})
            last = response.headers["ETag"]
        async with operator.get("/data/v1/things/k") as response:
            assert response.headers["ETag"] == last
        async with operator.delete("/data/v1/things/k") as response:
            assert (response.status, await response.read()) == (204, b"")
        async with operator.get("/data/v1/things/k") as response:
            await problem(response, 404, "not-found")

    async def test_head_is_get_without_the_body(self, operator: Session) -> None:
        await operator.put("/data/v1/things/k", json="four")
        async with operator.get("/data/v1/things/k") as get, operator.head("/data/v1/things/k") as head:
            for name in ("ETag", "Content-Length", "Content-Type"):
                assert head.headers[name] == get.headers[name]
            assert await head.read() == b""
        async with operator.head("/data/v1/things/none") as response:
            assert response.status == 404

    async def test_post_makes_keys_in_the_order_of_time(self, operator: Session) -> None:
        keys = []
        for i in range(3):
            async with operator.post("/data/v1/events", json=i) as response:
                assert response.status == 201
                key = (await response.json())["key"]
                assert response.headers["Location"] == f"/data/v1/events/{key}?app=shop"
                keys.append(key)
            await asyncio.sleep(0.002)  # keys are ordered by milliseconds
            async with operator.get(response.headers["Location"]) as again:
                assert await again.json() == i
                assert again.headers["ETag"] == response.headers["ETag"]
        assert keys == sorted(keys)

    async def test_a_key_may_hold_a_slash(self, operator: Session) -> None:
        async with operator.put("http://baas/data/v1/things/a%2Fb%20c", json=1) as response:
            assert response.status == 201
        async with operator.get("/data/v1/things") as response:
            assert [d["key"] for d in (await response.json())["documents"]] == ["a/b c"]

    async def test_a_document_expires(self, operator: Session) -> None:
        await operator.put("/data/v1/things/k?ttl=0.05", json=1)
        async with asyncio.timeout(5):
            while (await operator.get("/data/v1/things/k")).status == 200:
                await asyncio.sleep(0.01)
        async with operator.put("/data/v1/things/k", json=2, headers={"If-None-Match": "*"}) as response:
            assert response.status == 201


class TestConditions:
    async def test_compare_and_set(self, operator: Session) -> None:
        async with operator.put("/data/v1/things/k", json=1, headers={"If-None-Match": "*"}) as response:
            first = response.headers["ETag"]
        async with operator.put("/data/v1/things/k", json=2, headers={"If-None-Match": "*"}) as response:
            assert (await problem(response, 412, "precondition-failed"))["etag"] == first
        async with operator.put("/data/v1/things/k", json=2, headers={"If-Match": first}) as response:
            assert response.status == 204
        for method in ("PUT", "DELETE"):
            async with operator.request(
                method, "/data/v1/things/k", json=3, headers={"If-Match": first}
            ) as response:
                await problem(response, 412, "precondition-failed")
        async with operator.patch(
            "/data/v1/things/k", data=b"3", headers={"If-Match": first, **MERGE}
        ) as response:
            await problem(response, 412, "precondition-failed")

    async def test_a_reader_who_has_it_gets_304(self, operator: Session) -> None:
        async with operator.put("/data/v1/things/k", json=1) as response:
            tag = response.headers["ETag"]
        async with operator.get("/data/v1/things/k", headers={"If-None-Match": f'"0", W/{tag}'}) as response:
            assert (response.status, response.headers["ETag"], await response.read()) == (304, tag, b"")

    async def test_of_many_who_create_one_wins(self, operator: Session) -> None:
        async def create(i: int) -> int:
            async with operator.put("/data/v1/things/k", json=i, headers={"If-None-Match": "*"}) as response:
                return response.status

        statuses = await asyncio.gather(*(create(i) for i in range(40)))
        assert sorted(statuses) == [201] + [412] * 39

    async def test_no_increment_is_lost(self, operator: Session) -> None:
        async def increment(field: str) -> int:
            async with operator.post("/data/v1/n/k/increment", json={"field": field, "by": 2}) as response:
                assert response.status == 200
                return int((await response.json())["value"])

        seen = await asyncio.gather(*(increment("/a") for _ in range(100)))
        assert sorted(seen) == [2 * i for i in range(1, 101)]
        async with operator.get("/data/v1/n/k") as response:
            assert await response.json() == {"a": 200}

    async def test_no_patch_is_lost(self, operator: Session) -> None:
        await operator.put("/data/v1/things/k", json=[])
        body = json.dumps([{"op": "add", "path": "/-", "value": 1}]).encode()
        await asyncio.gather(
            *(operator.patch("/data/v1/things/k", data=body, headers=PATCH) for _ in range(50))
        )
        async with operator.get("/data/v1/things/k") as response:
            assert await response.json() == [1] * 50


class TestListings:
    async def test_pages_follow_each_other_until_there_is_no_cursor(self, operator: Session) -> None:
        for i in range(7):
            await operator.put(f"/data/v1/things/a{i}", json={"i": i})
        await operator.put("/data/v1/things/b", json=None)
        seen, cursor, pages = [], "", 0
        while cursor is not None:
            query = {"prefix": "a", "limit": "3", **({"cursor": cursor} if cursor else {})}
            async with operator.get("/data/v1/things", params=query) as response:
                page = await response.json()
            seen += [(d["key"], d["value"]) for d in page["documents"]]
            cursor = page["cursor"]
            pages += 1
        assert seen == [(f"a{i}", {"i": i}) for i in range(7)]
        assert pages == 3

    async def test_each_document_comes_with_its_tag_and_its_end(self, operator: Session) -> None:
        async with operator.put("/data/v1/things/k?ttl=1000", json=[1]) as response:
            tag = response.headers["ETag"]
        async with operator.get("/data/v1/things") as response:
            [document] = (await response.json())["documents"]
        assert document.pop("expires") > 0
        assert document == {"key": "k", "etag": tag, "value": [1]}

    async def test_an_empty_collection_is_an_empty_page(self, operator: Session) -> None:
        async with operator.get("/data/v1/none") as response:
            assert (response.status, await response.json()) == (200, {"documents": [], "cursor": None})

    async def test_a_page_of_large_documents_ends_early(self, operator: Session) -> None:
        for i in range(6):
            await operator.put(f"/data/v1/things/{i}", json="x" * 900_000)
        async with operator.get("/data/v1/things") as response:
            page = await response.json()
        assert len(page["documents"]) == 4
        async with operator.get("/data/v1/things", params={"cursor": page["cursor"]}) as response:
            page = await response.json()
        assert [d["key"] for d in page["documents"]] == ["4", "5"]
        assert page["cursor"] is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [
            ("DELETE", "/data/v1/things", "GET, HEAD, POST"),
            ("POST", "/data/v1/things/k", "GET, HEAD, PUT, PATCH, DELETE"),
            ("GET", "/data/v1/things/k/increment", "POST"),
            ("OPTIONS", "/data/v1/things/k", "GET, HEAD, PUT, PATCH, DELETE"),
        ],
    )
    async def test_other_methods(self, operator: Session, method: str, path: str, allow: str) -> None:
        async with operator.request(method, path) as response:
            assert response.headers["Allow"] == allow
            await problem(response, 405, "method-not-allowed")

    @pytest.mark.parametrize(
        ("method", "path", "content_type"),
        [
            ("PUT", "/data/v1/things/k", "application/x-www-form-urlencoded"),
            ("POST", "/data/v1/things", "text/plain"),
            ("PUT", "/data/v1/things/k", "application/json; charset=latin-1"),
            ("PATCH", "/data/v1/things/k", "application/json"),
            ("POST", "/data/v1/things/k/increment", "text/plain"),
        ],
    )
    async def test_other_media_types(
        self, operator: Session, method: str, path: str, content_type: str
    ) -> None:
        async with operator.request(
            method, path, data=b"{}", headers={"Content-Type": content_type}
        ) as response:
            await problem(response, 415, "unsupported-media-type")
            assert ("Accept-Patch" in response.headers) is (method == "PATCH")

    @pytest.mark.parametrize("content_type", ["application/json;charset=UTF-8", "application/geo+json"])
    async def test_other_names_of_json_are_fine(self, operator: Session, content_type: str) -> None:
        async with operator.put(
            "/data/v1/t/k", data=b"{}", headers={"Content-Type": content_type}
        ) as response:
            assert response.status == 201

    async def test_a_body_with_a_coding(self, operator: Session) -> None:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        async with operator.put("/data/v1/things/k", data=b"{}", headers=headers) as response:
            await problem(response, 415, "unsupported-media-type")

    @pytest.mark.parametrize("query", ["tll=5", "ttl=0", "ttl=-1", "ttl=x", "ttl=1e3", "ttl=99999999999", "ttl=1&ttl=2", "limit=1"])  # fmt: skip
    async def test_parameters_that_are_wrong(self, operator: Session, query: str) -> None:
        async with operator.put(f"/data/v1/things/k?{query}", json=1) as response:
            await problem(response, 400, "invalid-request")

    @pytest.mark.parametrize(
        "query", ["limit=0", "limit=1001", "limit=x", "cursor=%21", "prefix=%FF", "ttl=5"]
    )
    async def test_parameters_of_a_listing_that_are_wrong(self, operator: Session, query: str) -> None:
        async with operator.get(
            aiohttp.client.URL(f"http://baas/data/v1/things?{query}", encoded=True)
        ) as response:
            await problem(response, 400, "invalid-request")

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_that_is_too_large(self, operator: Session, chunked: bool) -> None:
        async def chunks() -> Any:
            for _ in range(20):
                yield b"x" * (MAX_DOCUMENT // 16)

        body = chunks() if chunked else io.BytesIO(b"x" * (MAX_DOCUMENT + 1))
        async with operator.put(
            "/data/v1/things/k", data=body, headers={"Content-Type": "application/json"}
        ) as response:
            await problem(response, 413, "too-large")

    async def test_a_client_that_asks_first_is_not_sent_on(self, operator: Session) -> None:
        async with operator.put("/data/v1/things/k", json={"a": 1}, expect100=True) as response:
            assert response.status == 201
        async with operator.put("/data/v1/things/k?no=1", json={"a": 1}, expect100=True) as response:
            await problem(response, 400, "invalid-request")

    async def test_paths_that_lead_nowhere(self, operator: Session) -> None:
        for path in ("/", "/things/k", "/data/v1", "/function/other", "/data/v1/a/b/c"):
            async with operator.get(path) as response:
                await problem(response, 404, "not-found")


class TestApps:
    async def test_an_operator_must_name_one(self, operator: Session) -> None:
        for headers, path in [
            ({}, "/data/v1/things"),
            ({"Pilotlight-App": "A b"}, "/data/v1/things"),
            ({"Pilotlight-App": ""}, "/data/v1/things"),
            ({"Pilotlight-App": "shop"}, "/data/v1/things?app=other"),
        ]:
            async with aiohttp.ClientSession("http://baas", connector=operator.connector, connector_owner=False) as client, client.get(path, headers=headers) as response:  # fmt: skip
                await problem(response, 400, "invalid-request")

    async def test_apps_do_not_see_each_other(self, operator: Session) -> None:
        await operator.put("/data/v1/things/k", json=1)
        for app, status in [("shop", 200), ("blog", 404)]:
            async with operator.get(
                "/data/v1/things/k", params={"app": app}, headers={"Pilotlight-App": app}
            ) as response:
                assert response.status == status

    async def test_a_function_sees_its_own_app_and_can_not_name_another(
        self, operator: Session, cart: Session
    ) -> None:
        await operator.put("/data/v1/things/k", json="of the shop")
        for path in ("/data/v1/things/k", "/things/k"):
            async with cart.get(path) as response:
                assert await response.json() == "of the shop"
            async with cart.get(path, headers={"Pilotlight-App": "blog"}) as response:
                assert await response.json() == "of the shop"
            async with cart.get(path, params={"app": "blog"}) as response:
                await problem(response, 400, "invalid-request")

    async def test_a_function_writes_by_short_paths_too(self, operator: Session, cart: Session) -> None:
        async with cart.put("/things/k", json=1) as response:
            assert response.status == 201
        async with cart.post("/things", json=2) as response:
            location = response.headers["Location"]
        async with cart.post("/things/n/increment") as response:
            assert await response.json() == {"value": 1}
        async with cart.get(location) as response, operator.get(location) as seen:
            assert await response.json() == await seen.json() == 2


async def test_metrics_are_told(operator: Session, cart: Session) -> None:
    await operator.get("/data/v1/things/none")
    await cart.get("/things")
    async with operator.get("/metrics") as response:
        text = await response.text()
    assert 'pilotlight_data_requests_total{method="GET",status="404"} 1.0' in text
    assert 'pilotlight_granted_listeners{kind="data"} 1.0' in text
    async with cart.get("/metrics") as response:
        assert (await response.json())["documents"] == []  # to a function it is a collection like others


@pytest.mark.parametrize("baas", [100_000], indirect=True)
class TestWhatAnAppMayTake:
    async def test_a_full_app_can_shrink_and_go_on_and_others_do_not_notice(
        self, operator: Session, cart: Session
    ) -> None:
        big = "x" * 30_000
        for number in range(3):
            async with cart.put(f"/things/{number}", json=big) as response:
                assert response.status == 201
        for method, path, body in (("PUT", "/things/3", big), ("POST", "/others", big)):
            async with cart.request(method, path, json=body) as response:
                document = await problem(response, 413, "too-large")
                assert "'shop' take 90" in document["detail"]
                assert "--max-documents" in document["detail"]
        async with cart.get("/things/3") as response:
            assert response.status == 404, "nothing of it was kept"
        async with operator.put(
            "/data/v1/things/3", json=big, headers={"Pilotlight-App": "other"}
        ) as response:
            assert response.status == 201
        async with operator.put("/data/v1/things/0", json="short") as response:
            assert response.status == 204, "a document may always shrink"
        async with cart.put("/things/3", json=big) as response:
            assert response.status == 201
        async with cart.delete("/things/3") as response:
            assert response.status == 204
        async with cart.put("/things/4", json=big) as response:
            assert response.status == 201

    async def test_counters_and_patches_count_what_they_add(self, cart: Session) -> None:
        async with cart.put("/things/0", json={"a": "x" * 99_000}) as response:
            assert response.status == 201
        async with cart.post("/counters/visits/increment") as response:
            assert response.status == 200
        async with cart.patch("/things/0", data=json.dumps({"b": "y" * 2000}), headers=MERGE) as response:
            await problem(response, 413, "too-large")
        async with cart.patch("/things/0", data=b'{"a":null}', headers=MERGE) as response:
            assert response.status == 200

    async def test_many_small_documents_count_for_their_places(self, cart: Session) -> None:
        statuses = []
        for number in range(600):
            async with cart.put(f"/small/{number}", json=1) as response:
                statuses.append(response.status)
        assert statuses == sorted(statuses)
        assert 480 < statuses.count(201) < 500
        assert set(statuses) == {201, 413}
