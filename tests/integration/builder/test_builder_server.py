"""The service as `pilotlight builder` starts it."""

import asyncio
import subprocess

import aiohttp

from builder.detect import Languages
from builder.package_index import PackageIndex
from builder.server import PACKAGE_INDEX, Host, Machine, prepare, serve
from pilotlight import sockets
from pilotlight.datafolder import DataFolder
from pilotlight.settings import Settings


async def test_it_serves_before_the_function_service_is_there_and_stops_when_told(tmp_path):
    data = DataFolder(tmp_path / "a folder with a name that is too long for a socket" / ("x" * 80))
    data.prepare()
    stopping, ready = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(10):
        task = asyncio.create_task(
            serve(Settings(data=data.root), data, host=prepare(), stopping=stopping, ready=ready.set)
        )
        await ready.wait()
        assert data.socket("builder").exists()
        connector = aiohttp.UnixConnector(sockets.address(data.socket("builder")))
        async with aiohttp.ClientSession("http://builder", connector=connector) as session:
            for path in ("/git/new.git/info/refs?service=git-receive-pack", "/nothing"):
                async with session.get(path) as response:
                    assert response.headers["Server"] == "Pilotlight"
        stopping.set()
        await task
    assert not data.socket("builder").exists()
    assert not data.socket("builder-hooks").exists()


async def test_what_a_former_builder_left_is_cleared(tmp_path):
    data = DataFolder(tmp_path)
    data.prepare()
    (data.builds / "old/x").mkdir(parents=True)
    (data.repositories / ".new-1").mkdir()
    (data.repositories / ".gone-2").mkdir()
    subprocess.run(["git", "init", "-q", "--bare", data.repositories / "a.git"], check=True)
    (data.repositories / "a.git/objects/incoming-1").mkdir()
    (data.repositories / "a.git/objects/tmp_objdir-incoming-1").mkdir()
    stopping = asyncio.Event()
    async with asyncio.timeout(10):
        await serve(Settings(data=data.root), data, host=prepare(), stopping=stopping, ready=stopping.set)
    assert list(data.builds.iterdir()) == []
    assert sorted(p.name for p in data.repositories.glob("*") if p.name not in (".hooks", ".empty.git")) == [
        "a.git"
    ]
    assert list((data.repositories / "a.git/objects").glob("*incoming*")) == []


async def test_only_what_the_engine_has_too_can_be_deployed():
    class Engine:
        async def runtimes(self) -> list[str]:
            return ["native"]

    languages = await Machine(Engine(), prepare().languages).languages()
    assert {i.name for found in languages.interpreters.values() for i in found} == {"native"}
    assert "python" in languages.runtimes


async def test_the_certificates_of_an_index_are_there_while_it_serves(tmp_path):
    data = DataFolder(tmp_path)
    data.prepare()
    host = Host(PackageIndex({}, (), (), {"PIP_CERT": b"a certificate"}), Languages({}, {}))
    stopping, seen = asyncio.Event(), []

    def ready():
        seen.append((data.run / PACKAGE_INDEX / "PIP_CERT.pem").read_bytes())
        stopping.set()

    async with asyncio.timeout(10):
        await serve(Settings(data=data.root), data, host=host, stopping=stopping, ready=ready)
    assert seen == [b"a certificate"]
    assert not (data.run / PACKAGE_INDEX).exists()
