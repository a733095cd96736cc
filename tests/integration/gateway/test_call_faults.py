"""Instances that misbehave, callers that go away, time that runs out."""

import asyncio
import json
import random
import re
import socket

import pytest

from pilotlight.problems import Problem
from tests.fakes.instances import (
    Exchange,
    bad,
    closes_kept_alive,
    dies,
    dies_midway,
    hello,
    never,
)
from tests.integration.gateway.conftest import Rack, problem


async def test_a_call_that_takes_too_long_is_stopped_before_504_is_sent(rack: Rack) -> None:
    await rack.deploy("never", never, timeout=0.3)
    async with rack.get("/function/never") as answer:
        (instance,) = rack.service.instances_made
        assert not instance.alive, "the work must be dead before the answer"
        document = await problem(answer, "timeout")
        assert "0.3 s" in document["detail"]
        assert answer.headers["Pilotlight-Instance"] == instance.id
        assert "wait;dur=" in answer.headers["Server-Timing"]
    ((_, reason),) = rack.service.stopped
    assert "timeout" in reason


async def test_the_timeout_covers_the_start(rack: Rack) -> None:
    rack.service.gate.clear()
    await rack.deploy("hello", timeout=0.3)
    async with rack.get("/function/hello") as answer:
        document = await problem(answer, "timeout")
        assert "1 were being started" in document["detail"]
        assert "Pilotlight-Instance" not in answer.headers
    await rack.service.until(lambda: rack.service.cancelled == 1)


async def test_the_timeout_covers_the_queue(rack: Rack) -> None:
    await rack.deploy("never", never, timeout=0.6, max_instances=1)
    first = asyncio.create_task(rack.get("/function/never").__aenter__())
    await rack.service.until(lambda: rack.service.instances_made)
    async with rack.get("/function/never") as second:
        await problem(second, "timeout")
    async with await first as answer:
        await problem(answer, "timeout")


async def test_the_timeout_covers_the_body_of_the_answer(rack: Rack) -> None:
    async def drips(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        await exchange.gone()

    await rack.deploy("drips", drips, timeout=0.3)
    raw = await rack.raw(b"GET /function/drips HTTP/1.1\r\nHost: h\r\n\r\n")
    assert raw.status == 200
    assert not raw.body.endswith(b"0\r\n\r\n"), "it must not look whole"
    assert len(rack.service.stopped) == 1


async def test_the_timeout_covers_a_slow_upload(rack: Rack) -> None:
    await rack.deploy("hello", timeout=0.3)
    reader, writer = await rack.connect()
    writer.write(b"POST /function/hello HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nx")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 504")
    writer.close()


@pytest.mark.parametrize("held_back", ["body", "answer"])
async def test_a_caller_that_holds_its_call_up_ends_nobody_elses(rack: Rack, held_back: str) -> None:
    ended = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/stays":
            await ended.wait()
            await exchange.reply(200, b"fine")
            return
        try:
            if held_back == "body":
                await exchange.body()
            else:
                await exchange.reply(200, bytes(64 << 20))
        finally:
            ended.set()

    await rack.deploy("f", handler, concurrency=2, max_instances=1, timeout=3.0)
    reader, writer = await rack.connect()
    length = 10 if held_back == "body" else 1
    writer.write(f"POST /function/f/held HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\nx".encode())
    await rack.service.until(lambda: rack.service.instances_made)
    await asyncio.sleep(1.5)  # the other call must be the younger one
    stays = asyncio.create_task(rack.get("/function/f/stays").__aenter__())
    async with await stays as answer:
        assert await answer.read() == b"fine"
    await rack.service.until(lambda: len(rack.service.usage) == 2)
    assert not rack.service.stopped
    if held_back == "body":
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 504")
        assert b"body did not come to its end within the function's timeout of 3 s" in await reader.readline()
    writer.close()


async def test_other_calls_of_an_instance_that_was_stopped_are_told_why(rack: Rack) -> None:
    async def by_path(exchange: Exchange) -> None:
        await exchange.gone()

    await rack.deploy("both", by_path, timeout=0.5, concurrency=2, max_instances=1)
    first = asyncio.create_task(rack.get("/function/both").__aenter__())
    await rack.service.until(lambda: rack.service.instances_made)
    await asyncio.sleep(0.1)  # the second call must be the younger one
    async with rack.get("/function/both") as second:
        document = await problem(second, "crashed")
        assert "timeout of 0.5 s" in document["detail"]
    async with await first as answer:
        await problem(answer, "timeout")


async def test_a_crash_is_told_with_the_last_lines(rack: Rack) -> None:
    await rack.deploy("dies", dies)
    async with rack.get("/function/dies") as answer:
        document = await problem(answer, "crashed")
    assert document["detail"] == "The process exited with 1."
    assert document["logs"] == ["Traceback", "boom"]
    assert answer.headers["Pilotlight-Start"] == "cold"
    assert len(rack.service.diagnosed) == 1
    assert rack.service.acquires == 1, "a call that was begun is not begun again"


async def test_running_out_of_memory_is_told(rack: Rack) -> None:
    rack.service.diagnosis = ("out-of-memory", "It used more than 128 MB.", [])
    await rack.deploy("dies", dies)
    async with rack.get("/function/dies") as answer:
        assert "128 MB" in (await problem(answer, "out-of-memory"))["detail"]


async def test_an_answer_that_breaks_off_does_not_look_whole(rack: Rack) -> None:
    await rack.deploy("dies", dies_midway)
    raw = await rack.raw(b"GET /function/dies HTTP/1.1\r\nHost: h\r\n\r\n")
    assert raw.status == 200
    assert b"Content-Length: 100" in raw.head
    assert raw.body == b"partial"
    await rack.service.until(lambda: rack.service.diagnosed)


async def test_an_answer_that_is_not_http_is_told(rack: Rack) -> None:
    await rack.deploy("bad", bad)
    async with rack.get("/function/bad") as answer:
        assert "not valid HTTP" in (await problem(answer, "crashed"))["detail"]
    await rack.service.until(lambda: rack.service.stopped)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nEvil: b\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 18) + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 9999 OK\r\n\r\n",
    ],
)
async def test_answers_that_could_smuggle_something_are_refused(rack: Rack, answer: bytes) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.write(answer)
        await exchange.gone()

    await rack.deploy("bad", handler)
    async with rack.get("/function/bad") as got:
        await problem(got, "crashed")


async def test_what_follows_an_answer_is_not_taken_for_the_next_one(rack: Rack) -> None:
    async def two(exchange: Exchange) -> None:
        if exchange.instance.calls == 1:
            await exchange.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
            )
        else:
            await exchange.reply(200, b"fine")

    await rack.deploy("two", two)
    async with rack.get("/function/two") as answer:
        assert await answer.read() in (b"ok", b"okHTTP/1.1")
    for _ in range(3):
        async with rack.get("/function/two") as answer:
            assert await answer.read() == b"fine"


async def test_connections_that_were_closed_meanwhile_are_made_anew(rack: Rack) -> None:
    await rack.deploy("closes", closes_kept_alive)
    for _ in range(20):
        async with rack.http.post(rack.url("/function/closes"), data=b"once") as answer:
            assert answer.status == 200
    (instance,) = rack.service.instances_made
    assert instance.calls == 20


async def test_an_instance_that_was_dead_before_the_call_is_replaced(rack: Rack) -> None:
    await rack.deploy("hello")
    async with rack.get("/function/hello") as answer:
        assert answer.status == 200
    await rack.service.instances_made[0].kill()
    async with rack.http.post(rack.url("/function/hello"), data=b"body") as answer:
        assert answer.status == 200
        assert answer.headers["Pilotlight-Start"] == "cold"
    assert len(rack.service.instances_made) == 2
    await rack.service.until(lambda: rack.service.diagnosed)


async def test_instances_that_are_dead_again_and_again_end_in_a_problem(rack: Rack) -> None:
    await rack.deploy("hello")
    original = rack.service.acquire

    async def stillborn(function: str, wait: float):
        lease = await original(function, wait)
        await rack.service.leases[lease.id].kill()
        return lease

    rack.service.acquire = stillborn
    assert rack.service._server is not None
    method, _ = rack.service._server._methods["Invocations.acquire"]
    rack.service._server._methods["Invocations.acquire"] = (method, stillborn)
    async with rack.get("/function/hello") as answer:
        await problem(answer, "crashed")
    assert rack.service.acquires == 3


@pytest.mark.parametrize("kind", ["init-failed", "crashed", "out-of-memory", "no-capacity"])
async def test_a_start_that_fails_is_told(rack: Rack, kind: str) -> None:
    rack.service.refuse = lambda function: Problem(kind, "Because of that.", logs=["ImportError"])
    await rack.deploy("hello")
    async with rack.get("/function/hello") as answer:
        document = await problem(answer, kind)
        assert document["logs"] == ["ImportError"]
        assert "Pilotlight-Start" not in answer.headers


async def test_a_caller_that_goes_away_has_its_instance_stopped(rack: Rack) -> None:
    await rack.deploy("never", never)
    _, writer = await rack.connect()
    writer.write(b"GET /function/never HTTP/1.1\r\nHost: h\r\n\r\n")
    await rack.service.until(lambda: rack.service.instances_made and rack.service.instances_made[0].calls)
    writer.close()
    await rack.service.until(lambda: rack.service.stopped)
    assert not rack.service.released


async def test_a_caller_that_goes_away_leaves_the_other_calls_of_its_instance_alone(rack: Rack) -> None:
    gone = asyncio.Event()
    go = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/leaves":
            await exchange.gone()
            gone.set()
        else:
            await go.wait()
            await exchange.reply(200, b"fine")

    await rack.deploy("f", handler, concurrency=2, max_instances=1)
    stays = asyncio.create_task(rack.get("/function/f/stays").__aenter__())
    await rack.service.until(lambda: rack.service.instances_made)
    _, writer = await rack.connect()
    writer.write(b"GET /function/f/leaves HTTP/1.1\r\nHost: h\r\n\r\n")
    async with asyncio.timeout(5):
        while rack.service.instances_made[0].calls < 2:
            await asyncio.sleep(0.001)
    writer.close()
    await asyncio.wait_for(gone.wait(), 5)
    go.set()
    async with await stays as answer:
        assert await answer.read() == b"fine"
    assert not rack.service.stopped


async def test_a_caller_that_goes_away_while_it_waits_costs_no_instance(rack: Rack) -> None:
    rack.service.gate.clear()
    await rack.deploy("hello")
    _, writer = await rack.connect()
    writer.write(b"GET /function/hello HTTP/1.1\r\nHost: h\r\n\r\n")
    await rack.service.until(lambda: rack.service.acquiring == 1)
    writer.close()
    await rack.service.until(lambda: rack.service.cancelled == 1)
    rack.service.gate.set()
    async with rack.get("/function/hello") as answer:
        assert answer.status == 200
    assert len(rack.service.instances_made) == 1


async def test_a_caller_that_goes_away_in_its_upload_is_noticed(rack: Rack) -> None:
    await rack.deploy("hello")
    _, writer = await rack.connect()
    writer.write(b"POST /function/hello HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nbegin")
    await rack.service.until(lambda: rack.service.instances_made)
    writer.close()
    await rack.service.until(lambda: rack.service.stopped)


async def test_calls_past_the_queue_are_told_to_come_back(rack: Rack) -> None:
    rack.service.gate.clear()
    await rack.deploy("hello", timeout=120.0)
    waiting = [asyncio.create_task(rack.get("/function/hello").__aenter__()) for _ in range(1000)]
    statuses: list[int] = []

    async def one_too_many() -> None:
        async with rack.get("/function/hello") as answer:
            statuses.append(answer.status)
            assert answer.headers["Retry-After"] == "1"
            await problem(answer, "overloaded")

    async with asyncio.timeout(90):
        while True:
            async with rack.get("/metrics") as metrics:
                if 'pilotlight_queue_length{function="hello"} 1000.0' in await metrics.text():
                    break
    await one_too_many()
    rack.service.gate.set()
    for answer in await asyncio.gather(*waiting):
        assert answer.status == 200
        answer.release()
    assert len(rack.service.instances_made) <= 20


async def test_every_call_gets_an_answer_while_instances_die_at_random(rack: Rack) -> None:
    async def fragile(exchange: Exchange) -> None:
        await exchange.body()
        if exchange.instance.calls % 7 == 0:
            await exchange.instance.kill()
        else:
            await exchange.reply(200, b"ok")

    await rack.deploy("fragile", fragile, max_instances=8, concurrency=2)

    async def call() -> int:
        async with rack.http.post(rack.url("/function/fragile"), data=b"x") as answer:
            await answer.read()
            return answer.status

    statuses = await asyncio.gather(*(call() for _ in range(200)))
    assert set(statuses) <= {200, 502}
    assert statuses.count(200) > 100


async def test_a_key_never_reaches_the_log(
    rack: Rack, key: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await rack.deploy("hello", hello)
    async with rack.get("/function/hello?x=1", headers=key) as answer:
        assert answer.status == 200
    async with rack.get("/api/v1/nothing", headers=key) as answer:
        await problem(answer, "not-found")
    assert "action=call" in caplog.text
    assert key["Authorization"].split()[1] not in caplog.text
    async with rack.get("/metrics") as answer:
        assert json.dumps(key)[30:] not in await answer.text()


async def test_an_instance_that_is_slow_to_accept_is_waited_for(rack: Rack) -> None:
    await rack.deploy("hello", concurrency=5)
    async with rack.get("/function/hello"):
        pass
    (instance,) = rack.service.instances_made
    await instance.kill()
    lazy = socket.socket(socket.AF_UNIX)
    lazy.bind(str(instance.path))
    lazy.listen(0)
    lazy.setblocking(False)
    calls = [asyncio.create_task(rack.get("/function/hello").__aenter__()) for _ in range(4)]
    async with asyncio.timeout(5):
        while 'running{function="hello"} 4.0' not in await (await rack.get("/metrics").__aenter__()).text():
            pass
    server = await asyncio.start_unix_server(instance._serve, sock=lazy)
    for answer in await asyncio.gather(*calls):
        assert answer.status == 200
        assert answer.headers["Pilotlight-Start"] == "warm"
        answer.release()
    server.close()
    assert not rack.service.diagnosed


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_left_behind_by_callers_that_leave_at_any_time(rack: Rack, seed: int) -> None:
    chance = random.Random(seed)

    async def lively(exchange: Exchange) -> None:
        await asyncio.sleep(chance.random() / 500)
        async for _ in exchange.pieces():
            pass
        await exchange.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            await exchange.write(b"2\r\nhi\r\n")
            await asyncio.sleep(0)
        await exchange.write(b"0\r\n\r\n")

    await rack.deploy("one", lively, max_instances=5)
    await rack.deploy("three", lively, max_instances=3, concurrency=3)

    async def call() -> bytes:
        reader, writer = await rack.connect()
        try:
            name = chance.choice(("one", "three"))
            writer.write(b"POST /function/%b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" % name.encode())
            writer.write(b"Content-Length: 20\r\n\r\n0123456789")
            for _ in range(chance.randrange(30)):
                await asyncio.sleep(0)
            writer.write(b"0123456789")
            async with asyncio.timeout(chance.choice((0.0, 0.002, 0.01, 10, 10))):
                return await reader.read()
        finally:
            writer.transport.abort()

    answers = await asyncio.gather(*(call() for _ in range(300)), return_exceptions=True)
    whole = [answer for answer in answers if isinstance(answer, bytes)]
    assert len(whole) > 50
    assert all(answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"0\r\n\r\n") for answer in whole)
    async with asyncio.timeout(5):
        while True:  # until nothing is under way
            async with rack.get("/metrics") as metrics:
                text = await metrics.text()
            numbers = re.findall(r"pilotlight_(?:calls_running|queue_length){.*} (.*)", text)
            if set(numbers) <= {"0.0"} and not rack.service.acquiring:
                break
    held = sum(float(number) for number in re.findall(r"pilotlight_leases{.*} (.*)", text))
    assert held == len(rack.service.leases), "leases that the gateway does not know of"
    for name in ("one", "three"):
        async with rack.get(f"/function/{name}") as answer:
            assert answer.status == 200
