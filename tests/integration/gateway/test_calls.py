"""Calls of functions, as callers see them."""

import asyncio
import contextlib
import json
import re

import pytest

from function_service.contract import Access, Recall
from tests.fakes.instances import Exchange, Gone, echo, hello
from tests.integration.gateway.conftest import KEY, Rack, problem

STAGES = re.compile(
    r"wait;dur=([\d.]+), container;dur=([\d.]+), runtime;dur=([\d.]+), code;dur=([\d.]+), handler;dur=([\d.]+)(.*)"
)


async def mirror(exchange: Exchange) -> None:
    """Tell what came."""
    body = await exchange.body()
    told = {
        "method": exchange.method,
        "target": exchange.target,
        "headers": exchange.headers,
        "body": body.decode("latin-1"),
    }
    await exchange.reply(200, json.dumps(told).encode(), ("Content-Type", "application/json"))


def told(raw) -> dict:
    return json.loads(raw.body)


def of(seen: dict, name: str) -> list[str]:
    return [value for key, value in seen["headers"] if key.lower() == name.lower()]


async def test_a_first_call_is_cold_and_the_next_one_warm(rack: Rack) -> None:
    await rack.deploy("hello")
    async with rack.get("/function/hello") as first:
        assert first.status == 200
        assert await first.text() == "hello"
    async with rack.get("/function/hello") as second:
        assert await second.text() == "hello"
    assert first.headers["Pilotlight-Start"] == "cold"
    assert second.headers["Pilotlight-Start"] == "warm"
    for answer in (first, second):
        assert answer.headers["Pilotlight-Instance"] == rack.service.instances_made[0].id
        assert answer.headers["Pilotlight-Revision"] == "r1"
        assert "Pilotlight-Error" not in answer.headers
    _, _, _, code, handler, _ = STAGES.fullmatch(first.headers["Server-Timing"]).groups()
    assert float(code) > 0
    assert float(handler) > 0
    assert STAGES.fullmatch(second.headers["Server-Timing"]).groups()[1:4] == ("0", "0", "0")
    assert rack.service.acquires == 1


async def test_an_instance_that_was_idle_is_no_cold_start(rack: Rack) -> None:
    await rack.deploy("hello")
    async with rack.get("/function/hello"):
        pass
    instance = rack.service.instances_made[0]
    rack.service.idle_instances["hello"] = [instance]
    rack.service.tell(Recall(next(iter(rack.service.leases))))
    await rack.service.until(lambda: rack.service.released)
    async with rack.get("/function/hello") as answer:
        assert answer.headers["Pilotlight-Start"] == "warm"
        assert answer.headers["Pilotlight-Instance"] == instance.id


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE"]
)
async def test_any_method_reaches_the_function(rack: Rack, method: str) -> None:
    await rack.deploy("mirror", mirror)
    async with rack.http.request(method, rack.url("/function/mirror/a")) as answer:
        assert json.loads(await answer.read())["method"] == method


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("", "/"),
        ("?a=1&a=2&b", "/?a=1&a=2&b"),
        ("/", "/"),
        ("/a%2Fb/%20/../%C3%BC?q=%2B+%00#", "/a%2Fb/%20/../%C3%BC?q=%2B+%00#"),
        ("//double//", "//double//"),
        ("/" + "x" * 8000, "/" + "x" * 8000),
    ],
)
async def test_path_and_query_reach_the_function_as_they_were_sent(rack: Rack, path: str, seen: str) -> None:
    await rack.deploy("mirror", mirror)
    raw = await rack.raw(
        f"GET /function/mirror{path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()
    )
    assert told(raw)["target"].rstrip("#") == seen.rstrip("#")


async def test_a_target_with_scheme_and_authority_is_understood(rack: Rack) -> None:
    await rack.deploy("mirror", mirror)
    raw = await rack.raw(b"GET http://h/function/mirror/x?y HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert told(raw)["target"] == "/x?y"


async def test_headers_reach_the_function(rack: Rack) -> None:
    await rack.deploy("mirror", mirror)
    raw = await rack.raw(
        b"GET /function/mirror HTTP/1.1\r\nHost: example.org:81\r\nX-Twice: 1\r\nX-Twice: 2\r\nCookie: a=b\r\n"
        b"X-Bytes: \xe4\xff\r\nAccept-Encoding: gzip\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n"
        b"Keep-Alive: 5\r\nProxy-Connection: x\r\n\r\n"
    )
    seen = told(raw)
    assert of(seen, "x-twice") == ["1", "2"]
    assert of(seen, "cookie") == ["a=b"]
    assert of(seen, "x-bytes") == ["\xe4\xff"]
    assert of(seen, "accept-encoding") == ["gzip"]
    assert of(seen, "host") == ["example.org:81"]
    assert of(seen, "x-forwarded-for") == ["127.0.0.1"]
    assert of(seen, "x-forwarded-proto") == ["http"]
    assert of(seen, "x-forwarded-host") == ["example.org:81"]
    for name in ("connection", "x-hop", "te", "keep-alive", "proxy-connection", "pilotlight-caller"):
        assert not of(seen, name), name


async def test_a_proxy_on_this_machine_is_believed_and_added_to(rack: Rack) -> None:
    await rack.deploy("mirror", mirror)
    headers = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "example.org",
    }
    async with rack.get("/function/mirror", headers=headers) as answer:
        seen = json.loads(await answer.read())
    assert of(seen, "x-forwarded-for") == ["203.0.113.9, 127.0.0.1"]
    assert of(seen, "x-forwarded-proto") == ["https"]
    assert of(seen, "x-forwarded-host") == ["example.org"]


async def test_request_id_and_traceparent_are_taken_over_or_made(rack: Rack) -> None:
    await rack.deploy("mirror", mirror)
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {"X-Request-Id": "mine-1", "traceparent": parent, "tracestate": "a=b"}
    async with rack.get("/function/mirror", headers=headers) as answer:
        seen = json.loads(await answer.read())
        assert answer.headers.getall("X-Request-Id") == ["mine-1"]
    assert (of(seen, "x-request-id"), of(seen, "traceparent"), of(seen, "tracestate")) == (
        ["mine-1"],
        [parent],
        ["a=b"],
    )
    async with rack.get(
        "/function/mirror", headers={"X-Request-Id": "a b", "traceparent": "no", "tracestate": "a=b"}
    ) as answer:
        seen = json.loads(await answer.read())
        made = answer.headers["X-Request-Id"]
    assert of(seen, "x-request-id") == [made] != ["a b"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", of(seen, "traceparent")[0])
    assert not of(seen, "tracestate")


async def test_headers_of_the_answer_pass_but_not_those_that_are_ours(rack: Rack) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.reply(
            201, b"x", ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Bytes", "\xe4"), ("Connection", "X-Hop"),
            ("X-Hop", "1"), ("Keep-Alive", "timeout=5"), ("Pilotlight-Error", "crashed"), ("Pilotlight-Start", "x"),
            ("Server-Timing", "db;dur=7"), ("X-Request-Id", "forged"), ("Server", "mine"), ("Date", "then"),
        )  # fmt: skip

    await rack.deploy("f", handler)
    raw = await rack.raw(b"GET /function/f HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    lines = raw.head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 201 X"
    assert lines.count(b"Set-Cookie: a=1") == lines.count(b"Set-Cookie: b=2") == 1
    assert b"X-Bytes: \xe4" in lines
    assert b"Server: mine" in lines
    assert b"Date: then" in lines
    assert b"Connection: close" in lines
    assert not any(name in raw.head for name in (b"X-Hop", b"Keep-Alive", b"Pilotlight-Error", b"forged"))
    (timing,) = (line for line in lines if line.startswith(b"Server-Timing"))
    assert timing.endswith(b", db;dur=7")
    assert raw.head.count(b"Pilotlight-Start: ") == 1


async def test_an_error_of_the_functions_own_passes_as_it_is(rack: Rack) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.reply(503, b"mine", ("Pilotlight-Error", "no-capacity"))

    await rack.deploy("f", handler)
    async with rack.get("/function/f") as answer:
        assert (answer.status, await answer.read()) == (503, b"mine")
        assert "Pilotlight-Error" not in answer.headers
        assert answer.headers["Pilotlight-Start"] == "cold"


async def test_head_204_and_304_have_no_body_and_keep_the_connection(rack: Rack) -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.method == "HEAD":
            await exchange.reply(200, b"12345")
        else:
            status = exchange.target[1:]
            await exchange.write(f'HTTP/1.1 {status} X\r\nETag: "1"\r\n\r\n'.encode())

    await rack.deploy("f", handler)
    request = (
        b"HEAD /function/f HTTP/1.1\r\nHost: h\r\n\r\n"
        b"GET /function/f/204 HTTP/1.1\r\nHost: h\r\n\r\n"
        b"GET /function/f/304 HTTP/1.1\r\nHost: h\r\n\r\n"
        b"HEAD /function/f HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    )
    raw = await rack.raw(request)
    heads = raw.data.split(b"\r\n\r\n")
    assert [head.split(b" ")[1] for head in heads[:-1]] == [b"200", b"204", b"304", b"200"]
    assert heads[-1] == b""
    assert b"Content-Length: 5" in heads[0]
    assert b"Transfer-Encoding" not in raw.data
    assert rack.service.acquires == 1


async def test_empty_bodies(rack: Rack) -> None:
    await rack.deploy("mirror", mirror)
    for headers in ("Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", ""):
        body = "0\r\n\r\n" if "chunked" in headers else ""
        raw = await rack.raw(
            f"POST /function/mirror HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}\r\n{body}".encode()
        )
        assert told(raw)["body"] == ""


@pytest.mark.parametrize("size", [1, 1000, 70_000, 1 << 20])
async def test_bodies_pass_both_ways_with_a_length_or_chunked(rack: Rack, size: int) -> None:
    await rack.deploy("mirror", mirror)
    await rack.deploy("echo", echo)
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    async with rack.http.post(rack.url("/function/mirror"), data=body) as answer:
        seen = json.loads(await answer.read())
        assert seen["body"].encode("latin-1") == body
        assert of(seen, "content-length") == [str(size)]
        assert not of(seen, "transfer-encoding")

    async def pieces():
        for start in range(0, size, 4096):
            yield body[start : start + 4096]

    async with rack.http.post(rack.url("/function/echo"), data=pieces()) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert await answer.read() == body


async def test_request_and_answer_stream_at_the_same_time(rack: Rack) -> None:
    await rack.deploy("echo", echo)
    reader, writer = await rack.connect()
    writer.write(b"POST /function/echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")  # before any of the body was sent
    assert b"200" in head
    for number in range(5):
        writer.write(b"3\r\nab%d\r\n" % number)
        assert await reader.readexactly(8) == b"3\r\nab%d\r\n" % number
    writer.write(b"0\r\n\r\n")
    assert await reader.readuntil(b"0\r\n\r\n") == b"0\r\n\r\n"
    writer.write(
        b"POST /function/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    )
    assert (await reader.read()).endswith(b"2\r\nhi\r\n0\r\n\r\n")
    writer.close()
    assert rack.service.instances_made[0].connections == 1


async def test_an_answer_is_not_read_faster_than_the_caller_takes_it(rack: Rack) -> None:
    sent = 0
    full = asyncio.Event()

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            while True:
                exchange.writer.write(piece)
                try:
                    await asyncio.wait_for(exchange.writer.drain(), 0.5)
                except TimeoutError:
                    full.set()
                    await exchange.writer.drain()
                sent += 65536

    await rack.deploy("flood", flood)
    _, writer = await rack.connect()
    writer.write(b"GET /function/flood HTTP/1.1\r\nHost: h\r\n\r\n")
    await asyncio.wait_for(full.wait(), 20)  # nobody reads: at some point nothing is taken any more
    assert sent < 32 << 20
    writer.transport.abort()
    await rack.service.until(lambda: rack.service.stopped)


async def test_a_request_is_not_read_faster_than_the_function_takes_it(rack: Rack) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        body = await exchange.body()
        await exchange.reply(200, str(len(body)).encode())

    await rack.deploy("slow", slow, timeout=30.0)
    rack_limit = 1 << 20
    reader, writer = await rack.connect()
    writer.write(f"POST /function/slow HTTP/1.1\r\nHost: h\r\nContent-Length: {rack_limit}\r\n\r\n".encode())
    writer.write(b"x" * rack_limit)
    go.set()
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert await reader.readexactly(7) == str(rack_limit).encode()
    writer.close()


async def test_expect_100_continue_is_answered_only_when_the_call_is_admitted(rack: Rack) -> None:
    await rack.deploy("mirror", mirror)
    await rack.deploy("private", mirror, access=Access.KEY)
    reader, writer = await rack.connect()
    head = b"POST /function/%b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head % b"mirror")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"12345")
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    length = int(re.search(rb"Content-Length: (\d+)", answer)[1])
    seen = json.loads(await reader.readexactly(length))
    assert seen["body"] == "12345"
    assert not of(seen, "expect")
    writer.close()
    for name, status in ((b"private", b"401"), (b"nothing", b"404")):
        reader, writer = await rack.connect()
        writer.write(head % name)
        refused = await reader.readuntil(b"\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 " + status)
        assert b"Connection: close" in refused
        writer.close()


async def test_http_1_0_gets_an_answer_that_ends_with_the_connection(rack: Rack) -> None:
    await rack.deploy("echo", echo)
    raw = await rack.raw(b"POST /function/echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
    assert raw.status == 200
    assert raw.body == b"hi"
    assert b"Transfer-Encoding" not in raw.head


async def test_an_answer_that_ends_with_the_connection_is_chunked_on(rack: Rack) -> None:
    async def old(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        exchange.keep_alive = False

    await rack.deploy("old", old)
    for _ in range(2):
        async with rack.get("/function/old") as answer:
            assert answer.headers["Transfer-Encoding"] == "chunked"
            assert await answer.read() == b"all of it"


async def test_interim_answers_and_trailers_are_dropped(rack: Rack) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        await exchange.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n"
        )

    await rack.deploy("f", handler)
    for _ in range(2):
        raw = await rack.raw(b"GET /function/f HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert raw.status == 200
        assert raw.body == b"2\r\nhi\r\n0\r\n\r\n"
        assert b"Link" not in raw.data
        assert b"X-T" not in raw.data
    assert rack.service.instances_made[0].connections == 1


async def test_an_answer_before_the_body_was_read_reaches_the_caller(rack: Rack) -> None:
    async def hasty(exchange: Exchange) -> None:
        await exchange.reply(403, b"no need")
        with contextlib.suppress(Gone):
            await exchange.body()

    await rack.deploy("hasty", hasty)
    reader, writer = await rack.connect()
    writer.write(b"POST /function/hasty HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\nbegin")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403")
    assert await reader.readexactly(7) == b"no need"
    writer.close()
    async with rack.http.post(rack.url("/function/hasty"), data=b"short") as answer:
        assert answer.status == 403


async def test_pipelined_calls_are_answered_in_order(rack: Rack) -> None:
    await rack.deploy("mirror", mirror)
    raw = await rack.raw(
        b"GET /function/mirror/1 HTTP/1.1\r\nHost: h\r\n\r\n"
        b"GET /function/mirror/2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    )
    assert raw.data.index(b'"/1"') < raw.data.index(b'"/2"')


async def test_bursts_answer_every_call_and_ask_for_no_more_than_needed(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.leases._CONNECTION_IDLE", 60.0)  # however slow the machine is
    await rack.deploy("hello", hello, max_instances=10)

    async def call() -> int:
        async with rack.get("/function/hello") as answer:
            await answer.read()
            return answer.status

    statuses = await asyncio.gather(*(call() for _ in range(500)))
    assert statuses == [200] * 500
    assert rack.service.acquires <= 10
    assert all(each.peak <= 1 and each.connections <= 1 for each in rack.service.instances_made)


async def test_concurrency_is_used_and_not_exceeded(rack: Rack) -> None:
    gate = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.reply(200, b"x")

    await rack.deploy("slow", slow, concurrency=5, max_instances=2)
    waiting = [asyncio.create_task(rack.get("/function/slow").__aenter__()) for _ in range(12)]
    async with asyncio.timeout(10):
        while sum(instance.running for instance in rack.service.instances_made) < 10:
            await asyncio.sleep(0.001)
    gate.set()
    for answer in await asyncio.gather(*waiting):
        assert answer.status == 200
        answer.release()
    assert [instance.peak for instance in rack.service.instances_made] == [5, 5]
    assert rack.service.acquires == 2


async def test_keys_do_not_reach_functions_but_other_credentials_do(rack: Rack, key: dict[str, str]) -> None:
    await rack.deploy("private", mirror, access=Access.KEY)
    await rack.deploy("open", mirror)
    async with rack.get("/function/private", headers=key) as answer:
        text = await answer.text()
        assert answer.status == 200
        assert KEY not in text
    async with rack.get("/function/open", headers=key) as answer:
        assert KEY not in await answer.text()
    async with rack.get("/function/open", headers={"Authorization": "Bearer its-own"}) as answer:
        assert of(json.loads(await answer.text()), "authorization") == ["Bearer its-own"]


async def test_who_may_call(rack: Rack, key: dict[str, str]) -> None:
    await rack.deploy("private", hello, access=Access.KEY)
    await rack.deploy("inner", hello, access=Access.INTERNAL)
    wrong = {"Authorization": "Bearer wrong"}
    async with rack.get("/function/private") as answer:
        await problem(answer, "key-required")
        assert "Bearer" in answer.headers["WWW-Authenticate"]
    async with rack.get("/function/private", headers=wrong) as answer:
        assert "wrong" not in (await problem(answer, "forbidden"))["detail"].replace("key is wrong", "")
    for headers in ({}, key):
        async with rack.get("/function/inner", headers=headers) as answer:
            await problem(answer, "forbidden")
    assert not rack.service.acquires


async def test_calls_from_functions_come_over_the_private_socket(rack: Rack) -> None:
    import aiohttp

    await rack.deploy("private", mirror, access=Access.KEY)
    await rack.deploy("inner", mirror, access=Access.INTERNAL)
    connector = aiohttp.UnixConnector(str(rack.data.socket("gateway")))
    async with aiohttp.ClientSession(connector=connector) as inside:
        for name in ("private", "inner"):
            async with inside.get(
                f"http://gateway/function/{name}/x", headers={"Pilotlight-Caller": "other"}
            ) as answer:
                seen = await answer.json()
                assert of(seen, "pilotlight-caller") == ["other"]
        async with inside.get(
            "http://gateway/api/v1/apps", headers={"Authorization": f"Bearer {KEY}"}
        ) as answer:
            await problem(answer, "not-found")
    async with rack.get("/function/inner", headers={"Pilotlight-Caller": "other"}) as answer:
        await problem(answer, "forbidden")


async def test_a_call_that_no_function_answers_gets_a_problem_document(rack: Rack) -> None:
    await rack.deploy("hello")
    for path in ("/function/nope", "/function/", "/function//x", "/function/HELLO"):
        async with rack.get(path, headers={"X-Request-Id": "mine"}) as answer:
            await problem(answer, "unknown-function")
            assert answer.headers["X-Request-Id"] == "mine"
    async with rack.http.head(rack.url("/function/nope")) as answer:
        assert answer.status == 404
        assert answer.headers["Pilotlight-Error"] == "unknown-function"


async def test_a_body_over_the_limit_is_refused_at_once_if_it_says_so(rack: Rack) -> None:
    await rack.deploy("mirror", mirror)
    reader, writer = await rack.connect()
    writer.write(b"POST /function/mirror HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert b"Pilotlight-Error: too-large" in head
    writer.close()
    assert not rack.service.acquires


async def test_a_body_that_grows_over_the_limit_is_broken_off(rack: Rack) -> None:
    outcome = asyncio.get_running_loop().create_future()

    async def reading(exchange: Exchange) -> None:
        try:
            await exchange.body()
            outcome.set_result("whole")
        except (asyncio.IncompleteReadError, Gone, ConnectionError):
            outcome.set_result("broken off")
            raise Gone from None
        except asyncio.CancelledError:
            outcome.set_result("killed")
            raise

    await rack.deploy("reading", reading)

    async def endless():
        for _ in range(100):
            yield b"x" * 32768

    async with rack.http.post(rack.url("/function/reading"), data=endless()) as answer:
        document = await problem(answer, "too-large")
        assert "1048576" in document["detail"]
    assert await asyncio.wait_for(outcome, 5) in ("broken off", "killed")


@pytest.mark.parametrize("upgrade", ["websocket", "TLS/1.0"])
async def test_upgrades_are_refused(rack: Rack, upgrade: str) -> None:
    await rack.deploy("hello")
    raw = await rack.raw(
        f"GET /function/hello HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n"
        "Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    assert raw.status == 501
    assert b"Pilotlight-Error: upgrade-refused" in raw.head


async def test_an_offer_of_h2c_is_declined_by_answering(rack: Rack) -> None:
    await rack.deploy("hello")
    raw = await rack.raw(
        b"GET /function/hello HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
    )
    assert raw.status == 200
    assert raw.body == b"hello"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /function/hello HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /function/hello HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST /function/hello HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST /function/hello HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET /function/hello HTTP/1.1\r\n\r\n",
        b"GET /function/hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /function/hello HTTP/1.1\r\nHost: h\r\nBad Name: x\r\n\r\n",
        b"GET /function/hello HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n",
        b"FROBNICATE /function/hello HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /function/hello HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 40000 + b"\r\n\r\n",
        b"GET /" + b"x" * 40000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
async def test_malformed_requests_get_400_and_the_connection_ends(rack: Rack, request_bytes: bytes) -> None:
    await rack.deploy("hello")
    raw = await rack.raw(request_bytes + (b"" if b"gzip" not in request_bytes else b"x"))
    assert raw.status == 400
    assert b"Pilotlight-Error: invalid-request" in raw.head
    assert json.JSONDecoder().raw_decode(raw.body.decode())[0]["detail"].startswith("Th")
    assert not rack.service.acquires


async def test_a_body_in_broken_chunks_is_the_callers_fault(rack: Rack) -> None:
    await rack.deploy("mirror", mirror)
    raw = await rack.raw(
        b"POST /function/mirror HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab\r\nzz\r\n"
    )
    assert raw.status == 400
    assert b"Pilotlight-Error: invalid-request" in raw.head


async def test_ended_calls_are_reported_in_batches(rack: Rack) -> None:
    await rack.deploy("hello")
    for _ in range(3):
        async with rack.get("/function/hello", headers={"X-Request-Id": "r"}):
            pass
    await rack.service.until(lambda: len(rack.service.usage) == 3)
    first = rack.service.usage[0]
    assert (first.function, first.status, first.cold, first.request_id) == ("hello", 200, True, "r")
    assert not rack.service.usage[1].cold
    assert first.duration > 0
