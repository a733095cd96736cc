"""Images that the operator names, and no others: on a real dockerd, with a registry that tells who was there."""

import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from function_service.contract import Image, ImageBuild
from function_service.engines.docker.permitted import BUILT
from pilotlight import trees
from pilotlight.problems import Problem
from tests.support import images
from tests.support import service as support
from tests.support.image_registry import ImageRegistry
from tests.support.service import DOCKER, Service

HIDDEN = "pilotlight-test-hidden:1"
SERVER = """#!/bin/sh
mkdir -p /tmp/www
cat /marked >/tmp/www/index.html
exec busybox httpd -f -p "127.0.0.1:$PORT" -h /tmp/www
"""

pytestmark = support.dockerd_needed()


@pytest.fixture
def registry() -> Iterator[ImageRegistry]:
    with ImageRegistry() as serving:
        yield serving
        with images.client() as api:
            for each in api.images():
                names = [*(each["RepoTags"] or ()), *(each["RepoDigests"] or ())]
                for name in names:
                    if name.startswith(serving.place):
                        images.remove(api, name)


@pytest.fixture
def hidden() -> Iterator[str]:
    """Return the id of an image of this machine that nobody has permitted."""
    with images.imported(HIDDEN, {"secret": "s3cr3t"}) as id_:
        yield id_


@contextlib.asynccontextmanager
async def permitting(list_: str, folder: Path | None = None) -> AsyncIterator[Service]:
    environment = {"PILOTLIGHT_IMAGES": list_, "PILOTLIGHT_DOCKERFILES": "yes"}
    async with support.running(DOCKER, folder, environment=environment) as service:
        yield service


async def look(service: Service, name: str) -> Image:
    items = [item async for item in service.client.builds.image(name, "native")]
    assert isinstance(items[-1], Image)
    return items[-1]


async def get(service: Service, name: str) -> tuple[int, str]:
    lease = await service.acquire(name, 90.0)  # a busy machine takes its time for a container
    try:
        return await support.request(lease, method="GET")
    finally:
        await service.client.invocations.release(lease.id)


async def refused(service: Service, name: str) -> str:
    with pytest.raises(Problem) as caught:
        await look(service, name)
    assert caught.value.kind == "build-failed"
    return caught.value.detail


async def build(service: Service, recipe: str) -> Image:
    folder = Path(tempfile.mkdtemp(dir=service.data.builds))
    (folder / "Dockerfile").write_text(recipe)
    service.give(folder)
    order = ImageBuild(
        folder=str(folder),
        digest=hashlib.sha256(recipe.encode()).hexdigest()[:40],
        memory=256 << 20,
        cpu=2.0,
        timeout=120.0,
        growth=64 << 20,
    )
    try:
        items = [item async for item in service.client.builds.build_image(order)]
    finally:
        trees.remove(folder)
    assert isinstance(items[-1], Image)
    return items[-1]


async def test_what_is_permitted_is_pulled_by_its_name_or_its_digest(registry: ImageRegistry) -> None:
    async with permitting(f"{registry.place}/team/*") as service:
        for name in (f"{registry.place}/team/tool:1", f"{registry.place}/team/other@{registry.digest}"):
            assert (await look(service, name)).id == registry.id
            assert f"/v2/{name.split('/', 1)[1].split(':')[0].split('@')[0]}/manifests/" in "".join(
                registry.asked
            )


async def test_what_is_not_permitted_is_neither_pulled_nor_found(
    registry: ImageRegistry, hidden: str
) -> None:
    place, id_ = registry.place, hidden.removeprefix("sha256:")
    permitted = f"{place}/team/*, pilotlight-test-listed, pilotlight-test-some:3.*"
    with images.imported("pilotlight-test-listed:1", {"listed": "x"}):
        async with permitting(permitted) as service:
            assert (await look(service, "docker.io/library/pilotlight-test-listed:1")).id
            for name in (
                f"{place}/team-evil/tool",
                f"{place}/team/tool/evil",
                f"{place}/evil:1",
                f"{place}/pilotlight-test-listed",
                f"pilotlight-test-some:3.1@{registry.digest}",
                HIDDEN,
                f"docker.io/library/{HIDDEN}",
                f"index.docker.io/{HIDDEN}",
                f"Docker.io/{HIDDEN}",
                id_[:1],
                id_[:12],
                f"sha256:{id_[:12]}",
            ):
                detail = await refused(service, name)
                assert name in detail
                assert f"permits: {permitted.replace(' ', '').replace(',', ', ')}" in detail
                assert "--images" in detail
            for name in (
                id_,
                hidden,
                f"{place}/TEAM/tool",
                f"{place}/team/../evil",
                f"http://{place}/team/tool",
            ):
                await refused(service, name)
    assert registry.asked == []


async def test_without_a_list_nothing_is_pulled_and_no_id_is_a_name(
    registry: ImageRegistry, hidden: str
) -> None:
    async with permitting("") as service:
        assert (await look(service, HIDDEN)).id == hidden
        detail = await refused(service, f"{registry.place}/team/tool:1")
        assert f"docker pull {registry.place}/team/tool:1" in detail
        for name in (hidden[7:8], hidden[7:19], hidden[:19]):
            assert "is not on this machine" in await refused(service, name)
        for recipe in (
            f"FROM {registry.place}/team/tool:1\nCMD x\n",
            f"FROM {hidden[:19]}\nCMD x\n",
            f"FROM {hidden[7:19]}\nCMD x\n",
            f"FROM scratch\nCOPY --from={hidden[7:19]} /secret /secret\nCMD x\n",
        ):
            with pytest.raises(Problem, match="is not on this machine"):
                await build(service, recipe)
        with pytest.raises(Problem, match="is an id"):
            await build(service, f"FROM {hidden}\nCMD x\n")
    assert registry.asked == []


async def test_what_functions_have_built_cannot_be_named(hidden: str) -> None:
    async with permitting("**") as service:
        built = await build(service, f"FROM {HIDDEN}\nCMD cat /marked\n")
        with images.client() as api:
            (name,) = api.inspect_image(built.id)["RepoTags"]
            try:
                assert name.startswith(f"{BUILT}:")
                assert "the platform's own" in await refused(service, name)
                with pytest.raises(Problem, match="the platform's own"):
                    await build(service, f"FROM {name}\nCMD x\n")
            finally:
                images.remove(api, name)


async def test_a_list_that_was_narrowed_holds_for_what_was_deployed_before(
    tmp_path: Path, hidden: str
) -> None:
    folder = tmp_path / "data"
    recipe = f'FROM {HIDDEN}\nCMD exec busybox httpd -f -p "127.0.0.1:$PORT" -h /\n'
    settings = {"runtime": "native", "handler": "handler", "timeout": 60.0}
    try:
        async with permitting("pilotlight-test-*", folder) as service:
            image, built = await look(service, HIDDEN), await build(service, recipe)
            assert (built.bases, image.bases) == ((HIDDEN,), ())
            for name, its in (("named", image), ("made", built), ("changed", image)):
                await service.deploy(name, {"handler": SERVER}, image=its, **settings)
            await service.deploy("changed", {"handler.py": "def handle(request):\n    return 'host'\n"})
            assert await get(service, "named") == (200, images.MARK)
        async with permitting("python:3.*", folder) as service:
            for name in ("named", "made"):
                with pytest.raises(Problem, match=rf"image {HIDDEN} is not among .*python:3\.\*") as caught:
                    await service.acquire(name)
                assert caught.value.kind == "init-failed"
            assert await get(service, "changed") == (200, "host")
            with pytest.raises(Problem, match=HIDDEN) as caught:
                await service.client.control.rollback("changed", None)
            assert caught.value.kind == "conflict"
            with pytest.raises(Problem, match="is not among"):  # though it was built already
                await build(service, recipe)
            with images.client() as api:
                containers = api.containers(
                    filters={"ancestor": hidden, "label": f"pilotlight={service.data.label}"}
                )
                assert containers == []
        async with permitting("", folder) as service:
            assert await get(service, "named") == (200, images.MARK)
            for name in ("named", "made", "changed"):
                await service.client.control.delete_function(name)
            with images.client() as api:
                images.remove(
                    api, f"{BUILT}:{service.data.label}-{hashlib.sha256(recipe.encode()).hexdigest()[:40]}"
                )
    finally:
        trees.remove(folder)
