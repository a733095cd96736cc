"""Base images in a real dockerd: made anew under their name, listed, and gone when nobody needs the former one."""

import asyncio
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import base_images
from cli.commands import images as command
from function_service.contract import Image
from function_service.engines.docker import bases
from tests.support import images
from tests.support import service as support
from tests.support.service import DOCKER, Service

NAME = "pilotlight-test-native"
SERVER = """#!/bin/sh
mkdir -p /tmp/www
cat /version >/tmp/www/index.html
exec busybox httpd -f -p "127.0.0.1:$PORT" -h /tmp/www
"""

pytestmark = support.dockerd_needed()


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Have base images under another name than those of this machine, made of a busybox and a version."""
    says = {"version": "1"}

    def make(runtime: str, suite: str, packages: Any, tar: Path) -> None:
        tar.write_bytes(images.packed({"version": says["version"]}))
        assert tarfile.is_tarfile(tar)

    monkeypatch.setitem(bases.NAMES, "native", NAME)
    monkeypatch.setattr(base_images, "make", make)
    yield says
    with images.client() as api:
        images.remove(api, f"{NAME}:latest")


async def look(service: Service) -> Image:
    items = [item async for item in service.client.builds.image(NAME, "native")]
    assert isinstance(items[-1], Image)
    return items[-1]


async def test_a_former_base_image_goes_when_no_revision_needs_it(version: dict[str, str]) -> None:
    async with support.running(DOCKER) as service:
        label = service.data.label
        assert await command._make("native", "", (), label) > 0
        first = await look(service)
        settings = {"handler": "handler", "runtime": "native", "timeout": 60.0}
        await service.deploy("based", {"handler": SERVER}, image=first, **settings)
        version["version"] = "2"
        await command._make("native", "", (), label)
        second = await look(service)
        assert second.id != first.id
        assert await service.ask("based", method="GET") == (200, "1")
        listed = {each.id: each for each in await service.client.control.images()}
        assert (listed[first.id].functions, listed[first.id].kind) == (["based"], "base")
        assert (listed[second.id].functions, listed[second.id].size > 0) == ([], True)
        assert [each.kind for each in listed.values() if each.name.startswith("pilotlight-host:")] == [
            "platform"
        ]
        await service.client.control.delete_function("based")
        async with asyncio.timeout(60):
            while first.id in {each.id for each in await service.client.control.images()}:
                await asyncio.sleep(0.2)


async def test_an_image_that_is_there_becomes_a_base_image(version: dict[str, str]) -> None:
    with images.imported("pilotlight-test-foreign:1", {"version": "3"}) as id_:
        assert await command._adopt("pilotlight-test-foreign:1", "native") > 0
        with images.client() as api:
            assert api.inspect_image(NAME)["Id"] == id_


async def test_an_image_that_somebody_removed_is_listed_as_gone() -> None:
    async with support.running(DOCKER) as service:
        with images.imported("pilotlight-test-vanished:1", {}) as id_:
            items = [
                item async for item in service.client.builds.image("pilotlight-test-vanished:1", "native")
            ]
            assert isinstance(items[-1], Image)
            settings = {"handler": "handler", "runtime": "native"}
            revision = await service.prepare("widow", {"handler": SERVER}, image=items[-1], **settings)
            # Once it is live, containers of the image wait, which keep it
            await service.client.builds.prepare("widow", revision.commit, [revision])
        listed = {each.id: each for each in await service.client.control.images()}
        assert (listed[id_].present, listed[id_].name, listed[id_].functions) == (
            False,
            "pilotlight-test-vanished:1",
            ["widow"],
        )
