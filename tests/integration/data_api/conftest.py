"""The service as it runs, with real sockets, and a stand-in for the function service that grants listeners."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from pilotlight import sockets
from pilotlight.datafolder import DataFolder
from tests.support.baas import Baas, Granter


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """Run on the loop that production runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def data() -> Iterator[DataFolder]:
    with tempfile.TemporaryDirectory(prefix="pilotlight-") as folder:
        data = DataFolder(Path(folder) / "data")
        data.prepare()
        yield data


@pytest.fixture
async def baas(data: DataFolder, request: pytest.FixtureRequest) -> AsyncIterator[Baas]:
    """The service; a test may be parametrised with what the documents of an app may take."""
    before = asyncio.all_tasks()
    baas = Baas(data, getattr(request, "param", 1 << 30))
    await baas.start()
    yield baas
    await baas.stop()
    assert sorted(path.name for path in data.run.iterdir() if path.suffix == ".sock") == []
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left


@pytest.fixture
def granter(baas: Baas, data: DataFolder) -> Iterator[Granter]:
    granter = Granter(data)
    yield granter
    granter.close()


@pytest.fixture
async def operator(baas: Baas, data: DataFolder) -> AsyncIterator[aiohttp.ClientSession]:
    """A client where the gateway connects."""
    connector = aiohttp.UnixConnector(sockets.address(data.socket("baas")))
    async with aiohttp.ClientSession(
        "http://baas",
        connector=connector,
        headers={"Pilotlight-App": "shop"},
        timeout=aiohttp.ClientTimeout(total=20),
    ) as session:
        yield session


@pytest.fixture
async def cart(granter: Granter) -> AsyncIterator[aiohttp.ClientSession]:
    """A client inside of the sandbox of the function `cart` of the app `shop`."""
    port = granter.grant("instance-1")
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(total=20)
    ) as session:
        yield session
