"""Images that have lost their names in dockerd: the platform's own go, everybody else's stay."""

import asyncio
import contextlib
import io
import subprocess
import tarfile
from collections.abc import Iterator
from typing import Any

import docker.errors
import pytest

from benchmarks import baselines
from function_service.engines.docker import litter
from function_service.engines.docker.daemon import Daemon
from function_service.engines.docker.image import HostImage
from tests.support import images
from tests.support import service as support
from tests.support.service import DOCKER

pytestmark = support.dockerd_needed()


@pytest.fixture
def api() -> Iterator[Any]:
    with images.client() as client:
        yield client


@contextlib.contextmanager
def nameless(api: Any, text: str, *changes: str) -> Iterator[str]:
    """Make an image without a name; yield its id."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("text")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))
    events = api.import_image_from_data(packed.getvalue(), changes=changes)
    id_ = events.rsplit('"status":"', 1)[1].split('"', 1)[0]
    try:
        yield id_
    finally:
        with contextlib.suppress(docker.errors.ImageNotFound):
            api.remove_image(id_)


def is_there(api: Any, image: str) -> bool:
    return any(each["Id"] == image for each in api.images(all=True))


async def test_what_a_killed_service_has_left_goes_at_the_next_start_and_what_others_have_stays(
    api: Any,
) -> None:
    with nameless(api, "ours", litter.label("host")) as ours, nameless(api, "a user's") as others:
        async with support.running(DOCKER):
            assert not is_there(api, ours)
        assert is_there(api, others)


async def test_what_a_container_is_made_of_goes_when_that_is_gone(api: Any) -> None:
    with nameless(api, "in use", litter.label("host")) as image:
        container = api.create_container(image, ["/text"])["Id"]
        try:
            async with support.running(DOCKER):
                assert is_there(api, image)
                api.remove_container(container)
            assert not is_there(api, image)
        finally:
            with contextlib.suppress(docker.errors.NotFound):
                api.remove_container(container)


def test_the_steps_of_a_build_go_with_its_image_and_what_it_was_built_on_stays(api: Any) -> None:
    built, name = "pilotlight-test-litter", "pilotlight-test-litter:1"
    with nameless(api, "a base", litter.label(f"{built}-base")) as base:
        dockerfile = f"FROM {base}\n{litter.label(built)}\nCOPY Dockerfile /one\nCOPY Dockerfile /two\n"
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            entry = tarfile.TarInfo("Dockerfile")
            entry.size = len(dockerfile)
            tar.addfile(entry, io.BytesIO(dockerfile.encode()))
        list(api.build(fileobj=io.BytesIO(context.getvalue()), custom_context=True, tag=name, rm=True))
        filters = {"label": f"{litter.LABEL}={built}"}
        assert len(api.images(all=True, filters=filters)) == 3
        assert litter.remove(api, name)
        assert api.images(all=True, filters=filters) == []
        assert is_there(api, base)


async def test_starts_at_once_make_one_image() -> None:
    daemon = Daemon("test")
    made: list[str] = []
    image = HostImage(daemon)
    image._make = _counted(image._make, made)  # type: ignore[method-assign]
    try:
        names = await asyncio.gather(*(image.name() for _ in range(4)))
        assert (len(set(names)), len(made)) == (1, 1)
    finally:
        await daemon.close()


def _counted(make: Any, made: list[str]) -> Any:
    async def counted() -> str:
        name: str = await make()
        made.append(name)
        return name

    return counted


def test_the_image_of_a_benchmark_goes_with_it(api: Any) -> None:
    with contextlib.ExitStack() as undo:
        for _ in range(2):  # one for each language
            baselines.in_docker(undo)
        (image,) = api.images(name=baselines.IMAGE, quiet=True)
    assert not is_there(api, image)


def test_a_benchmark_takes_over_what_a_killed_one_has_left(api: Any) -> None:
    command = ("docker", "import", "-", baselines.IMAGE)
    left = (
        subprocess.run(command, input=b"\0" * 10240, capture_output=True, check=True).stdout.decode().strip()
    )
    with contextlib.ExitStack() as undo:
        baselines.in_docker(undo)
        assert api.images(name=baselines.IMAGE, quiet=True) == [left]
    assert not is_there(api, left)
