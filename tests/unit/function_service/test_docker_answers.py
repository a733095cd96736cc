"""What the docker engine makes of what dockerd says, without one."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from function_service.engines import choosing
from function_service.engines.docker import guarantees, image
from function_service.engines.docker.daemon import Daemon
from function_service.engines.embedded.guarantees import inspect
from pilotlight.problems import Problem

INFORMATION: dict[str, Any] = {
    "ServerVersion": "20.10.24",
    "DefaultRuntime": "runc",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "MemoryLimit": True,
    "CpuCfsQuota": True,
    "PidsLimit": True,
}


def test_auto_is_the_embedded_engine_on_linux_and_docker_elsewhere(monkeypatch):
    assert choosing.choose("auto")[0] == "embedded"
    monkeypatch.setattr(sys, "platform", "darwin")
    name, reason = choosing.choose("auto")
    assert (name, "Linux only" in reason) == ("docker", True)
    assert choosing.choose("embedded")[0] == "embedded"


def test_it_promises_what_the_embedded_engine_does():
    promised = guarantees.of(INFORMATION, "")
    assert all(each.kept for each in promised)
    assert {each.name for each in inspect()} <= {each.name for each in promised}


@pytest.mark.parametrize(
    ("lack", "name"),
    [
        ({"MemoryLimit": False}, "memory limit of each function"),
        ({"PidsLimit": False}, "limit of processes and threads"),
        ({"SecurityOptions": None}, "filter of system calls"),
    ],
)
def test_what_dockerd_lacks_is_not_promised(lack, name):
    (broken,) = (each for each in guarantees.of(INFORMATION | lack, "") if not each.kept)
    assert broken.name == name
    assert broken.reason
    assert broken.remedy


def test_users_fit_into_a_user_namespace_where_dockerd_has_one():
    assert guarantees.users(INFORMATION).first > 65536
    within = guarantees.users(INFORMATION | {"SecurityOptions": ["name=seccomp", "name=userns"]})
    assert within.first + within.count < 65536


def test_equal_content_makes_an_image_of_the_same_name():
    (first, data), (second, _) = image._pack(), image._pack()
    assert first == second
    assert b"pilotlight_shim.py" in data


async def test_where_dockerd_hangs_up_it_is_said_which_one_does_not_answer(monkeypatch, tmp_path):
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    daemon = Daemon("label")
    async with await asyncio.start_unix_server(hang_up, tmp_path / "docker.sock"):
        try:
            with pytest.raises(Problem, match=f"{tmp_path}/docker.sock does not answer: .*closed") as caught:
                await daemon.information()
        finally:
            await daemon.close()
    assert (caught.value.kind, caught.value.retry_after) == ("no-capacity", 2)


async def test_a_newer_docker_is_asked_in_the_oldest_way_that_it_understands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/v1.44/info":
            return web.json_response(INFORMATION)
        if request.path.startswith("/v1.44/"):
            return web.Response(text=request.path)
        said = (
            "client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade your "
            "client to a newer version"
        )
        return web.json_response({"message": said}, status=400)

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "docker.sock")).start()
    daemon = Daemon("label")
    try:
        assert await daemon.information() == INFORMATION
        async with daemon.session() as session, session.get("images/x/get") as streamed:
            assert await streamed.text() == "/v1.44/images/x/get"
    finally:
        await daemon.close()
        await runner.cleanup()
