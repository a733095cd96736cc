"""Hundreds of first requests at once to a function that sleeps: all answered, by no more instances than needed."""

import asyncio
import math
from collections.abc import Iterator

import pytest

from tests.support.apps import App
from tests.support.platform import Up, family, left_behind

REQUESTS = 200
HELLO = "def handle(request):\n    return 'awake'\n"
PATIENCE = 120.0  # seconds, also the functions' time-out: an emulated machine takes its time


def function(name: str, concurrency: int, most: int) -> dict[str, str]:
    return {
        "handler.py": HELLO,
        "pilotlight.toml": (
            f'[functions.{name}]\npath = "."\naccess = "public"\ntimeout = "{PATIENCE:.0f}s"\n'
            f"concurrency = {concurrency}\nmax_instances = {most}\n"
        ),
    }


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("waking") / "platform") as up:
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []


async def ask_at_once(up: Up, name: str) -> list[tuple[bytes, bytes, str]]:
    """Send all requests, each over a connection that stands already; return status, body and instance."""
    host, port = up.url.removeprefix("http://").split(":")
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(REQUESTS)]
    head = f"GET /function/{name} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes, str]:
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
        head, _, body = received.partition(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        return head.split(b" ", 2)[1], body, headers.get(b"pilotlight-instance", b"").decode()

    async with asyncio.timeout(PATIENCE):
        for _, writer in connections:
            writer.write(head)
        return await asyncio.gather(*(answer(*connection) for connection in connections))


@pytest.mark.parametrize(
    ("name", "concurrency", "most"),
    [("crowded", 10, 100), ("narrow", 1, 4)],
    ids=["as many as the queue needs", "as many as are allowed"],
)
async def test_first_requests_at_once_are_all_answered_without_a_stampede(
    up: Up, name: str, concurrency: int, most: int
) -> None:
    app = App.make(up, name, function(name, concurrency, most))
    app.deploy()
    assert up.platform.get(f"/api/v1/functions/{name}/instances")["instances"] == []
    answers = await ask_at_once(up, name)
    assert {(status, body) for status, body, _ in answers} == {(b"200", b"awake")}
    needed = min(math.ceil(REQUESTS / concurrency), most)
    assert len({instance for _, _, instance in answers}) <= needed
    started = len(up.platform.get(f"/api/v1/functions/{name}/instances")["instances"])
    assert 1 <= started <= needed
