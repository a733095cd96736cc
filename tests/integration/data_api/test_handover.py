"""Listeners that are granted, revoked, lost, and messages that make no sense."""

import asyncio
import gc
import os
import socket
from pathlib import Path

import aiohttp
import pytest

from pilotlight import sockets
from pilotlight.datafolder import DataFolder
from tests.support.baas import Baas, Granter


async def answers(port: int) -> bool:
    """Tell whether somebody serves the data API there; wait a little for a change under way."""
    async with aiohttp.ClientSession() as client:
        try:
            async with client.get(
                f"http://127.0.0.1:{port}/things", timeout=aiohttp.ClientTimeout(total=5)
            ) as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False


async def closed(port: int) -> None:
    async with asyncio.timeout(5):
        while await answers(port):
            await asyncio.sleep(0.005)


async def test_a_granted_listener_is_served_until_it_is_revoked(granter: Granter) -> None:
    one, other = granter.grant("one"), granter.grant("other")
    assert await answers(one)
    assert await answers(other)
    granter.revoke("one")
    await closed(one)
    assert await answers(other)


async def test_revoking_closes_all_kinds_and_open_connections(granter: Granter) -> None:
    data = granter.grant("one")
    egress = granter.grant("one", kind="egress")
    assert await answers(data)
    streams = [await asyncio.open_connection("127.0.0.1", port) for port in (data, egress)]
    streams[0][1].write(
        b"PUT /things/k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12"
    )  # never completed
    granter.revoke("one")
    for reader, writer in streams:
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
    await closed(data)


async def test_what_was_granted_outlives_its_connection_until_the_next_has_said_what_stands(
    baas: Baas, data: DataFolder, granter: Granter
) -> None:
    goes = granter.grant("two")
    assert await answers(goes)
    listener = socket.create_server(("127.0.0.1", 0))
    stays = listener.getsockname()[1]
    grant = {"grant": "one", "kind": "data", "app": "shop", "function": "cart"}
    granter.send(grant, listener.fileno())
    reader, writer = await asyncio.open_connection("127.0.0.1", stays)
    writer.write(b"PUT /things/k HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12")
    granter.close()
    successor = Granter(data)
    assert await answers(stays)
    assert await answers(goes)
    successor.send(grant, listener.fileno())
    listener.close()
    fresh = successor.grant("three")
    successor.complete()
    await closed(goes)
    assert await answers(stays)
    assert await answers(fresh)
    writer.write(b"34")  # what was under way has not been broken off
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 201")
    writer.close()
    successor.close()


async def test_where_no_function_service_comes_what_was_granted_ends(
    granter: Granter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baas.listeners._ALONE", 0.05)
    port = granter.grant("one")
    assert await answers(port)
    granter.complete()
    granter.close()
    await closed(port)


async def test_a_restarted_function_service_grants_again_before_its_old_connection_ends(
    baas: Baas, data: DataFolder, granter: Granter
) -> None:
    first = granter.grant("one")
    assert await answers(first)
    successor = Granter(data)
    second = successor.grant("one", function="other")
    third = granter.grant("late")
    successor.complete()
    assert await answers(second)
    assert await answers(third)
    granter.close()
    await closed(first)
    await closed(third)
    assert await answers(second)
    successor.close()


async def test_revoking_what_was_never_granted_does_nothing(granter: Granter) -> None:
    granter.revoke("nobody")
    assert await answers(granter.grant("one"))


def descriptors() -> set[str]:
    gc.collect()
    return {str(path.resolve()) for path in list(Path("/proc/self/fd").iterdir())}


async def test_bad_messages_are_skipped_and_leave_no_descriptor(
    granter: Granter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = granter.grant("good")
    assert await answers(port)
    marks = []
    good = {"grant": "x", "kind": "data", "app": "shop", "function": "cart"}
    for number, message in enumerate([
        b"no json", b"[]", b"\xff\xfe", {}, {"grant": "x"}, {**good, "kind": "root"}, {**good, "more": 1},
        {"revoke": 1}, {"grant": 1}, {**good, "kind": "egress", "egress": ["no port"]}, good,
    ]):  # fmt: skip
        path = tmp_path / f"mark-{number}"
        with path.open("w") as file:
            granter.send(message, file.fileno())  # an open file is no listener
        marks.append(str(path))
    granter.send(good)  # no descriptor
    with socket.socket() as plain, socket.create_server(("127.0.0.1", 0)) as listener:
        granter.send(good, plain.fileno())  # not listening
        granter.send(good, listener.fileno(), listener.fileno())  # two
        granter.send({**good, "app": "a" * 70_000}, listener.fileno())  # cut off
    assert await answers(granter.grant("still works"))
    assert not descriptors() & set(marks)
    assert len([r for r in caplog.records if r.name == "baas.listeners"]) == 15
    granter.revoke("good")
    await closed(port)


async def test_a_process_of_another_user_is_turned_away(baas: Baas, data: DataFolder) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    data.root.parent.chmod(0o777)
    for folder in (data.root, data.run):
        folder.chmod(0o777)
    data.socket("listeners").chmod(0o777)
    process = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", "-c",
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "s.connect(sys.argv[1]); sys.exit(0 if s.recv(1) == b'' else 1)",
        sockets.address(data.socket("listeners")),
    )  # fmt: skip
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_one_instance_can_not_take_all_connections(granter: Granter) -> None:
    greedy, modest = granter.grant("greedy"), granter.grant("modest")
    held = [await asyncio.open_connection("127.0.0.1", greedy) for _ in range(64)]
    for _, writer in held:
        writer.write(b"GET /things HTTP/1.1\r\nHost: x\r\n\r\n")
    for reader, _ in held:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    reader, writer = await asyncio.open_connection("127.0.0.1", greedy)
    writer.write(b"GET /things HTTP/1.1\r\nHost: x\r\n\r\n")
    refusal = await asyncio.wait_for(reader.read(), 5)
    assert refusal.startswith(b"HTTP/1.1 429")
    assert b"Pilotlight-Error: overloaded" in refusal
    assert await answers(modest)
    for _, each in [*held, (reader, writer)]:
        each.close()


async def test_a_listener_on_a_unix_socket_is_served_too(granter: Granter, tmp_path: Path) -> None:
    with sockets.listen(tmp_path / "s") as listener:
        granter.send({"grant": "u", "kind": "data", "app": "shop", "function": "cart"}, listener.fileno())
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "s"))) as client, client.get("http://x/things") as response:  # fmt: skip
        assert response.status == 200


async def test_it_stops_in_time_while_clients_hold_on(data: DataFolder) -> None:
    baas = Baas(data)
    await baas.start()
    granter = Granter(data)
    port = granter.grant("one")
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PUT /things/k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12")
    idle = await asyncio.open_connection("127.0.0.1", granter.grant("one", kind="egress"))
    assert await answers(port)
    await baas.stop()
    for each in (writer, idle[1]):
        each.close()
    granter.close()
