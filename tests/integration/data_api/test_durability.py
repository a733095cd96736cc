"""A write that was answered survives kill -9 of the service, which runs here as it does in production: on uvloop."""

import asyncio
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
