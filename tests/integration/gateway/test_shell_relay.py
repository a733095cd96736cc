"""Shells over a WebSocket: who may open one, what is passed on, and how they end."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from function_service.contract import Access, Exit, Scope, Terminal
from function_service.shell_frames import LENGTH, frame
from gateway.operations import BASE
from pilotlight.problems import Problem
from tests.integration.gateway.conftest import KEY, Rack, problem

ME = {"Authorization": f"Bearer {KEY}"}
PATH = f"{BASE}/functions/one/shell"


def of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def ready(rack: Rack) -> Rack:
    rack.service.deploy("two", access=Access.KEY)
    await rack.deploy("one", access=Access.KEY)
    return rack


@contextlib.asynccontextmanager
async def shell(
    rack: Rack, *words: str, headers: dict[str, str] = ME
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Open one, and wait until it is open."""
    async with rack.http.ws_connect(rack.url(PATH), headers=headers) as opened:
        await opened.send_json({"command": words})
        assert json.loads((await opened.receive(10)).data) == {"instance": "s1", "revision": "r1"}
        yield opened


async def last(opened: aiohttp.ClientWebSocketResponse) -> dict:
    """Return the last message, behind which the connection ends."""
    message = await opened.receive(10)
    assert message.type is aiohttp.WSMsgType.TEXT, message
    assert (await opened.receive(10)).type is aiohttp.WSMsgType.CLOSE
    return json.loads(message.data)


async def test_frames_pass_both_ways_and_the_exit_code_comes_last(ready: Rack) -> None:
    async with shell(ready, "a", "b c") as opened:
        for content in (b"x", b"y" * (64 << 10)):
            await opened.send_bytes(frame(0, content))
            assert (await opened.receive(10)).data == frame(0, content)
        ready.service.shell_ends.set_result(Exit(7))
        assert await last(opened) == {"exit": {"code": 7, "reason": ""}}
    assert ready.service.shells == [("one", ("a", "b c"), None, "ended")]
    assert ready.service.actors[-1].key == "k1"


async def test_a_terminal_is_told_on(ready: Rack) -> None:
    async with ready.http.ws_connect(ready.url(PATH), headers=ME) as opened:
        await opened.send_json({"terminal": {"kind": "xterm", "rows": 24, "columns": 80}})
        await opened.receive(10)
    assert ready.service.shells[0][:3] == ("one", (), Terminal("xterm", 24, 80))


async def test_it_is_left_when_the_caller_goes(ready: Rack) -> None:
    async with shell(ready):
        pass
    await ready.service.until(lambda: ready.service.shells[0][3] == "left")


async def test_it_is_left_when_the_callers_connection_breaks(ready: Rack) -> None:
    async with shell(ready) as opened:
        opened.get_extra_info("socket")  # it is there
        opened._response.connection.transport.abort()
        await ready.service.until(lambda: ready.service.shells[0][3] == "left")


@pytest.mark.parametrize("nonsense", [LENGTH.pack(0), LENGTH.pack(1 << 31) + b"x" * 100, b"\0"])
async def test_nonsense_from_a_sandbox_ends_it_and_nothing_else(ready: Rack, nonsense: bytes) -> None:
    async with shell(ready) as opened:
        ready.service.shell_writer.write(nonsense)
        await ready.service.shell_writer.drain()
        ready.service.shell_writer.close()
        ready.service.shell_ends.set_result(Exit(0))
        assert await last(opened) == {"exit": {"code": 0, "reason": ""}}


async def test_a_shell_that_can_not_be_opened_says_why(ready: Rack) -> None:
    ready.service.refuse = lambda _: Problem("no-capacity", "The machine is full.")
    async with ready.http.ws_connect(ready.url(PATH), headers=ME) as opened:
        await opened.send_json({})
        told = await last(opened)
        assert told["problem"]["type"] == "urn:pilotlight:problem:no-capacity"
        assert told["problem"]["detail"] == "The machine is full."


async def test_a_function_service_that_goes_away_is_told(ready: Rack) -> None:
    async with shell(ready) as opened:
        await ready.service.stop_serving()
        assert (await last(opened))["problem"]["status"] == 503
    await ready.service.start()


@pytest.mark.parametrize("first", ["[]", "{", '{"command": [1]}', '{"other": 1}', b"binary"])
async def test_a_first_message_that_is_none_is_refused(ready: Rack, first: str | bytes) -> None:
    async with ready.http.ws_connect(ready.url(PATH), headers=ME) as opened:
        await (opened.send_str(first) if isinstance(first, str) else opened.send_bytes(first))
        assert (await last(opened))["problem"]["status"] == 400
    assert ready.service.shells == []


async def test_messages_are_bounded(ready: Rack) -> None:
    async with shell(ready) as opened:
        await opened.send_bytes(b"\0" * (1 << 20))
        assert (await opened.receive(10)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR)
        await ready.service.until(lambda: ready.service.shells[0][3] == "left")


async def test_what_is_no_upgrade_is_told_what_this_is(ready: Rack) -> None:
    async with ready.get(PATH, headers=ME) as answer:
        assert "WebSocket" in (await problem(answer, "invalid-request"))["detail"]
    async with ready.get(PATH.replace("one", "none"), headers=ME) as answer:
        await problem(answer, "unknown-function")


@pytest.mark.parametrize(
    ("key", "one", "two"),
    [("deploy-app", 101, 403), ("deploy-all", 101, 101), ("invoke-all", 403, 403), ("data-all", 403, 403)],
)
async def test_whoever_may_deploy_a_function_may_open_a_shell_of_it(
    ready: Rack, key: str, one: int, two: int
) -> None:
    for scope in Scope:
        ready.service.allow(f"{scope}-all", scope)
    ready.service.allow("deploy-app", Scope.DEPLOY, app="app")
    ready.service.routes["two"] = msgspec.structs.replace(ready.service.routes["two"], app="other")
    await ready.settle()
    for name, expected in (("one", one), ("two", two)):
        try:
            async with ready.http.ws_connect(ready.url(PATH.replace("one", name)), headers=of(key)):
                status = 101
        except aiohttp.WSServerHandshakeError as error:
            status = error.status
        assert status == expected


async def test_a_key_that_is_withdrawn_opens_none_and_ends_those_that_are_open(ready: Rack) -> None:
    ready.service.allow("mine", Scope.DEPLOY)
    await ready.settle()
    async with shell(ready, headers=of("mine")) as opened:
        ready.service.more_keys.clear()
        await ready.settle()
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await ready.http.ws_connect(ready.url(PATH), headers=of("mine"))
        assert caught.value.status == 403
        told = await last(opened)
        assert (told["exit"]["code"], "withdrawn" in told["exit"]["reason"]) == (137, True)


async def test_a_key_that_expires_ends_its_shells(ready: Rack) -> None:
    ready.service.allow("brief", Scope.DEPLOY, expires=time.time() + 1.0)
    await ready.settle()
    async with shell(ready, headers=of("brief")) as opened:
        assert "expired" in (await last(opened))["exit"]["reason"]


async def test_a_web_page_of_another_origin_opens_none(ready: Rack) -> None:
    for origin, expected in (
        (f"http://127.0.0.1:{ready.port}", 101),
        ("https://evil.example", 403),
        ("null", 403),
    ):
        try:
            async with ready.http.ws_connect(ready.url(PATH), headers={**ME, "Origin": origin}):
                status = 101
        except aiohttp.WSServerHandshakeError as error:
            status = error.status
        assert status == expected


async def test_a_gateway_that_stops_ends_its_shells_and_says_so(ready: Rack) -> None:
    async with shell(ready) as opened:
        stopping = asyncio.ensure_future(ready.stop())
        assert "the gateway stops" in (await last(opened))["exit"]["reason"]
        await stopping
