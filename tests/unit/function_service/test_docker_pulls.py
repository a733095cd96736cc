"""Pulls of images, from a stand-in for dockerd whose registry holds them up."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import docker.errors
import pytest

from function_service.contract import Output
from function_service.engines.base import FoundImage
from function_service.engines.docker.daemon import Daemon
from function_service.engines.docker.images import Images

Items = AsyncGenerator[Output | FoundImage, None]


class Client:
    """What a thread of the daemon's has."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.third = threading.Event()
        self.goes_on = threading.Event()

    def inspect_image(self, name: str) -> dict[str, Any]:
        raise docker.errors.ImageNotFound(name)

    def pull(self, name: str, **_: Any) -> Iterator[dict[str, Any]]:
        self.begun.append(name)
        if len(self.begun) == 3:
            self.third.set()
        yield {"status": f"Pulling {name}"}
        for _ in range(1000):
            yield {"status": "Downloading", "id": "layer", "progress": "…"}
        assert self.goes_on.wait(60)
        yield {"status": "Pull complete", "id": "layer"}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    client = Client()
    monkeypatch.setattr(Daemon, "_do", lambda _, work: work(client))
    yield client
    client.goes_on.set()


async def until_it_pulls(finding: Items) -> None:
    async for item in finding:
        if isinstance(item, Output) and item.line.startswith("Pulling"):
            return


async def test_pulls_that_were_left_keep_their_places_until_the_registry_lets_them_go(client: Client) -> None:
    images = Images(Daemon("x"))
    for name in ("a", "b"):
        finding = images.find(name)
        await until_it_pulls(finding)
        async with asyncio.timeout(5):
            await finding.aclose()
    third = asyncio.create_task(until_it_pulls(images.find("c")))
    assert not await asyncio.to_thread(client.third.wait, 0.3)
    client.goes_on.set()
    async with asyncio.timeout(20):
        await third
    assert client.begun == ["a", "b", "c"]


async def test_of_progress_nothing_is_told(client: Client) -> None:
    client.goes_on.set()
    told: list[str] = []

    async def follow() -> None:
        async for item in Images(Daemon("x")).find("a"):
            assert isinstance(item, Output)
            told.append(item.line)

    with pytest.raises(docker.errors.ImageNotFound):  # as this registry has none in the end
        await follow()
    assert told == ["The image a is not on this machine; pulling it", "Pulling a", "layer: Pull complete"]
