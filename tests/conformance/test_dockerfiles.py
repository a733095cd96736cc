"""Functions that bring a Dockerfile along: built by a real dockerd within limits, run like any other."""

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from function_service.contract import Image, ImageBuild, Output
from function_service.engines.docker import litter
from function_service.engines.docker.permitted import BUILT
from pilotlight.problems import Problem
from tests.support import images
from tests.support import service as support
from tests.support.service import DOCKER, Service

BASE = "pilotlight-test-base:1"
NOTHING = {"nothing": ""}
SERVING = 'CMD exec busybox httpd -f -p "127.0.0.1:$PORT" -h /\n'
SERVER = f"""FROM {BASE}
ENV GREETING=hello TOLD=image
WORKDIR /srv/in
COPY . /files/
RUN echo built by a step && id -u > uid
ENTRYPOINT ["/bin/sh", "/files/start"]
CMD ["an argument"]
"""
START = """mkdir /tmp/www
{ cat uid; pwd; echo "$1 $GREETING $TOLD"; id -u; ls /runtime /run /function /files; touch /x; } >/tmp/www/index.html 2>&1
echo started
exec busybox httpd -f -p "127.0.0.1:$PORT" -h /tmp/www
"""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), *support.dockerd_needed()]


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with images.imported(BASE, {}) as id_:
        yield id_


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(base: str) -> AsyncIterator[Service]:
    label = ""
    try:
        allowed = {"PILOTLIGHT_DOCKERFILES": "yes", "PILOTLIGHT_IMAGES": "pilotlight-test-*,localhost:9/**"}
        async with support.running(DOCKER, environment=allowed) as running:
            label = running.data.label
            yield running
    finally:
        with images.client() as api:  # what functions need outlives the service, and this one comes no more
            wanted = {"label": f"{litter.LABEL}={label}"}
            for each in api.images(name=BUILT, filters=dict(wanted)):
                for tag in each["RepoTags"]:
                    images.remove(api, tag)
            assert api.images(all=True, filters=wanted) == []


def labelled(service: Service) -> dict[str, str]:
    return {"label": f"{litter.LABEL}={service.data.label}"}


def order(service: Service, files: dict[str, str | bytes | Path], **limits: Any) -> ImageBuild:
    folder = Path(tempfile.mkdtemp(dir=service.data.builds))
    total = hashlib.sha256()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.read_bytes() if isinstance(content, Path) else content
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        path.chmod(0o755 if isinstance(content, Path) else 0o644)
        total.update(repr((name, data)).encode())
    service.give(folder)
    usual: dict[str, Any] = {"memory": 256 << 20, "cpu": 2.0, "timeout": 120.0, "growth": 64 << 20}
    return ImageBuild(folder=str(folder), digest=total.hexdigest()[:40], **usual | limits)


async def build(service: Service, wanted: ImageBuild) -> tuple[list[str], Image]:
    try:
        items = [item async for item in service.client.builds.build_image(wanted)]
    finally:
        shutil.rmtree(wanted.folder)
    assert isinstance(items[-1], Image)
    return [item.line for item in items[:-1] if isinstance(item, Output)], items[-1]


async def deploy(service: Service, name: str, image: Image, **config: Any) -> None:
    values = {"handler": "Dockerfile", "runtime": "native", "timeout": 90.0, "image": image} | config
    await service.deploy(name, NOTHING, **values)


async def get(service: Service, name: str) -> tuple[int, str]:
    lease = await service.acquire(name, 90.0)  # a busy machine takes its time for a container
    try:
        return await support.request(lease, method="GET")
    finally:
        await service.client.invocations.release(lease.id)


async def fails(service: Service, wanted: ImageBuild) -> Problem:
    with pytest.raises(Problem) as caught:
        await build(service, wanted)
    with images.client() as api:
        assert api.images(filters={**labelled(service), "dangling": True}) == []
        running = api.containers(all=True, filters=labelled(service))
        assert [each for each in running if "pilotlight" not in each["Labels"]] == []
    return caught.value


async def test_it_is_built_and_runs_what_it_says_and_sees_nothing_of_the_host(service: Service) -> None:
    lines, image = await build(service, order(service, {"Dockerfile": SERVER, "start": START}))
    assert "built by a step" in lines
    await deploy(service, "whole", image, env={"GREETING": "good morning"})
    status, text = await get(service, "whole")
    told = text.splitlines()
    assert (status, told[:3]) == (200, ["0", "/srv/in", "an argument good morning image"])
    assert int(told[3]) > 65536
    assert "ls: /function: No such file or directory" in told
    assert [line for line in told if "touch" in line and "Read-only" in line]
    assert {"Dockerfile", "start"} <= set(told)
    assert not {"host", "inside", "control.sock"} & set(told)
    logs = [line.line async for line in service.client.control.logs("whole", 10, False)]
    assert "started" in logs


async def test_what_is_equal_is_built_once(service: Service) -> None:
    files = {"Dockerfile": f"FROM {BASE}\nRUN echo once\n{SERVING}"}
    lines, first = await build(service, order(service, files))
    assert "once" in lines
    assert await build(service, order(service, files)) == ([], first)


async def test_a_static_program_needs_nothing_else(service: Service) -> None:
    recipe = 'FROM scratch\nCOPY busybox /\nENTRYPOINT ["/busybox", "sh", "-c"]\nCMD ["%s"]\n'
    command = (
        "/busybox mkdir /tmp/w && echo static >/tmp/w/index.html && exec /busybox httpd -f -p $PORT -h /tmp/w"
    )
    files: dict[str, str | bytes | Path] = {"Dockerfile": recipe % command, "busybox": Path(images.BUSYBOX)}
    _, image = await build(service, order(service, files))
    await deploy(service, "static", image)
    assert await get(service, "static") == (200, "static\n")


async def test_stages_share_files_and_leave_nothing(service: Service) -> None:
    recipe = f"FROM {BASE} AS made\nRUN mkdir /www && echo staged >/www/index.html\nFROM {BASE}\n"
    recipe += f"COPY --from=made /www /www\nCOPY --from={BASE} /marked /www/marked\n"
    _, image = await build(
        service, order(service, {"Dockerfile": recipe + SERVING.replace("-h /", "-h /www")})
    )
    await deploy(service, "staged", image)
    assert await get(service, "staged") == (200, "staged\n")
    with images.client() as api:
        assert api.images(filters={**labelled(service), "dangling": True}) == []


async def test_what_dockerignore_names_is_not_there(service: Service) -> None:
    files: dict[str, str | bytes | Path] = {
        "Dockerfile": f"FROM {BASE}\nCOPY . /all/\nRUN ls -a /all\n{SERVING}",
        ".dockerignore": "secret\n*.log\n!kept.log\n",
        "secret/key": "x",
        "some.log": "x",
        "kept.log": "x",
    }
    lines, _ = await build(service, order(service, files))
    assert {"kept.log", "Dockerfile"} <= set(lines)
    assert not {"secret", "some.log", ".dockerignore", ".pilotlight.dockerfile"} & set(lines)


async def test_a_step_has_no_network_and_root_is_that_of_its_container_alone(service: Service) -> None:
    recipe = f"FROM {BASE}\nRUN ls /sys/class/net && id -u && ! test -e /var/run/docker.sock\n{SERVING}"
    lines, _ = await build(service, order(service, {"Dockerfile": recipe}))
    begun = next(
        number for number, line in enumerate(lines) if "Running in" in line and "RUN" in lines[number - 1]
    )
    assert lines[begun + 1 : begun + 3] == ["lo", "0"]


async def test_a_step_that_fails_is_the_cause_and_nothing_is_left(service: Service) -> None:
    recipe = f"FROM {BASE}\nRUN echo fine\nRUN echo 'it is broken' && cat /nowhere\n{SERVING}"
    problem = await fails(service, order(service, {"Dockerfile": recipe}))
    assert problem.kind == "build-failed"
    assert "cat /nowhere" in problem.detail
    assert "non-zero code: 1" in problem.detail


@pytest.mark.parametrize(
    ("recipe", "limits", "why"),
    [
        (f"FROM {BASE}\nRUN sleep 600\n{SERVING}", {"timeout": 8.0}, "not done after 8 s"),
        (f"FROM {BASE}\nRUN cat /dev/zero >/zeros\n{SERVING}", {"growth": 8 << 20}, "more than 8 MB"),
        (f"FROM {BASE}\nCOPY . /all\n{SERVING}", {"growth": 1 << 20}, "more than 1 MB"),
        (f"FROM {BASE}\nRUN echo\n", {}, "neither CMD nor ENTRYPOINT"),
        ("FROM localhost:9/pilotlight-test/nowhere\nCMD x\n", {}, "can't be pulled"),
        (f"FROM {BASE}\nADD http://127.0.0.1:8080/ /x\n{SERVING}", {}, "Line 2: ADD"),
        ("FROM pilotlight-evil\nCMD x\n", {}, "image pilotlight-evil is not among those"),
        (f"ARG B=debian\nFROM {BASE}\nFROM $B:12\nCMD x\n", {}, "image debian:12 is not among those"),
        (f"FROM {BASE}\nCOPY --from=debian /etc /x\nCMD x\n", {}, "image debian is not among those"),
        (f"FROM {BASE}\nFROM 0\nCMD x\n", {}, "image 0 is not among those"),
        (f"FROM {BASE}\nCOPY ../../etc/shadow /x\n{SERVING}", {}, "shadow"),
    ],
)
async def test_what_goes_too_far_is_ended_and_nothing_is_left(
    service: Service, recipe: str, limits: dict[str, Any], why: str
) -> None:
    problem = await fails(
        service, order(service, {"Dockerfile": recipe, "large": b"\0" * (2 << 20)}, **limits)
    )
    assert problem.kind == "build-failed"
    assert why in problem.detail


async def test_memory_of_a_step_is_limited(service: Service) -> None:
    recipe = f"FROM {BASE}\nRUN x=x; while true; do x=$x$x; done\n{SERVING}"
    problem = await fails(service, order(service, {"Dockerfile": recipe}, memory=32 << 20))
    assert "137" in problem.detail


async def test_triggers_of_an_image_are_not_run(service: Service) -> None:
    with images.imported("pilotlight-test-trigger:1", {"x": ""}, ("ONBUILD ADD http://127.0.0.1/ /x",)):
        problem = await fails(
            service, order(service, {"Dockerfile": f"FROM pilotlight-test-trigger:1\n{SERVING}"})
        )
    assert "ONBUILD" in problem.detail


async def test_leaving_the_stream_ends_the_build(service: Service) -> None:
    wanted = order(service, {"Dockerfile": f"FROM {BASE}\nRUN echo begun && sleep 600\n{SERVING}"})
    stream = service.client.builds.build_image(wanted)
    async for item in stream:
        if item == Output("begun"):
            break
    await stream.aclose()  # type: ignore[attr-defined]
    await fails(service, order(service, {"Dockerfile": f"FROM {BASE}\nRUN cat /nowhere\n{SERVING}"}))


async def test_a_working_folder_that_cannot_be_entered_is_named(service: Service) -> None:
    recipe = f"FROM {BASE}\nRUN mkdir /private && busybox chmod 700 /private\nWORKDIR /private\n{SERVING}"
    _, image = await build(service, order(service, {"Dockerfile": recipe}))
    revision = await service.prepare("shut", NOTHING, handler="Dockerfile", runtime="native", image=image)
    with pytest.raises(Problem) as caught:
        await service.client.builds.verify(revision)
    assert "The working folder /private can't be entered: Permission denied" in caught.value.extra["logs"]


async def test_an_image_goes_with_the_last_revision_that_needs_it(service: Service) -> None:
    kept, gone = [
        (await build(service, order(service, {"Dockerfile": f"FROM {BASE}\nRUN echo {name}\n{SERVING}"})))[1]
        for name in ("kept", "gone")
    ]
    await deploy(service, "staying", kept, keep_alive=0.0)
    await deploy(service, "fleeting", gone)
    assert (await get(service, "fleeting"))[0] == 404  # its container is there still when it is deleted
    await service.client.control.delete_function("fleeting")
    async with asyncio.timeout(100):
        with images.client() as api:
            while [each for each in api.images(name=BUILT) if each["Id"] == gone.id]:
                await asyncio.sleep(0.2)
            assert api.inspect_image(kept.id)["RepoTags"]
    assert (await get(service, "staying"))[0] == 404


async def test_what_is_not_permitted_or_has_no_docker_is_refused_with_the_remedy(base: str) -> None:
    for mode, remedy in ((DOCKER, "--dockerfiles yes"), (0, "--engine docker")):
        async with support.running(mode) as service:
            with pytest.raises(Problem) as caught:
                await build(service, order(service, {"Dockerfile": f"FROM {BASE}\n{SERVING}"}))
        assert caught.value.kind == "invalid-request"
        assert remedy in caught.value.detail
