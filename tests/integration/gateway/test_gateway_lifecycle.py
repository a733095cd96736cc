"""New revisions, a function service that restarts, and the gateway's own end."""

import asyncio
import socket

import aiohttp
import pytest

from function_service.contract import Ended, Recall
from gateway.server import serve
from pilotlight.datafolder import DataFolder
from pilotlight.settings import Settings
from tests.fakes.instances import Exchange, hello
from tests.integration.gateway.conftest import Rack, problem


def says(text: bytes):
    async def handler(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.reply(200, text)

    return handler


async def test_a_new_revision_takes_over_and_no_call_is_dropped(rack: Rack) -> None:
    await rack.deploy("f", says(b"r0"), revision="r0", max_instances=4)
    stop = asyncio.Event()
    answers: list[tuple[int, bytes]] = []

    async def keep_calling() -> None:
        while not stop.is_set():
            async with rack.get("/function/f") as answer:
                answers.append((answer.status, await answer.read()))

    callers = [asyncio.create_task(keep_calling()) for _ in range(8)]
    for number in range(1, 6):
        await rack.deploy("f", says(b"r%d" % number), revision=f"r{number}", max_instances=4)
        begun = len(answers)
        async with asyncio.timeout(10):
            while len(answers) < begun + 40:
                await asyncio.sleep(0.001)
        assert answers[-1][1] == b"r%d" % number
    stop.set()
    await asyncio.gather(*callers)
    assert {status for status, _ in answers} == {200}
    await rack.service.until(lambda: len(rack.service.leases) <= 4)


async def test_after_the_switch_no_new_call_gets_the_old_revision(rack: Rack) -> None:
    await rack.deploy("f", says(b"old"), revision="r1")
    async with rack.get("/function/f") as answer:
        assert await answer.read() == b"old"
    await rack.deploy("f", says(b"new"), revision="r2")
    async with rack.get("/function/f") as answer:
        assert await answer.read() == b"new"
        assert answer.headers["Pilotlight-Revision"] == "r2"


async def test_a_running_call_ends_on_its_old_revision(rack: Rack) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await exchange.reply(200, b"old")

    await rack.deploy("f", slow, revision="r1")
    running = asyncio.create_task(rack.get("/function/f").__aenter__())
    await rack.service.until(lambda: rack.service.instances_made)
    await rack.deploy("f", says(b"new"), revision="r2")
    async with rack.get("/function/f") as answer:
        assert await answer.read() == b"new"
    assert not rack.service.released
    go.set()
    async with await running as answer:
        assert (answer.status, await answer.read()) == (200, b"old")
    await rack.service.until(lambda: len(rack.service.released) == 1)


async def test_a_function_that_was_deleted_is_unknown(rack: Rack) -> None:
    await rack.deploy("f")
    async with rack.get("/function/f"):
        pass
    del rack.service.routes["f"]
    await rack.settle()
    async with rack.get("/function/f") as answer:
        await problem(answer, "unknown-function")
    await rack.service.until(lambda: rack.service.released)


async def test_idle_leases_are_given_back(rack: Rack) -> None:
    rack.service.idle = 0.05
    await rack.deploy("f")
    async with rack.get("/function/f"):
        pass
    await rack.service.until(lambda: rack.service.released)
    async with rack.get("/function/f") as answer:
        assert answer.headers["Pilotlight-Start"] == "cold"


async def test_a_recalled_lease_gets_no_new_call(rack: Rack) -> None:
    await rack.deploy("f")
    async with rack.get("/function/f"):
        pass
    rack.service.tell(Recall(next(iter(rack.service.leases))))
    await rack.service.until(lambda: rack.service.released)
    async with rack.get("/function/f") as answer:
        assert answer.headers["Pilotlight-Instance"] == rack.service.instances_made[1].id


async def test_an_instance_that_ended_is_not_called(rack: Rack) -> None:
    await rack.deploy("f")
    async with rack.get("/function/f"):
        pass
    await rack.service.instances_made[0].kill()
    rack.service.tell(Ended(rack.service.leases.popitem()[0]))
    await rack.settle()
    async with rack.get("/function/f") as answer:
        assert answer.status == 200
    assert not rack.service.diagnosed


async def test_warm_calls_need_no_function_service(rack: Rack) -> None:
    await rack.deploy("f", hello)
    async with rack.get("/function/f"):
        pass
    await rack.service.stop_serving()
    for _ in range(10):
        async with rack.get("/function/f") as answer:
            assert answer.status == 200
            assert answer.headers["Pilotlight-Start"] == "warm"
    await rack.service.start()


async def test_cold_calls_wait_for_a_function_service_that_restarts(rack: Rack) -> None:
    await rack.deploy("f", hello)
    await rack.service.stop_serving()
    call = asyncio.create_task(rack.get("/function/f").__aenter__())
    async with rack.get("/healthz"):
        pass
    await rack.service.start()
    async with await call as answer:
        assert answer.status == 200


async def test_after_a_restart_calls_get_leases_of_the_new_connection(rack: Rack) -> None:
    await rack.deploy("f", hello)
    async with rack.get("/function/f"):
        pass
    await rack.service.stop_serving()
    await rack.service.start()
    await rack.settle()
    async with rack.get("/function/f") as answer:
        assert answer.headers["Pilotlight-Instance"] == rack.service.instances_made[1].id
    assert not rack.service.released


async def test_a_function_service_that_stays_away_is_named(rack: Rack) -> None:
    await rack.deploy("f", hello, timeout=0.5)
    await rack.service.stop_serving()
    async with rack.get("/function/f") as answer:
        assert answer.status in (503, 504)
        assert (await answer.json(content_type=None))["detail"]
    await rack.service.start()


async def refusing(rack: Rack) -> None:
    """Wait until it accepts no more."""
    async with asyncio.timeout(5):
        while True:
            try:
                _, probe = await rack.connect()
            except OSError:
                break
            probe.close()
            await asyncio.sleep(0)


async def test_shutdown_lets_running_calls_end_and_gives_leases_back(rack: Rack) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.body()
        await go.wait()
        await exchange.reply(200, b"whole")

    await rack.deploy("slow", slow)
    await rack.deploy("hello", hello)
    async with rack.get("/function/hello"):
        pass
    reader, writer = await rack.connect()
    writer.write(b"POST /function/slow HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc")
    await rack.service.until(lambda: len(rack.service.instances_made) == 2)
    rack.stopping.set()
    await refusing(rack)
    writer.write(b"def")  # the rest of the body still arrives
    go.set()
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.endswith(b"whole")
    assert b"Connection: close" in answer
    writer.close()
    await asyncio.wait_for(rack.task, 5)
    assert not rack.service.leases
    assert len(rack.service.released) == 2
    assert len(rack.service.usage) == 2
    assert not rack.data.socket("gateway").exists()


async def test_shutdown_breaks_off_what_does_not_end(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server._DRAIN", 0.2)

    async def endless(exchange: Exchange) -> None:
        await exchange.gone()

    await rack.deploy("endless", endless, timeout=60.0)
    call = asyncio.create_task(rack.raw(b"GET /function/endless HTTP/1.1\r\nHost: h\r\n\r\n"))
    await rack.service.until(lambda: rack.service.instances_made)
    await asyncio.wait_for(rack.stop(), 5)
    assert (await call).data == b""
    assert rack.service.stopped
    assert not rack.service.leases


async def test_shutdown_ends_logs_that_are_followed(rack: Rack, key: dict[str, str]) -> None:
    await rack.deploy("f")
    async with rack.get("/api/v1/functions/f/logs?follow=true", headers=key) as answer:
        for _ in range(3):
            await answer.content.readline()
        await asyncio.wait_for(rack.stop(), 5)
        assert await answer.content.read() == b""


async def test_idle_connections_do_not_hold_up_the_shutdown(rack: Rack) -> None:
    reader, writer = await rack.connect()
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    await reader.readuntil(b"ok\n")
    silent, other = await rack.connect()
    await asyncio.wait_for(rack.stop(), 3)
    assert await reader.read() == b""
    assert await silent.read() == b""
    writer.close()
    other.close()


async def test_the_first_request_of_a_connection_is_answered_when_the_shutdown_has_begun(rack: Rack) -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.7)  # longer than connections are waited for
        await exchange.reply(200, b"whole")

    await rack.deploy("slow", slow)
    reader, writer = await rack.connect()
    async with rack.get("/function/slow"):
        pass  # an instance is there, since none is asked for any more then
    rack.stopping.set()
    await refusing(rack)
    writer.write(b"GET /function/slow HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.endswith(b"whole")
    assert b"Connection: close" in answer
    writer.close()
    await asyncio.wait_for(rack.task, 5)


async def test_before_the_function_service_is_there_calls_are_unavailable(tmp_path) -> None:
    data = DataFolder(tmp_path / "data")
    data.prepare()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    stopping, ready = asyncio.Event(), asyncio.Event()
    gateway = asyncio.create_task(
        serve(Settings(data=data.root), data, listener=listener, stopping=stopping, ready=ready.set)
    )
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    for path, status in (
        (b"/function/f", b"503"),
        (b"/healthz", b"200"),
        (b"/readyz", b"503"),
        (b"/api/v1/apps", b"503"),
    ):
        writer.write(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split()[1] == status, path
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        await reader.readexactly(int(length.split()[1]))
    assert not ready.is_set()
    writer.close()
    stopping.set()
    await asyncio.wait_for(gateway, 5)


async def test_a_gateway_that_stops_waits_for_no_function_service_that_is_away(rack: Rack) -> None:
    await rack.deploy("f")
    rack.service.gate.clear()
    waiting = asyncio.create_task(rack.get("/function/f").__aenter__())
    await rack.service.until(lambda: rack.service.acquiring)
    await rack.service.stop_serving()  # as it stops itself where `pilotlight up` was killed
    rack.stopping.set()
    async with asyncio.timeout(2):  # the function's timeout is ten seconds
        async with await waiting as answer:
            await problem(answer, "unavailable")
        await rack.task
    await rack.service.start()


async def test_a_gateway_whose_function_service_goes_while_it_stops_waits_for_nothing(rack: Rack) -> None:
    await rack.deploy("f")
    async with rack.get("/function/f"):
        pass  # there is a lease to give back, and a call to report
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await exchange.reply(200, b"late")

    await rack.deploy("slow", slow)
    running = asyncio.create_task(rack.get("/function/slow").__aenter__())
    await rack.service.until(lambda: len(rack.service.leases) == 2)
    rack.stopping.set()
    async with asyncio.timeout(2):
        with pytest.raises(aiohttp.ClientConnectionError):
            await ask_for_ever(rack)  # until it accepts nobody any more
        await rack.service.stop_serving()
        go.set()
        async with await running as answer:
            assert await answer.read() == b"late"
        await rack.task
    await rack.service.start()


async def ask_for_ever(rack: Rack) -> None:
    while True:
        async with rack.http.get(rack.url("/healthz"), headers={"Connection": "close"}):
            pass


async def test_shutdown_ends_feeds_at_once_and_whole(
    rack: Rack, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.server._DRAIN", 60.0)
    async with rack.get("/data/v1/things/changes?app=a", headers=key) as feed:
        assert await feed.content.readuntil(b"\n\n") == b"id: 1\ndata: {}\n\n"
        stopping = asyncio.create_task(rack.stop())
        assert await asyncio.wait_for(feed.read(), 5) == b""
    await asyncio.wait_for(stopping, 5)
