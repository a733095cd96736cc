"""Images on their way between two real dockerds: the wanted one comes, as it is, and nothing with it."""

import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from function_service.contract import Image
from function_service.engines.docker.daemon import Daemon
from function_service.engines.docker.images import Images
from function_service.engines.docker.moving import Moving
from function_service.engines.docker.permitted import FETCHED, Permitted
from pilotlight.problems import Problem
from tests.support import dockers, images
from tests.support import service as support
from tests.support.image_registry import ImageRegistry
from tests.support.service import DOCKERD

NAME, OTHER = "pilotlight-test-moving:1", "pilotlight-test-other:1"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), *support.dockerd_needed()]


@pytest.fixture(scope="module")
def second() -> Iterator[str]:
    with dockers.running() as path:
        yield path


@pytest.fixture(scope="module")
def moving() -> Iterator[str]:
    with images.imported(NAME, {"moving": "x" * 500_000}, ("ENV A=b", 'CMD ["/bin/sh"]')) as id_:
        yield id_


def transport(
    monkeypatch: pytest.MonkeyPatch, dockerd: str, label: str, listed: str = ""
) -> tuple[Moving, Daemon]:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{dockerd}")
    daemon = Daemon(label)
    return Moving(daemon, Images(daemon), label, Permitted(listed)), daemon


@pytest_asyncio.fixture(loop_scope="module")
async def here(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Moving]:
    moving, daemon = transport(monkeypatch, DOCKERD, "here")
    yield moving
    await daemon.close()


@pytest_asyncio.fixture(loop_scope="module")
async def there(second: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Moving]:
    moving, daemon = transport(monkeypatch, second, "there", "**")
    yield moving
    for image in await moving.fetched():
        await moving.drop(image)
    assert all_of(second) == []
    await daemon.close()


def all_of(dockerd: str) -> list[dict[str, Any]]:
    with images.client(dockerd) as api:
        return api.images(all=True)


async def packed(moving: Moving, image: str, archive: Path) -> Path:
    with archive.open("wb") as file:
        async for piece in moving.pack(image):
            file.write(piece)
    return archive


async def test_an_image_comes_over_with_its_id_and_goes_by_our_name(
    here: Moving, there: Moving, second: str, moving: str, tmp_path: Path
) -> None:
    assert (await here.has(moving), await there.has(moving)) == (True, False)
    await there.unpack(moving, await packed(here, moving, tmp_path / "archive"))
    assert await there.has(moving)
    (image,) = all_of(second)
    assert image["Id"] == moving
    assert image["RepoTags"] == [f"{FETCHED}:there-{moving.removeprefix('sha256:')}"]
    assert await there.fetched() == {moving: image["Size"]}
    with images.client(second) as api:
        container = api.create_container(moving, ["/bin/sh"])["Id"]
        try:
            assert not await there.drop(moving)  # it is in use
        finally:
            api.remove_container(container)
    await there.unpack(moving, tmp_path / "archive")
    assert await there.drop(moving)
    assert not await there.has(moving)


async def test_no_other_image_and_no_name_comes_along(
    there: Moving, second: str, moving: str, tmp_path: Path
) -> None:
    with images.imported(OTHER, {"other": "x"}), images.client() as api:
        api.tag(moving, "pilotlight-test-stolen", "latest")
        try:
            names = [NAME, OTHER, "pilotlight-test-stolen:latest"]
            url = api._url("/images/get")
            answer = api._get(url, params={"names": names}, stream=True)
            (tmp_path / "archive").write_bytes(answer.content)
        finally:
            images.remove(api, "pilotlight-test-stolen:latest")
    with tarfile.open(tmp_path / "archive") as tar:
        assert {"manifest.json", "repositories"} <= set(tar.getnames())
    await there.unpack(moving, tmp_path / "archive")
    (image,) = all_of(second)
    assert (image["Id"], len(image["RepoTags"])) == (moving, 1)
    assert image["RepoTags"][0].startswith(FETCHED)


async def test_what_was_changed_on_its_way_is_refused_and_nothing_is_left(
    here: Moving, there: Moving, second: str, moving: str, tmp_path: Path
) -> None:
    archive = await packed(here, moving, tmp_path / "archive")
    whole = archive.read_bytes()
    for former, changed in ((b"xxxxxxxx", b"xxxxyxxx"), (b"A=b", b"A=c")):
        archive.write_bytes(whole.replace(former, changed))
        with pytest.raises(Problem, match=r"is not that|lacks some"):
            await there.unpack(moving, archive)
    assert all_of(second) == []


async def test_an_image_that_is_not_there_cannot_be_packed(here: Moving, tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        await packed(here, f"sha256:{'0' * 64}", tmp_path / "archive")
    assert caught.value.kind == "not-found"


async def test_it_is_pulled_by_its_digest_and_kept_under_our_name_alone(there: Moving, second: str) -> None:
    with ImageRegistry() as registry:
        source = f"{registry.place}/team/tool@{registry.digest}"
        name = f"{registry.place}/team/tool:1"
        image = Image(name=name, id=registry.id, runtime="native", executable="", source=source)
        assert there.pulls(image)
        await there.pull(image)
        (found,) = all_of(second)
        assert (found["Id"], found["RepoDigests"] or []) == (registry.id, [])
        assert await there.fetched() == {registry.id: found["Size"]}
        assert f"/v2/team/tool/manifests/{registry.digest}" in registry.asked
        other = Image(name=name, id=f"sha256:{'0' * 64}", runtime="native", executable="", source=source)
        assert await there.drop(registry.id)
        with pytest.raises(Problem, match="is another image"):
            await there.pull(other)
    assert all_of(second) == []


async def test_a_pull_that_is_not_permitted_is_not_tried(here: Moving) -> None:
    image = Image(name="python", id="sha256:1", runtime="native", executable="", source="python@sha256:2")
    assert not here.pulls(image)  # there is no list


async def test_a_dockerd_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moving, daemon = transport(monkeypatch, str(tmp_path / "nowhere"), "x")
    with pytest.raises(Problem) as caught:
        await packed(moving, "sha256:1", tmp_path / "archive")
    assert caught.value.kind == "no-capacity"
    await daemon.close()
