"""Functions in images that they name: the same promises, and nothing of the host; on a real dockerd."""

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from function_service.contract import Exit, Image, Job, Output
from pilotlight.problems import Problem
from tests.support import images
from tests.support import service as support
from tests.support.service import DOCKER, Service

SERVER = """#!/bin/sh
mkdir -p /tmp/www
{ cat /marked; echo "$GREETING $OF_IMAGE"; ls /runtime/host/usr; } >/tmp/www/index.html
exec busybox httpd -f -p "127.0.0.1:$PORT" -h /tmp/www
"""
PRINTING = "import os\ndef handle(request):\n    return open('/marked').read() + os.environ['OF_IMAGE']\n"
NAME = "pilotlight-test-guest:1"
LIBRARY = next(
    Path(line.split()[-1])
    for line in Path("/proc/self/maps").read_text().splitlines()
    if line.endswith("/libm.so.6")
)
WITH_PYTHON = "pilotlight-test-python:1"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), *support.dockerd_needed()]


@pytest.fixture(scope="module")
def guest() -> Iterator[str]:
    variables = "ENV OF_IMAGE=yes LD_PRELOAD=/nowhere.so LD_AUDIT=/evil.so"
    changes = (variables, "VOLUME /data /tmp", 'ENTRYPOINT ["/bin/false"]')
    # An image can be as odd as it likes, and hostile, and process 1 is none of its business
    files: dict[str, Path | str] = {"data/kept": "x", "etc/ld.so.cache": "no cache"}
    files |= {"evil.so": LIBRARY, "etc/ld.so.preload": "/evil.so\n"}
    with images.imported(NAME, files, changes) as id_:
        yield id_


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(guest: str) -> AsyncIterator[Service]:
    with images.imported(WITH_PYTHON, images.of_python(), ("ENV OF_IMAGE=yes",)):
        listed = {"PILOTLIGHT_IMAGES": "pilotlight-test-*,localhost:9/**"}
        async with support.running(DOCKER, environment=listed) as running:
            yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def python(service: Service) -> Image:
    return (await look(service, WITH_PYTHON, "python"))[1]


async def look(service: Service, name: str, runtime: str) -> tuple[list[str], Image]:
    items = [item async for item in service.client.builds.image(name, runtime)]
    assert isinstance(items[-1], Image)
    return [item.line for item in items[:-1] if isinstance(item, Output)], items[-1]


async def deploy(service: Service, name: str, files: dict[str, str], image: Image, **config: object) -> None:
    await service.deploy(name, files, image=image, runtime=image.runtime, timeout=60.0, **config)


async def get(service: Service, name: str) -> tuple[int, str]:
    return await service.ask(name, method="GET")


async def test_a_native_program_runs_in_its_image_and_sees_nothing_of_the_host(
    service: Service, guest: str
) -> None:
    told, image = await look(service, NAME, "native")
    assert (told, image.id, image.runtime) == ([], guest, "native")
    await deploy(service, "guest", {"handler": SERVER}, image, handler="handler", env={"GREETING": "hello"})
    assert await get(service, "guest") == (200, f"{images.MARK}hello yes\n")


async def test_nothing_of_the_image_is_in_process_1(service: Service, guest: str) -> None:
    _, image = await look(service, NAME, "native")
    await deploy(service, "apart", {"handler": SERVER}, image, handler="handler")
    assert (await get(service, "apart"))[0] == 200
    with images.client() as api:
        containers = api.containers(filters={"ancestor": guest}, quiet=True)
        processes = [api.inspect_container(each["Id"])["State"]["Pid"] for each in containers]
    assert processes
    for process in processes:
        assert "/evil.so" not in Path(f"/proc/{process}/maps").read_text()
        environment = Path(f"/proc/{process}/environ").read_bytes()
        assert b"OF_IMAGE" not in environment
        assert b"LD_" not in environment


async def test_an_image_that_moved_changes_nothing_of_a_revision(service: Service) -> None:
    _, image = await look(service, NAME, "native")
    await deploy(service, "steady", {"handler": SERVER}, image, handler="handler")
    with images.imported("pilotlight-test-guest:2", {"marked": "another\n"}), images.client() as api:
        api.tag("pilotlight-test-guest:2", "pilotlight-test-guest", "1", force=True)
        try:
            assert (await get(service, "steady"))[1].startswith(images.MARK)
            assert (await look(service, NAME, "native"))[1].id != image.id
        finally:
            api.tag(image.id, "pilotlight-test-guest", "1", force=True)


async def test_python_functions_run_under_the_interpreter_of_their_image(
    service: Service, python: Image
) -> None:
    await deploy(service, "snake", {"handler.py": PRINTING}, python)
    assert await service.ask("snake") == (200, f"{images.MARK}yes")
    assert python.executable == "/usr/local/bin/python3"


async def test_node_functions_run_under_the_node_of_their_image(service: Service) -> None:
    files = images.of_node()
    if not files:
        pytest.skip("this machine has no Node")
    source = """
import { readFileSync } from "node:fs";
export default () => new Response(readFileSync("/marked", "utf8") + process.env.OF_IMAGE);
"""
    with images.imported("pilotlight-test-node:1", files, ("ENV OF_IMAGE=yes",)):
        _, image = await look(service, "pilotlight-test-node:1", "node")
        assert image.runtime.startswith("node")
        await deploy(service, "noded", {"handler.mjs": source}, image, handler="handler.mjs")
        assert await service.ask("noded") == (200, f"{images.MARK}yes")
        await service.client.control.delete_function("noded")


async def test_a_build_runs_in_the_image(service: Service, guest: str) -> None:
    job = Job(runtime="native", image=guest, command=("/bin/cat", "/marked"), mounts=(), folder="/tmp")
    items = [item async for item in service.client.builds.run(job)]
    assert items == [Output(images.MARK.rstrip()), Exit(0)]


async def test_an_image_without_the_language_is_refused(service: Service) -> None:
    with pytest.raises(Problem) as caught:
        await look(service, NAME, "python")
    assert caught.value.kind == "build-failed"
    assert "no `python3`" in caught.value.detail


async def test_another_version_of_the_language_than_is_wanted_is_refused(
    service: Service, python: Image
) -> None:
    with pytest.raises(Problem) as caught:
        await look(service, WITH_PYTHON, "python3.1")
    assert caught.value.kind == "build-failed"


async def test_an_image_that_cannot_be_had_is_named_with_the_remedy(service: Service) -> None:
    with pytest.raises(Problem) as caught:
        await look(service, "localhost:9/pilotlight-test/nowhere:1", "native")
    assert caught.value.kind == "build-failed"
    assert "can't be pulled" in caught.value.detail
    assert "docker load" in caught.value.detail


async def test_an_image_for_another_architecture_is_refused_with_the_remedy(service: Service) -> None:
    name, other = "pilotlight-test-foreign:1", "arm64" if platform.machine() == "x86_64" else "amd64"
    with images.client() as api:
        api.load_image(saved(name, other))
        try:
            with pytest.raises(Problem) as caught:
                await look(service, name, "native")
        finally:
            images.remove(api, name)
    assert caught.value.kind == "build-failed"
    assert f"is for linux/{other}, and this machine is linux/" in caught.value.detail
    assert "docker pull --platform linux/" in caught.value.detail


def saved(name: str, architecture: str) -> bytes:
    """Return an image without content, for an architecture, as `docker save` writes it."""
    layer = images.packed({})
    parts = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    config = json.dumps({"architecture": architecture, "os": "linux", "rootfs": parts}).encode()
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"manifest.json": json.dumps(manifest).encode(), "config.json": config, "layer.tar": layer}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


async def test_an_image_that_is_gone_is_told_in_the_answer(service: Service) -> None:
    with images.imported("pilotlight-test-lost:1", {"lost": "x"}):
        _, image = await look(service, "pilotlight-test-lost:1", "native")
    revision = await service.prepare(
        "lost", {"handler": SERVER}, handler="handler", runtime="native", image=image
    )
    with pytest.raises(Problem) as caught:
        await service.client.builds.verify(revision)
    assert caught.value.kind == "init-failed"
    assert "not on this machine any more" in caught.value.detail


async def test_a_link_among_the_dependencies_leads_nowhere_outside(service: Service, python: Image) -> None:
    folder = Path(tempfile.mkdtemp(dir=service.data.builds))
    (folder / "node_modules").symlink_to("/etc")
    service.give(folder)
    await service.client.builds.seal_layer("dependencies-link", str(folder), "linked")
    source = "import os\ndef handle(request):\n    return str(os.listdir('/node_modules'))\n"
    await deploy(service, "linked", {"handler.py": source}, python, dependencies="dependencies-link")
    assert await get(service, "linked") == (200, "[]")


async def test_what_the_image_declares_as_a_volume_can_be_read_and_not_written(service: Service) -> None:
    _, image = await look(service, NAME, "native")
    command = ("/bin/sh", "-c", "touch /tmp/new; cat /data/kept; echo; touch /data/new || echo refused")
    job = Job(runtime="native", image=image.id, command=command, mounts=(), folder="/tmp")
    lines = [item.line async for item in service.client.builds.run(job) if isinstance(item, Output)]
    assert lines[0] == "x"
    assert lines[-1] == "refused"


async def test_without_docker_an_image_is_refused_with_the_engine_that_it_needs() -> None:
    async with support.running(0) as embedded:
        with pytest.raises(Problem) as caught:
            await look(embedded, NAME, "native")
        assert "--engine docker" in caught.value.detail
        image = Image(name=NAME, id="sha256:0", runtime="native", executable="")
        revision = await embedded.prepare(
            "stranded", {"handler": SERVER}, handler="handler", runtime="native", image=image
        )
        with pytest.raises(Problem) as caught:
            await embedded.client.builds.verify(revision)
        assert "--engine docker" in caught.value.detail
