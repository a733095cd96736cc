"""Warm calls that go from the caller's connection to the instance's without aiohttp, and back to it in need."""

import asyncio
import hashlib
import json

import pytest

from function_service.contract import Access
from gateway import quick
from tests.fakes.instances import Exchange, closes_kept_alive
from tests.integration.gateway.conftest import Rack, problem


async def echo_whole(exchange: Exchange) -> None:
    """Answer with the target and the body, as a whole."""
    body = await exchange.body()
    await exchange.reply(200, f"{exchange.method} {exchange.target} ".encode() + body)


async def test_only_the_first_call_of_an_instance_goes_the_long_way(rack: Rack, caller, long_way) -> None:
    await rack.deploy("f", echo_whole)
    first = await caller.call("/a?x=1")
    second = await caller.call("/a?x=1")
    assert long_way == ["/function/f/a?x=1"]
    assert first[2] == second[2] == b"GET /a?x=1 "
    names = [{line.partition(":")[0] for line in head.split("\r\n")} for _, head, _ in (first, second)]
    assert names[0] == names[1]
    assert "Pilotlight-Start: warm" in second[1]
    await rack.service.until(lambda: len(rack.service.usage) == 2)
    assert [call.cold for call in rack.service.usage] == [True, False]
    async with rack.get("/metrics") as answer:
        text = await answer.text()
    assert 'pilotlight_calls_total{function="f",start="warm",status="200"} 1.0' in text


async def test_targets_methods_and_bodies_are_those_of_each_request(rack: Rack, caller, long_way) -> None:
    await rack.deploy("f", echo_whole)
    await caller.call()
    for path, seen in (("", "/"), ("?q", "/?q"), ("/x%20y?z=%2F", "/x%20y?z=%2F"), ("/longer/", "/longer/")):
        for body in (b"one", b"two", b"three"):
            assert (await caller.call(path, body, "POST"))[2] == f"POST {seen} ".encode() + body
        assert (await caller.call(path))[2] == f"GET {seen} ".encode()
    status, _, body = await caller.call("/", b"", "HEAD")
    assert (status, body) == (200, b"")
    assert long_way == ["/function/f/"]
    assert (await caller.call("/after"))[2] == b"GET /after ", "over a new connection, as HEAD spends one"


async def test_answers_of_every_framing_come_through(rack: Rack, caller, long_way) -> None:
    async def framed(exchange: Exchange) -> None:
        match exchange.target.split("/"):
            case [_, "chunked", text]:
                await exchange.write(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n0\r\n\r\n"
                    % text.encode()
                )
            case [_, "empty"]:
                await exchange.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            case [_, "unsized"]:
                await exchange.write(b"HTTP/1.1 200 OK\r\n\r\nto the end")
                exchange.keep_alive = False
            case [_, "interim"]:
                await exchange.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
                await exchange.reply(200, b"after")
            case _:
                await exchange.reply(200, exchange.target.encode())

    await rack.deploy("f", framed)
    await caller.call("/first")
    assert (await caller.call("/chunked/abcde"))[2] == b"abcde"
    assert (await caller.call("/chunked/vwxyz"))[2] == b"vwxyz"
    assert (await caller.call("/empty"))[0] == 204
    assert (await caller.call("/same1"))[2] == b"/same1"
    assert (await caller.call("/same2"))[2] == b"/same2"
    assert (await caller.call("/longer"))[2] == b"/longer"
    assert (await caller.call("/interim"))[2] == b"after"
    assert long_way[0] == "/function/f/first"
    assert (await caller.call("/unsized"))[2] == b"to the end"
    assert (await caller.call("/last"))[2] == b"/last"


async def test_what_the_function_says_anew_in_its_head_is_passed_on(rack: Rack, caller) -> None:
    async def counted(exchange: Exchange) -> None:
        await exchange.reply(200, b"same", ("X-Count", str(exchange.instance.calls)), ("Set-Cookie", "a=1"))

    await rack.deploy("f", counted)
    for count in range(1, 5):
        _, head, _ = await caller.call()
        assert f"X-Count: {count}\r\n" in head
        assert head.count("Set-Cookie: a=1\r\n") == 1


async def test_a_slow_answer_is_waited_for_on_the_long_way(rack: Rack, caller, long_way, monkeypatch) -> None:
    monkeypatch.setattr(quick, "_SOON", 0.01)

    async def slow(exchange: Exchange) -> None:
        if exchange.target == "/slow":
            await rack.service.until(lambda: "/function/f/slow (begun)" in long_way)
        await exchange.reply(200, exchange.target.encode())

    await rack.deploy("f", slow)
    await caller.call()
    assert (await caller.call("/slow"))[2] == b"/slow"
    assert long_way == ["/function/f/", "/function/f/slow (begun)"]
    assert rack.service.instances_made[0].calls == 2, "it was sent once"
    assert (await caller.call("/next"))[2] == b"/next"


async def test_the_timeout_counts_from_the_arrival(rack: Rack, caller) -> None:
    async def hangs(exchange: Exchange) -> None:
        if exchange.target == "/hang":
            await exchange.gone()
        await exchange.reply(200, b"x")

    await rack.deploy("f", hangs, timeout=0.4)
    await caller.call()
    status, head, _ = await caller.call("/hang")
    assert (status, "Pilotlight-Error: timeout" in head) == (504, True)
    assert not rack.service.instances_made[0].alive


async def test_an_answer_in_pieces_is_streamed(rack: Rack, caller, long_way) -> None:
    gate = asyncio.Event()

    async def pieces(exchange: Exchange) -> None:
        if exchange.target == "/":
            await exchange.reply(200, b"x")
            return
        await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await gate.wait()
        await exchange.write(b"other")

    await rack.deploy("f", pieces)
    await caller.call()
    caller.send("/pieces")
    assert (await caller.reader.readuntil(b"first")).endswith(b"\r\n\r\nfirst")
    gate.set()
    assert await caller.reader.readexactly(5) == b"other"
    assert long_way[1:] == ["/function/f/pieces (begun)"]


async def test_a_caller_that_goes_away_ends_the_work(rack: Rack, caller, long_way) -> None:
    begun = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        if exchange.target == "/":
            await exchange.reply(200, b"x")
            return
        begun.set()
        await exchange.gone()

    await rack.deploy("f", waits)
    await caller.call()
    caller.send("/wait")
    await begun.wait()
    caller.writer.close()
    await rack.service.until(lambda: rack.service.stopped)
    await rack.service.until(lambda: [call.status for call in rack.service.usage] == [200, 499])
    assert long_way == ["/function/f/"]


async def test_an_idle_connection_that_the_instance_closed_is_replaced(rack: Rack, caller) -> None:
    await rack.deploy("f", closes_kept_alive)
    for _ in range(5):
        assert (await caller.call())[2] == b"hello"
    assert len(rack.service.instances_made) == 1


async def test_an_instance_that_dies_is_diagnosed(rack: Rack, caller) -> None:
    async def dies_later(exchange: Exchange) -> None:
        if exchange.target == "/die":
            await exchange.instance.kill()
        await exchange.reply(200, b"x")

    await rack.deploy("f", dies_later)
    await caller.call()
    status, head, body = await caller.call("/die")
    assert (status, "Pilotlight-Error: crashed" in head, b"boom" in body) == (502, True, True)
    assert (await caller.call())[0] == 200


async def test_requests_that_do_not_wait_are_answered_in_their_order(rack: Rack, caller) -> None:
    gate = asyncio.Event()

    async def gated(exchange: Exchange) -> None:
        if exchange.target == "/1":
            await gate.wait()
        await exchange.reply(200, exchange.target.encode())

    await rack.deploy("f", gated)
    await caller.call()
    caller.send("/1")
    await rack.service.until(lambda: rack.service.instances_made[0].calls == 2)
    caller.send("/2")
    caller.send("/3")
    gate.set()
    assert [(await caller.receive())[2] for _ in range(3)] == [b"/1", b"/2", b"/3"]
    caller.send("/4")
    caller.send("/5")
    assert [(await caller.receive())[2] for _ in range(2)] == [b"/4", b"/5"]


async def test_a_request_that_comes_in_parts_is_left_to_aiohttp(rack: Rack, caller, long_way) -> None:
    await rack.deploy("f", echo_whole)
    await caller.call()
    caller.writer.write(b"GET /function/f/part HTTP/1.1\r\nHo")
    async with rack.get("/healthz"):  # by then the gateway has read the first part
        caller.writer.write(b"st: h\r\n\r\n")
    assert (await caller.receive())[2] == b"GET /part "
    assert long_way[1:] == ["/function/f/part"]
    assert (await caller.call("/whole"))[2] == b"GET /whole "
    assert len(long_way) == 2


@pytest.mark.parametrize(
    "headers",
    [("Connection: close",), ("TE: trailers",), ("Upgrade: h2c",), ("Host: other",), ("X: a\r\n b",)],
)
async def test_what_is_not_plain_is_left_to_aiohttp(rack: Rack, caller, long_way, headers) -> None:
    await rack.deploy("f", echo_whole)
    await caller.call()
    begun = len(long_way)
    caller.send("/odd", b"", "GET", *headers)
    await caller.receive()
    assert long_way[begun:] in (["/function/f/odd"], []), "aiohttp passes or refuses it"
    assert not any("begun" in each for each in long_way)


async def test_the_connection_is_closed_whichever_header_asks_for_it(rack: Rack, caller) -> None:
    await rack.deploy("f", echo_whole)
    await caller.call()
    assert (await caller.call("/", b"", "GET", "Connection: keep-alive", "Connection: close"))[0] == 200
    async with asyncio.timeout(10):
        assert await caller.reader.read() == b""


async def test_what_came_at_once_with_an_offer_to_upgrade_is_never_answered_out_of_turn(
    rack: Rack, caller
) -> None:
    await rack.deploy("f", echo_whole)
    offer = b"GET /function/f/offer HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    for _ in range(2):
        caller.writer.write(offer)
        assert (await caller.receive())[2] == b"GET /offer "
        assert (await caller.call("/after"))[2] == b"GET /after "
    caller.writer.write(offer + b"GET /function/f/behind HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await caller.receive())[2] == b"GET /offer "
    async with asyncio.timeout(10):
        assert await caller.reader.read() == b"", "the connection ends"


@pytest.mark.parametrize("empty_lines", [b"\r\n", b"\r\n\r\n"])
async def test_no_request_can_be_hidden_behind_empty_lines(
    rack: Rack, caller, long_way, empty_lines: bytes
) -> None:
    """The glance leaves out empty lines before a request: what follows them must not pass for its head."""
    await rack.deploy("f", echo_whole)
    await caller.call()
    hidden = b"GET /function/f/hidden HTTP/1.1\r\nHost: h\r\n\r\n"
    caller.writer.write(empty_lines + hidden)
    assert (await caller.receive())[2] == b"GET /hidden "
    instance = rack.service.instances_made[0]
    assert instance.calls == 2
    caller.writer.write(b"POST /function/f HTTP/1.1\r\n" + empty_lines[2:] + hidden)
    status, head, _ = await caller.receive()
    assert (status, "Pilotlight-Error: invalid-request" in head) == (400, True)
    assert instance.calls == 2


async def test_a_key_counts_until_it_is_withdrawn(rack: Rack, caller, long_way) -> None:
    digest = hashlib.sha256(b"temporary").hexdigest()
    rack.service.keys_by_digest[digest] = "k2"
    await rack.deploy("f", echo_whole, access=Access.KEY)
    with_key = ("/", b"", "GET", "Authorization: Bearer temporary")
    assert [(await caller.call(*with_key))[0] for _ in range(3)] == [200, 200, 200]
    assert len(long_way) == 1
    assert (await caller.call())[0] == 401
    del rack.service.keys_by_digest[digest]
    await rack.settle()
    assert (await caller.call(*with_key))[0] == 403


async def test_identifiers_are_taken_over_or_made_anew(rack: Rack, caller) -> None:
    async def told(exchange: Exchange) -> None:
        await exchange.reply(
            200, f"{exchange.header('x-request-id')} {exchange.header('traceparent')}".encode()
        )

    await rack.deploy("f", told)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    made = {(await caller.call())[2] for _ in range(4)}
    assert len(made) == 4
    for number in range(3):
        given = (f"X-Request-Id: mine-{number}", f"traceparent: {trace}")
        _, head, body = await caller.call("/", b"", "GET", *given)
        assert body == f"mine-{number} {trace}".encode()
        assert f"X-Request-Id: mine-{number}\r\n" in head


async def test_shutdown_waits_for_the_answer_and_closes_the_connection(rack: Rack, caller, long_way) -> None:
    gate, begun = asyncio.Event(), asyncio.Event()

    async def gated(exchange: Exchange) -> None:
        if exchange.target == "/last":
            begun.set()
            await gate.wait()
        await exchange.reply(200, exchange.target.encode())

    await rack.deploy("f", gated)
    await caller.call()
    caller.send("/last")
    await begun.wait()
    rack.stopping.set()
    await asyncio.sleep(0)
    gate.set()
    status, head, body = await caller.receive()
    assert (status, body) == (200, b"/last")
    assert await caller.reader.read() == b"", head
    await rack.stop()


@pytest.mark.parametrize("settings", [20], indirect=True)
async def test_calls_that_may_not_wait_are_refused_without_the_long_way(
    rack: Rack, caller, long_way, caplog
) -> None:
    caplog.set_level("INFO")
    open_ = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.body()
        if not exchange.target.startswith("/first"):
            await open_.wait()
        await exchange.reply(200, b"done")

    await rack.deploy("f", slow, max_instances=1)
    assert (await caller.call("/first"))[0] == 200
    waiting = [asyncio.create_task(rack.get("/function/f/wait").__aenter__()) for _ in range(21)]
    async with asyncio.timeout(10):
        while True:
            async with rack.get("/metrics") as metrics:
                if 'pilotlight_queue_length{function="f"} 20.0' in await metrics.text():
                    break
    del long_way[:]
    heads = []
    for number in range(30):
        status, head, body = await caller.call("/x?y", b"body", "POST", f"X-Request-Id: call-{number}")
        assert (status, json.loads(body)["type"]) == (429, "urn:pilotlight:problem:overloaded")
        heads.append(dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2]))
    assert long_way == [], "none of them took aiohttp's time"
    assert [head["X-Request-Id"] for head in heads] == [f"call-{number}" for number in range(30)]
    assert {(head["Retry-After"], head["Pilotlight-Error"], head["Server"]) for head in heads} == {
        ("1", "overloaded", "Pilotlight")
    }
    status, _, _ = await caller.call("/x", b"", "HEAD")
    assert (status, long_way) == (429, ["/function/f/x"]), "HEAD has a body to leave out"
    async with rack.http.post(
        rack.url("/function/f/x"), data=b"x", headers={"Expect": "100-continue"}
    ) as answer:
        long_document = await problem(answer, "overloaded")
        named = {name.lower() for name in answer.headers} - {"connection"}
    assert long_document == json.loads(body)
    assert named == {name.lower() for name in heads[0]}, "both ways say the same"
    open_.set()
    for answer in await asyncio.gather(*waiting):
        assert answer.status == 200
        answer.release()
    assert (await caller.call("/first"))[0] == 200
    async with rack.get("/metrics") as metrics:
        text = await metrics.text()
    assert 'pilotlight_refusals_total{kind="overloaded"} 32.0' in text
    assert 'pilotlight_calls_total{function="f",start="none",status="429"} 32.0' in text
    await rack.service.until(lambda: len(rack.service.usage) >= 23)
    told = [call for call in rack.service.usage if call.problem == "overloaded"]
    assert 10 <= len(told) < 32
    assert told[0].request_id == "call-0"
    assert told[0].path == "/x"
    await rack.service.until(lambda: "action=calls-refused function=f" in caplog.text)
