"""The way in for debuggers: there on a platform for debugging, and nowhere else; on each engine."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from function_service.contract import FunctionStatus
from function_service.engines.base import StartError
from function_service.engines.embedded.debug import Door
from runtimes.declaration import Debugger
from tests.support import service as support
from tests.support.attacks import HELLO, NATIVE_PROBE, NODE_PROBE
from tests.support.service import Service
from tests.support.shells import shell

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=support.engines(support.GVISOR), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with contextlib.AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PILOTLIGHT_DEBUG", "yes")
            running = await stack.enter_async_context(support.running(request.param))
        yield running


async def said(way: Path, request: bytes, until: bytes) -> bytes:
    """Send something to a debugger, and return what it says up to some text."""
    reader, writer = await asyncio.open_unix_connection(way)
    writer.write(request)
    async with asyncio.timeout(20):
        answer = await reader.readuntil(until)
    writer.close()
    return answer


async def started(service: Service, name: str) -> Path:
    """Wait for the instance that there always is, and return the way in."""
    async with asyncio.timeout(30):
        while not (found := await service.client.control.instances(name)):
            await asyncio.sleep(0.02)
    return service.data.instances / f"{found[0].id}.debug"


async def status(service: Service, name: str) -> FunctionStatus:
    return next(each for each in await service.client.control.functions() if each.name == name)


async def test_debugpy_answers_in_the_sandbox_of_a_function_that_is_confined_as_ever(
    service: Service,
) -> None:
    await service.deploy("python", {"handler.py": support.PROBE})
    way = await started(service, "python")
    body = json.dumps({"seq": 1, "type": "request", "command": "initialize", "arguments": {"adapterID": "x"}})
    request = f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    assert b'"success": true' in await said(way, request, b"supportsSetVariable")
    source = """
text = open("/proc/self/status").read()
result = [line.split()[1] for line in text.splitlines() if line.startswith(("CapEff", "CapPrm", "Seccomp:"))]
import os
result += [os.path.exists("/root"), sorted(os.listdir("/tools")), "/tools" in __import__("sys").path]
"""
    assert await service.probe("python", source) == ["0" * 16, "0" * 16, "2", False, ["debugpy"], False]


async def test_nodes_inspector_answers(service: Service) -> None:
    nodes = [name for name in await service.client.builds.runtimes() if name.startswith("node")]
    for name in nodes:
        await service.deploy(name, {"handler.mjs": NODE_PROBE}, runtime=name, handler="handler.mjs")
        request = b"GET /json/list HTTP/1.1\r\nHost: 127.0.0.1:9229\r\n\r\n"
        assert b"webSocketDebuggerUrl" in await said(await started(service, name), request, b"]")


async def test_a_function_has_time_and_room_and_one_instance(service: Service) -> None:
    await service.deploy("roomy", HELLO, timeout=0.5, memory=64 << 20, max_instances=20)
    config = (await status(service, "roomy")).config
    assert (config.timeout, config.memory, config.min_instances, config.max_instances) == (
        3600.0,
        1 << 30,
        1,
        1,
    )
    await service.deploy("native", {"server": NATIVE_PROBE}, runtime="native", handler="server", timeout=0.5)
    assert (await status(service, "native")).config.timeout == 0.5  # there is no debugger for it


async def test_the_way_in_ends_with_its_instance(service: Service) -> None:
    await service.deploy("brief", HELLO)
    way = await started(service, "brief")
    assert way.exists()
    await service.client.control.delete_function("brief")
    assert not way.exists()


async def test_shells_have_none(service: Service) -> None:
    await service.deploy("plain", HELLO)
    async with shell(service, "plain") as opened:
        assert not Path(opened.opened.socket).with_suffix(".debug").exists()


@pytest.mark.parametrize("mode", support.engines())
async def test_there_is_no_way_in_on_any_other_platform(mode: support.Mode) -> None:
    async with support.running(mode) as ordinary:
        await ordinary.deploy("closed", {"handler.py": support.PROBE}, min_instances=1)
        way = await started(ordinary, "closed")
        assert way.with_suffix(".sock").exists()
        assert not list(ordinary.data.instances.glob("*.debug"))
        source = (
            "import os\nresult = [os.listdir('/tools'), len([p for p in os.listdir('/proc') if p.isdigit()])]"
        )
        assert await ordinary.probe("closed", source) == [[], 1]


async def test_a_debugger_that_is_not_installed_is_named_with_its_remedy(tmp_path: Path) -> None:
    debugger = Debugger(5678, lambda _port, _folder: {}, lambda: None, "pip install it")
    with pytest.raises(StartError, match="pip install it"):
        Door(debugger, tmp_path / "x.sock")
    assert list(tmp_path.iterdir()) == []
