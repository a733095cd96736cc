"""What a key is good for, at every door of the gateway; and what becomes of wrong ones."""

import asyncio
import base64
import hashlib
import time
from urllib.parse import unquote

import msgspec
import pytest

from function_service.contract import Access, Actor, Scope
from gateway.operations import BASE, OPERATIONS
from tests.fakes.instances import Exchange
from tests.integration.gateway.conftest import Rack, problem

INFO_REFS = "info/refs?service=git-receive-pack"


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture
async def limited(rack: Rack) -> Rack:
    """The function `one` is of the app `app`, `two` of `other`."""
    for scope in Scope:
        rack.service.allow(f"{scope}-all", scope)
        if scope is not Scope.ADMIN:
            rack.service.allow(f"{scope}-app", scope, app="app")
    rack.service.deploy("one", access=Access.KEY)
    rack.service.deploy("two", access=Access.KEY)
    rack.service.routes["two"] = msgspec.structs.replace(rack.service.routes["two"], app="other")
    await rack.settle()
    return rack


async def status(rack: Rack, key: str, method: str, path: str) -> int:
    async with rack.http.request(method, rack.url(path), headers=bearer(key)) as answer:
        if answer.status == 403:
            await problem(answer, "forbidden")
        return answer.status


@pytest.mark.parametrize(
    ("key", "one", "two"),
    [
        ("admin-all", 200, 200),
        ("invoke-all", 200, 200),
        ("invoke-app", 200, 403),
        ("deploy-all", 403, 403),
        ("data-all", 403, 403),
    ],
)
async def test_calls(limited: Rack, key: str, one: int, two: int) -> None:
    for _ in range(3):  # by the long way, then by the short one
        assert await status(limited, key, "GET", "/function/one") == one
        assert await status(limited, key, "GET", "/function/two") == two


async def test_a_key_that_expires_between_two_calls_ends_with_the_first(limited: Rack) -> None:
    limited.service.allow("brief", Scope.INVOKE, expires=time.time() + 1.5)
    await limited.settle()
    assert await status(limited, "brief", "GET", "/function/one") == 200
    async with asyncio.timeout(10):
        while await status(limited, "brief", "GET", "/function/one") == 200:
            pass
    async with limited.get("/function/one", headers=bearer("brief")) as answer:
        assert "'brief' expired at" in (await problem(answer, "forbidden"))["detail"]


@pytest.mark.parametrize("key", ["invoke-all", "data-all", "deploy-app", "deploy-all"])
async def test_what_is_the_operators_needs_admin(limited: Rack, key: str) -> None:
    for operation in OPERATIONS:
        if operation.scope is Scope.ADMIN:
            path = BASE + operation.path.replace("{name}", "one").replace("{id}", "k1").replace(
                "{stage}", "code"
            )
            async with limited.http.request(
                operation.method, limited.url(path), headers=bearer(key)
            ) as answer:
                assert "scope admin" in (await problem(answer, "forbidden"))["detail"], operation.name


def test_which_operations_a_key_of_the_scope_deploy_has() -> None:
    kinds = {operation.path.split("/")[1] for operation in OPERATIONS if operation.scope is Scope.ADMIN}
    assert kinds == {"caches", "layers", "images", "secrets", "keys", "audit", "guarantees"}
    assert {operation.scope for operation in OPERATIONS} == {Scope.ADMIN, Scope.DEPLOY}


async def test_a_deploy_key_has_the_functions_of_its_app_only(limited: Rack) -> None:
    for operation in OPERATIONS:
        if not operation.path.startswith("/functions/{name}") or operation.method == "DELETE":
            continue
        done = 400 if operation.name == "open_shell" else 200  # this is no upgrade
        for name, expected in (("one", done), ("two", 403), ("none", 404)):
            path = BASE + operation.path.replace("{name}", name)
            found = await status(limited, "deploy-app", operation.method, path)
            assert found == expected, (operation.name, name)
    assert await status(limited, "deploy-app", "DELETE", f"{BASE}/functions/two") == 403
    assert await status(limited, "deploy-app", "DELETE", f"{BASE}/apps/other") == 403
    assert limited.service.deleted == []
    assert await status(limited, "deploy-app", "DELETE", f"{BASE}/functions/one") == 204
    assert limited.service.deleted == ["one"]


async def test_lists_show_an_apps_key_what_belongs_to_the_app(limited: Rack) -> None:
    limited.service.allow("deploy-other", Scope.DEPLOY, app="other")
    await limited.settle()
    for key, shown in (("deploy-all", 1), ("deploy-app", 1), ("deploy-other", 0)):
        async with limited.get(f"{BASE}/apps", headers=bearer(key)) as answer:
            assert len((await answer.json())["apps"]) == shown, key
        async with limited.get(f"{BASE}/functions", headers=bearer(key)) as answer:
            assert bool((await answer.json())["functions"]) is bool(shown), key


async def test_the_story_of_a_request_shows_an_apps_key_the_calls_of_the_app(limited: Rack) -> None:
    for function in ("one", "two"):
        headers = bearer("admin-all") | {"X-Request-Id": f"r-{function}"}
        async with limited.get(f"/function/{function}", headers=headers) as answer:
            assert answer.status == 200
    await limited.service.until(lambda: len(limited.service.usage) == 2)
    for key, request, expected in (
        ("deploy-app", "r-one", 200),
        ("deploy-app", "r-two", 404),
        ("deploy-all", "r-two", 200),
        ("invoke-all", "r-two", 403),
    ):
        assert await status(limited, key, "GET", f"{BASE}/requests/{request}") == expected


@pytest.mark.parametrize(
    ("key", "path", "expected"),
    [
        ("deploy-app", f"/git/app.git/{INFO_REFS}", 200),
        ("deploy-app", f"/git/other.git/{INFO_REFS}", 403),
        ("deploy-app", f"/git/%6fther.git/{INFO_REFS}", 403),
        ("deploy-app", f"/git/app.git/../other.git/{INFO_REFS}", 403),
        ("deploy-app", f"/git/app.git/%2e%2e/other.git/{INFO_REFS}", 403),
        ("deploy-app", f"/git/app.git%2f..%2fother.git/{INFO_REFS}", 403),
        ("deploy-app", f"/git/app.git/info/../../other.git/{INFO_REFS}", 403),
        ("deploy-all", f"/git/other.git/{INFO_REFS}", 200),
        ("invoke-app", f"/git/app.git/{INFO_REFS}", 403),
        ("data-all", f"/git/app.git/{INFO_REFS}", 403),
    ],
)
async def test_pushes(limited: Rack, key: str, path: str, expected: int) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n"
    assert (await limited.raw(request.encode())).status == expected  # as it is: clients normalise paths
    assert len(limited.neighbours["builder"]) == (expected == 200)


async def test_the_builder_is_told_who_pushes_and_nobody_else_can_say_so(limited: Rack) -> None:
    forged = {"Pilotlight-By": "%7B%22key%22%3A%22k9%22%7D", "X-Request-Id": "push-1"}
    headers = bearer("deploy-app") | forged
    async with limited.get(f"/git/app.git/{INFO_REFS}", headers=headers) as answer:
        assert answer.status == 200
    _, _, got, _ = limited.neighbours["builder"][-1]
    by = msgspec.json.decode(unquote(got["Pilotlight-By"]), type=Actor)
    assert by == Actor(key="deploy-app", name="deploy-app", address="127.0.0.1", request_id="push-1")
    assert len(got.getall("Pilotlight-By")) == 1
    assert got["X-Request-Id"] == "push-1"


@pytest.mark.parametrize(
    ("key", "query", "header", "expected"),
    [
        ("data-app", "?app=app", None, 200),
        ("data-app", "", None, 200),
        ("data-app", "?app=other", None, 403),
        ("data-app", "?%61pp=other", None, 403),
        ("data-app", "", "other", 403),
        ("data-all", "?app=other", None, 200),
        ("invoke-all", "?app=app", None, 403),
        ("deploy-app", "?app=app", None, 403),
    ],
)
async def test_documents(limited: Rack, key: str, query: str, header: str | None, expected: int) -> None:
    headers = bearer(key) | ({"Pilotlight-App": header} if header is not None else {})
    async with limited.get(f"/data/v1/notes{query}", headers=headers) as answer:
        assert answer.status == expected
    seen = limited.neighbours["baas"]
    assert len(seen) == (expected == 200)
    if seen and key == "data-app":  # whatever the query says, the data API holds it to this
        assert seen[-1][2].getall("Pilotlight-App") == ["app"]


async def test_changes_are_made_in_the_name_of_the_key(limited: Rack) -> None:
    headers = bearer("admin-all") | {"X-Request-Id": "r-7", "X-Forwarded-For": "10.0.0.9, 203.0.113.5"}
    async with limited.http.delete(limited.url(f"{BASE}/caches/code"), headers=headers) as answer:
        assert answer.status == 204
    expected = Actor(key="admin-all", name="admin-all", address="203.0.113.5", request_id="r-7")
    assert limited.service.actors == [expected]


async def test_wrong_keys_at_speed_are_slowed_down_at_every_door_and_right_ones_are_not(
    limited: Rack,
) -> None:
    doors = ["/function/one", f"{BASE}/apps", f"/git/app.git/{INFO_REFS}", "/data/v1/notes?app=app"]

    async def attempt(key: str, door: str, address: str) -> tuple[int, str | None]:
        headers = bearer(key) | {"X-Forwarded-For": address}
        async with limited.get(door, headers=headers) as answer:
            return answer.status, answer.headers.get("Retry-After")

    found = [await attempt(f"guess-{n}", doors[n % 4], "203.0.113.1") for n in range(24)]
    assert found[:10] == [(403, None)] * 10
    assert (429, "1") in found[10:]
    for door in doors:
        assert await attempt("admin-all", door, "203.0.113.1") == (200, None)
    assert await attempt("guess", doors[0], "203.0.113.2") == (403, None)  # behind the same proxy
    await limited.service.until(lambda: limited.service.usage)
    assert [call.status for call in limited.service.usage] == [200]  # who may not call is not remembered


async def test_a_function_never_gets_a_key_that_has_expired(rack: Rack) -> None:
    async def echo(exchange: Exchange) -> None:
        await exchange.reply(200, str(exchange.headers).encode())

    rack.service.allow("old", Scope.ADMIN, expires=1.0)
    await rack.deploy("open", echo)
    async with rack.get("/function/open", headers=bearer("old")) as answer:
        assert "Bearer old" not in await answer.text()


async def test_keys_stand_in_no_log_and_no_refusal(limited: Rack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    secret = "pl_a-key-that-nobody-shall-see"
    basic = base64.b64encode(f"git:{secret}".encode()).decode()
    paths = ["/function/one", f"{BASE}/keys", f"/git/app.git/{INFO_REFS}", "/data/v1/x?app=app", "/nothing"]
    headers = [
        f"Bearer {secret}",
        f"Basic {basic}",
        f"Bearer {secret}\x01",
        f"Bearer {secret}\r\nbroken",
        secret,
    ]
    answers = []
    for path in paths:
        for value in headers:
            head = f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: {value}\r\n\r\n"
            answers.append((await limited.raw(head.encode())).data)
    seen = caplog.text.encode() + b"".join(answers)
    assert b"action=" in seen
    assert secret.encode() not in seen
    assert basic.encode() not in seen
    assert not any(hashlib.sha256(secret.encode()).hexdigest().encode() in each for each in answers)
