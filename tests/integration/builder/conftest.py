import asyncio
from dataclasses import replace

import pytest
from toy import INDEX, LANGUAGES, FakeBuilds, Platform, tcp_front

from builder.limits import Limits
from builder.server import Builder
from function_service.contract import Builds
from pilotlight.datafolder import DataFolder
from pilotlight.rpc import Client, Server


@pytest.fixture
def limits():
    return replace(Limits(), grace=2.0)


@pytest.fixture
async def platform(tmp_path, limits):
    data = DataFolder(tmp_path / "data")
    data.prepare()
    fake = FakeBuilds(data)
    server = Server(data.socket("function-service"), {Builds: fake})
    await server.start()
    client = Client(data.socket("function-service"))
    stopping, ready = asyncio.Event(), asyncio.Event()

    async def languages():
        return LANGUAGES

    builder = Builder(data, client.of(Builds), languages, INDEX, limits)
    serving = asyncio.create_task(builder.serve(stopping, ready.set))
    await asyncio.wait({serving, asyncio.ensure_future(ready.wait())}, return_when="FIRST_COMPLETED")
    async with tcp_front(data.socket("builder")) as port:
        platform = Platform(data, fake, port, tmp_path)
        platform.stopping = stopping
        yield platform
        stopping.set()
        await serving
        assert platform.leftovers() == []
        assert fake.running == 0
    await client.close()
    await server.close()
