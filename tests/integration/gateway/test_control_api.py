"""Everything but calls: the control API, the relays, metrics and health."""

import asyncio
import base64
import io
import json
import select
import socket

import pytest

from gateway.operations import BASE, OPERATIONS
from pilotlight import sockets
from tests.integration.gateway.conftest import KEY, Rack, problem


async def ask(
    rack: Rack, key: dict[str, str], method: str, path: str, body: object = None, status: int = 200
):
    data = json.dumps(body).encode() if body is not None else None
    async with rack.http.request(method, rack.url(BASE + path), headers=key, data=data) as answer:
        text = await answer.read()
        assert answer.status == status, text
        if status == 204:
            assert text == b""
            return None
        assert answer.headers["Content-Type"].startswith("application/")
        return json.loads(text)


async def test_no_answer_tells_what_the_server_is_made_of(rack: Rack, key: dict[str, str]) -> None:
    await rack.deploy("one")
    paths = [
        "/healthz",
        "/readyz",
        "/metrics",
        "/nothing",
        "/api/v1/apps",
        "/api/v1/functions/one/logs",
        "/function/no",
    ]
    for path in paths:
        for headers in ({}, key):
            async with rack.get(path, headers=headers) as answer:
                assert answer.headers["Server"] == "Pilotlight", path
    for request in (b"this is no HTTP\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"):
        assert b"Server: Pilotlight\r\n" in (await rack.raw(request)).head


async def test_apps_and_functions(rack: Rack, key: dict[str, str]) -> None:
    await rack.deploy("one")
    await rack.deploy("two")
    assert (await ask(rack, key, "GET", "/apps"))["apps"][0]["functions"] == ["one", "two"]
    assert (await ask(rack, key, "GET", "/apps/app"))["commit"] == "c1"
    assert [f["name"] for f in (await ask(rack, key, "GET", "/functions"))["functions"]] == ["one", "two"]
    one = await ask(rack, key, "GET", "/functions/one")
    assert one["config"]["runtime"] == "python3.11"
    assert one["config"]["access"] == "key"
    assert (await ask(rack, key, "GET", "/instances")) == {"instances": []}
    assert (await ask(rack, key, "GET", "/functions/one/instances")) == {"instances": []}
    assert (await ask(rack, key, "DELETE", "/functions/one/instances")) == {"ended": 2}
    assert (await ask(rack, key, "GET", "/functions/one/revisions"))["revisions"][0]["id"] == "r1"
    assert (await ask(rack, key, "POST", "/functions/one/rollback"))["id"] == "previous"
    assert (await ask(rack, key, "POST", "/functions/one/rollback", {}))["id"] == "previous"
    assert (await ask(rack, key, "POST", "/functions/one/rollback", {"revision": "r9"}))["id"] == "r9"


async def test_deleting_the_last_function_deletes_the_repository_too(rack: Rack, key: dict[str, str]) -> None:
    await rack.deploy("one")
    await rack.deploy("two")
    await ask(rack, key, "DELETE", "/functions/one", status=204)
    assert not rack.neighbours["builder"]
    await ask(rack, key, "DELETE", "/functions/two", status=204)
    assert rack.neighbours["builder"][0][:2] == ("DELETE", "/repositories/app")


async def test_deleting_an_app(rack: Rack, key: dict[str, str]) -> None:
    await rack.deploy("one")
    await rack.deploy("two")
    await ask(rack, key, "DELETE", "/apps/app", status=204)
    assert rack.service.deleted == ["one", "two"]
    assert rack.neighbours["builder"][0][:2] == ("DELETE", "/repositories/app")
    await ask(rack, key, "DELETE", "/apps/app", status=404)


async def test_emptying_caches_and_tracing_imports(rack: Rack, key: dict[str, str]) -> None:
    await rack.deploy("one")
    await ask(rack, key, "DELETE", "/caches/runtime", status=204)
    await ask(rack, key, "DELETE", "/caches/no-such-stage", status=404)
    assert rack.service.emptied == ["runtime"]
    traced = await ask(rack, key, "POST", "/functions/one/imports")
    assert traced == {"imports": [{"name": "handler", "depth": 0, "own": 1.0, "total": 2.5}]}
    await ask(rack, key, "POST", "/functions/none/imports", status=404)


async def test_secrets_keys_layers_and_guarantees(rack: Rack, key: dict[str, str]) -> None:
    await ask(rack, key, "PUT", "/secrets/TOKEN", {"value": "s3cret"}, status=204)
    assert rack.service.secrets_set == {"TOKEN": "s3cret"}
    assert await ask(rack, key, "GET", "/secrets") == {"secrets": ["TOKEN"]}
    await ask(rack, key, "DELETE", "/secrets/TOKEN", status=204)
    await ask(rack, key, "DELETE", "/secrets/TOKEN", status=404)
    keys = (await ask(rack, key, "GET", "/keys"))["keys"]
    assert all(set(each) == {"id", "name", "created", "scopes", "app", "expires"} for each in keys)
    made = await ask(rack, key, "POST", "/keys", {"name": "ci"}, status=201)
    unlimited = {"scopes": ["admin"], "app": None, "expires": None}
    assert made == {"id": "k2", "name": "ci", "created": 1.0, "key": "the-secret", **unlimited}
    limited = {"scopes": ["invoke", "data"], "app": "shop", "expires": 4e9}
    made = await ask(rack, key, "POST", "/keys", {"name": "ci", **limited}, status=201)
    assert {name: made[name] for name in limited} == limited
    await ask(rack, key, "DELETE", "/keys/k1", status=409)
    assert (await ask(rack, key, "GET", "/layers"))["layers"][0]["digest"] == "d"
    assert (await ask(rack, key, "GET", "/images"))["images"][0]["functions"] == ["hello"]
    assert (await ask(rack, key, "GET", "/guarantees"))["guarantees"][0]["remedy"] == "delegate one"


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("PUT", "/secrets/TOKEN", b"", '"value"'),
        ("PUT", "/secrets/TOKEN", b"{", '"value"'),
        ("PUT", "/secrets/TOKEN", b'{"value": 1}', "str"),
        ("PUT", "/secrets/TOKEN", b'{"value": "x", "extra": 1}', "extra"),
        ("PUT", "/secrets/TOKEN", b"\xff\xfe", '"value"'),
        ("PUT", "/secrets/TOKEN", b'{"value": "a\\u0000b"}', "NUL"),
        ("PUT", "/secrets/NO-DASH", b'{"value": "x"}', "NO-DASH"),
        ("POST", "/keys", b"[]", '"name"'),
        ("POST", "/keys", b'{"name": ""}', "1 to 100"),
        ("POST", "/keys", b'{"name": "a\\nb"}', "printable"),
        ("POST", "/keys", b'{"name": "a", "scopes": ["root"]}', "root"),
        ("POST", "/keys", b'{"name": "a", "scopes": []}', "invoke, deploy, data, admin"),
        ("POST", "/keys", b'{"name": "a", "app": "shop"}', "can't be for one app"),
        ("POST", "/keys", b'{"name": "a", "scopes": ["data"], "app": "No"}', "can't name an app"),
        ("POST", "/keys", b'{"name": "a", "expires": 1}', "future"),
        ("POST", "/keys", b'{"name": "a", "expires": 1e99}', "future"),
        ("GET", "/audit?tail=10001", None, "tail"),
        ("POST", "/functions/f/rollback", b'{"revision": 5}', '"revision"'),
        ("GET", "/functions/f/logs?tail=-1", None, "tail"),
        ("GET", "/functions/f/logs?tail=many", None, "tail"),
        ("GET", "/functions/f/logs?follow=yes", None, "follow"),
    ],
)
async def test_bad_input_is_told_what_was_expected(
    rack: Rack, key: dict[str, str], method: str, path: str, body: bytes | None, named: str
) -> None:
    await rack.deploy("f")
    async with rack.http.request(method, rack.url(BASE + path), headers=key, data=body) as answer:
        assert named in (await problem(answer, "invalid-request"))["detail"]
    assert not rack.service.secrets_set


async def test_a_body_that_is_too_large_for_the_control_api(rack: Rack, key: dict[str, str]) -> None:
    async with rack.http.put(
        rack.url(BASE + "/secrets/A"), headers=key, data=io.BytesIO(b"x" * (2 << 20))
    ) as answer:
        await problem(answer, "too-large")


async def test_logs_are_read_and_followed(rack: Rack, key: dict[str, str]) -> None:
    await rack.deploy("f")
    async with rack.get(BASE + "/functions/f/logs?tail=2", headers=key) as answer:
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in (await answer.text()).splitlines()]
    assert [line["line"] for line in lines] == ["line 1", "line 2"]
    async with rack.get(BASE + "/functions/f/logs?follow=true", headers=key) as answer:
        assert json.loads(await answer.content.readline())["line"] == "line 0"
    async with rack.get(BASE + "/functions/nope/logs?follow=true", headers=key) as answer:
        await problem(answer, "unknown-function")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_every_operation_needs_a_key(rack: Rack, operation) -> None:
    path = BASE + operation.path.replace("{name}", "f").replace("{id}", "f")
    async with rack.http.request(operation.method, rack.url(path)) as answer:
        await problem(answer, "key-required")
        assert 'Basic realm="pilotlight"' in answer.headers["WWW-Authenticate"]
    async with rack.http.request(
        operation.method, rack.url(path), headers={"Authorization": "Bearer x"}
    ) as answer:
        await problem(answer, "forbidden")


async def test_the_openapi_document_is_served(rack: Rack, key: dict[str, str]) -> None:
    document = await ask(rack, key, "GET", "/openapi.json")
    assert BASE + "/functions/{name}/rollback" in document["paths"]


async def test_unknown_paths_and_wrong_methods(rack: Rack, key: dict[str, str]) -> None:
    for path in ("/", "/nothing", "/function", "/api/v1/nothing", "/git/", "/data/v2/x"):
        async with rack.get(path, headers=key) as answer:
            if path != "/git/":
                await problem(answer, "not-found")
                assert answer.headers["X-Request-Id"]
    for path, allowed in (("/healthz", "GET, HEAD"), (BASE + "/keys", "GET, HEAD, POST")):
        async with rack.http.put(rack.url(path), headers=key) as answer:
            await problem(answer, "method-not-allowed")
            assert answer.headers["Allow"] == allowed


async def test_a_fault_of_ours_is_a_problem_document_without_details(rack: Rack, key: dict[str, str]) -> None:
    async def broken() -> str:
        raise RuntimeError("secret detail")

    assert rack.service._server is not None
    method, _ = rack.service._server._methods["Control.layers"]
    rack.service._server._methods["Control.layers"] = (method, broken)
    async with rack.get(BASE + "/layers", headers=key) as answer:
        await problem(answer, "internal")


async def test_git_goes_to_the_builder(rack: Rack, key: dict[str, str]) -> None:
    credentials = "Basic " + base64.b64encode(f"git:{KEY}".encode()).decode()
    path = "/git/app.git/info/refs?service=git-receive-pack"
    async with rack.get(path) as answer:
        await problem(answer, "key-required")
    async with rack.get(path, headers={"Authorization": credentials}) as answer:
        assert await answer.text() == f"builder: GET {path} 0"
    body = b"0123456789" * 50_000
    async with rack.http.post(
        rack.url("/git/app.git/git-receive-pack"),
        headers={"Authorization": credentials, "Content-Encoding": "gzip"},
        data=body,
    ) as answer:
        assert (await answer.text()).endswith("500000")
        assert answer.headers["ETag"] == '"1"'
    method, _, headers, received = rack.neighbours["builder"][-1]
    assert (method, received) == ("POST", body)
    assert "Authorization" not in headers
    assert headers["Content-Encoding"] == "gzip"
    assert headers["X-Request-Id"]


async def test_documents_go_to_the_data_api(rack: Rack, key: dict[str, str]) -> None:
    async with rack.http.put(
        rack.url("/data/v1/notes/a%2Fb?app=app&ttl=5"), headers={**key, "If-Match": '"1"'}, data=b"{}"
    ) as answer:
        assert await answer.text() == "baas: PUT /data/v1/notes/a%2Fb?app=app&ttl=5 2"
    _, _, headers, _ = rack.neighbours["baas"][-1]
    assert headers["If-Match"] == '"1"'
    async with rack.get("/data/v1/notes?app=app") as answer:
        await problem(answer, "key-required")


async def test_a_push_announced_by_expect_is_let_in_once(rack: Rack, key: dict[str, str]) -> None:
    reader, writer = await rack.connect()
    writer.write(
        b"POST /git/app.git/git-receive-pack HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
        b"Connection: close\r\nAuthorization: " + key["Authorization"].encode() + b"\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"ok")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()


async def test_a_neighbour_that_is_away_is_named(
    rack: Rack, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.relay.Builder.PATIENCE", 0.05)
    rack.data.socket("builder").unlink()
    async with rack.get("/git/app.git/info/refs", headers=key) as answer:
        assert "builder" in (await problem(answer, "unavailable"))["detail"]
    async with rack.get("/readyz") as answer:
        assert "builder" in (await problem(answer, "unavailable"))["detail"]
    async with rack.get("/healthz") as answer:
        assert answer.status == 200


async def test_not_ready_while_the_function_service_is_away(rack: Rack) -> None:
    await rack.service.stop_serving()
    async with asyncio.timeout(10):
        status = 200
        while status == 200:
            async with rack.get("/readyz") as answer:
                if (status := answer.status) != 200:
                    assert "function service" in (await problem(answer, "unavailable"))["detail"]


async def test_a_request_waits_for_a_neighbour_that_is_restarting(rack: Rack, key: dict[str, str]) -> None:
    place = rack.data.socket("baas")
    away = place.rename(place.with_name("away"))
    waiting = asyncio.create_task(rack.http.put(rack.url("/data/v1/c/k?app=a"), data=b"1", headers=key))
    while True:  # the gateway has it and answers others, so it has found nobody by now
        async with rack.get("/readyz") as answer:
            if answer.status == 503:
                break
    assert not waiting.done()
    away.rename(place)
    async with await waiting as answer:
        assert (answer.status, await answer.text()) == (200, "baas: PUT /data/v1/c/k?app=a 1")
    assert len(rack.neighbours["baas"]) == 1


async def test_a_push_waits_longer_for_its_builder_than_a_write_for_the_data_api(
    rack: Rack, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.relay._PATIENCE", 0.0)
    place = rack.data.socket("builder")
    away = place.rename(place.with_name("away"))
    rack.data.socket("baas").unlink()
    pushing = asyncio.create_task(rack.get("/git/app.git/info/refs", headers=key).__aenter__())
    async with rack.get("/data/v1/c/k?app=a", headers=key) as answer:
        await problem(answer, "unavailable")
    assert not pushing.done()
    away.rename(place)
    async with await pushing as answer:
        assert answer.status == 200


async def test_what_a_killed_neighbour_had_not_read_goes_to_the_next_one(
    rack: Rack, key: dict[str, str]
) -> None:
    place = rack.data.socket("baas")
    away = place.rename(place.with_name("away"))
    with sockets.listen(place) as deaf:
        sending = asyncio.create_task(rack.http.put(rack.url("/data/v1/c/k?app=a"), data=b"1", headers=key))
        loop = asyncio.get_running_loop()
        taken, _ = await loop.sock_accept(deaf)
        while not ready(taken):
            await asyncio.sleep(0)
        away.rename(place)
        taken.close()  # with the request unread, as the kernel does it for a process that is killed
    async with await sending as answer:
        assert answer.status == 200
    assert len(rack.neighbours["baas"]) == 1


async def test_what_a_neighbour_may_have_done_is_not_asked_for_again(rack: Rack, key: dict[str, str]) -> None:
    place = rack.data.socket("baas")
    place.unlink()
    with sockets.listen(place) as broken:
        sending = asyncio.create_task(rack.http.put(rack.url("/data/v1/c/k?app=a"), data=b"1", headers=key))
        taken, _ = await asyncio.get_running_loop().sock_accept(broken)
        assert await asyncio.get_running_loop().sock_recv(taken, 65536)
        taken.close()
        async with await sending as answer:
            told = await problem(answer, "unavailable")
    assert "may have been done, or not" in told["detail"]


def ready(connection: socket.socket) -> bool:
    """Tell whether something has come that nobody has read."""
    return bool(select.select([connection], [], [], 0)[0])


async def test_ready_when_all_parts_answer(rack: Rack) -> None:
    async with rack.get("/readyz") as answer:
        assert answer.status == 200


async def test_metrics_of_all_services(rack: Rack) -> None:
    await rack.deploy("hello")
    for _ in range(3):
        async with rack.get("/function/hello"):
            pass
    async with rack.get("/function/nope"):
        pass
    async with rack.get("/metrics") as answer:
        text = await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'pilotlight_calls_total{function="hello",start="cold",status="200"} 1.0' in text
    assert 'pilotlight_calls_total{function="hello",start="warm",status="200"} 2.0' in text
    assert 'pilotlight_call_duration_seconds_count{function="hello",start="warm"} 2.0' in text
    assert 'pilotlight_refusals_total{kind="unknown-function"} 1.0' in text
    assert 'pilotlight_queue_length{function="hello"} 0.0' in text
    assert "fake_metric 1" in text
    assert "baas_metric 1" in text
    assert "builder_metric 1" in text
    assert 'pilotlight_up{service="baas"} 1' in text
    parse(text)
    rack.service.routes.clear()
    await rack.settle()
    async with rack.get("/metrics") as answer:
        assert 'function="hello"' not in await answer.text()


def parse(text: str) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))


async def test_metrics_without_the_neighbours(rack: Rack) -> None:
    await rack.service.stop_serving()
    rack.data.socket("baas").unlink()
    async with asyncio.timeout(15), rack.get("/metrics") as answer:
        text = await answer.text()
    assert 'pilotlight_up{service="baas"} 0' in text
    assert 'pilotlight_up{service="function-service"} 0' in text
    parse(text)
    await rack.service.start()
