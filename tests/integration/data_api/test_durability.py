"""A write that was answered survives kill -9 of the service, which runs here as it does in production: on uvloop."""

import asyncio
import json
import signal
import sys

import aiohttp

from pilotlight import sockets
from pilotlight.datafolder import DataFolder

PROGRAM = """
import asyncio, sys, uvloop
from pathlib import Path
from baas.server import serve
from pilotlight.datafolder import DataFolder
from pilotlight.settings import Settings

async def main():
    root = Path(sys.argv[1])
    await serve(Settings(data=root), DataFolder(root), stopping=asyncio.Event(), ready=lambda: print("ready", flush=True))

uvloop.run(main())
"""


async def start(data: DataFolder) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(data.root), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
    return process


async def test_every_answered_write_survives_kill_9(data: DataFolder) -> None:
    process = await start(data)
    answered: dict[str, str] = {}

    async def write(client: aiohttp.ClientSession, worker: int) -> None:
        for i in range(10_000):
            try:
                async with client.put(
                    f"/data/v1/things/{worker}-{i}", params={"app": "shop"}, json=i
                ) as response:
                    assert response.status == 201
                    answered[f"{worker}-{i}"] = response.headers["ETag"]
            except aiohttp.ClientConnectionError:
                return

    def client() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            "http://baas", connector=aiohttp.UnixConnector(sockets.address(data.socket("baas")))
        )

    async with client() as session:
        workers = [asyncio.create_task(write(session, worker)) for worker in range(8)]
        async with asyncio.timeout(30):
            while len(answered) < 200:
                await asyncio.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*workers)

    process = await start(data)
    try:
        async with client() as session:
            for key, tag in answered.items():
                async with session.get(f"/data/v1/things/{key}", params={"app": "shop"}) as response:
                    assert (response.status, response.headers["ETag"]) == (200, tag)
    finally:
        process.kill()
        await process.wait()


async def follow(
    session: aiohttp.ClientSession, since: str, seen: list[tuple[str, str]], enough: int
) -> None:
    """Read the feed of `things` until so many events were seen, or it breaks off."""
    async with session.get("/data/v1/things/changes", params={"app": "shop", "since": since}) as response:
        assert response.status == 200
        event = ""
        try:
            while len(seen) < enough and (line := await response.content.readline()):
                if line.startswith(b"id: "):
                    event = line.decode()[4:-1]
                elif line.startswith(b"data: "):
                    seen.append((event, json.loads(line[6:])["key"]))
        except aiohttp.ClientError:
            pass


async def test_a_feed_goes_on_after_kill_9_with_every_answered_write_once_and_in_order(
    data: DataFolder,
) -> None:
    process = await start(data)
    answered: dict[str, int] = {}  # versions, by key
    seen: list[tuple[str, str]] = []

    def client() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            "http://baas", connector=aiohttp.UnixConnector(sockets.address(data.socket("baas")))
        )

    async def write(session: aiohttp.ClientSession, worker: int, until: int) -> None:
        for i in range(until):
            key = f"{process.pid}-{worker}-{i}"
            try:
                async with session.put(f"/data/v1/things/{key}", params={"app": "shop"}, json=i) as response:
                    answered[key] = int(response.headers["ETag"].strip('"'))
            except aiohttp.ClientError:
                return

    async with client() as session:
        async with session.get("/data/v1/things", params={"app": "shop"}) as response:
            since = response.headers["Pilotlight-Position"]
        reader = asyncio.create_task(follow(session, since, seen, 10_000))
        workers = [asyncio.create_task(write(session, worker, 10_000)) for worker in range(8)]
        async with asyncio.timeout(60):
            while len(answered) < 200 or len(seen) < 100:
                await asyncio.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*workers, reader)

    process = await start(data)
    try:
        async with client() as session, asyncio.timeout(60):
            await write(session, 0, 20)
            reader = asyncio.create_task(follow(session, seen[-1][0], seen, 10_000))
            while not answered.keys() <= {key for _, key in seen}:
                await asyncio.sleep(0.005)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
    finally:
        process.kill()
        await process.wait()
    versions = [int(event.rpartition("-")[2]) for event, _ in seen]
    assert versions == sorted(set(versions))  # in order, and none twice
    assert {key: answered[key] for _, key in seen if key in answered} == answered
    assert {
        key: version for (_, key), version in zip(seen, versions, strict=True) if key in answered
    } == answered
