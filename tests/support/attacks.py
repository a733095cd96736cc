"""What attacks from within sandboxes have in common: probes that run what they are sent, and their tools."""

import asyncio
import contextlib
from pathlib import Path

from function_service.contract import Image
from tests.support import service as support
from tests.support.service import Service

HELLO = {"handler.py": "def handle(request):\n    return 'hello'\n"}

NODE_PROBE = """
import { createRequire } from "node:module";
const require = createRequire(import.meta.url);
export default async function (request) {
  const AsyncFunction = (async () => {}).constructor;
  const result = await new AsyncFunction("require", await request.text())(require);
  return Response.json(result ?? null);
}
"""

NATIVE_PROBE = """#!/usr/bin/python3 -I
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        scope = {}
        exec(self.rfile.read(int(self.headers["Content-Length"])).decode(), scope)
        body = json.dumps(scope["result"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

TRY = """
import errno, os
def attempt(action, *arguments):
    try:
        answer = action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return repr(answer)
def look(path):
    return os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
def links(process="self"):
    found = []
    for name in os.listdir(f"/proc/{process}/fd"):
        try:
            found.append(os.readlink(f"/proc/{process}/fd/{name}"))
        except OSError:
            pass
    return found
"""
"""For the start of an attack: `attempt` returns the name of the error, or the answer."""


_NO_SNAPSHOT = """
from pilotlight import before_snapshot
@before_snapshot
def refuse():
    raise RuntimeError("however slow this machine is")
"""


async def deploy_probes(service: Service) -> None:
    """Make the probes live: `probe` is forked from a zygote, `native` and `node` are programs of their own."""
    await service.deploy("probe", {"handler.py": _NO_SNAPSHOT + support.PROBE})
    await service.deploy("native", {"server": NATIVE_PROBE}, runtime="native", handler="server")
    for name in await service.client.builds.runtimes():
        if name.startswith("node"):
            await service.deploy("node", {"handler.mjs": NODE_PROBE}, runtime=name, handler="handler.mjs")


async def deploy_guest(service: Service, name: str, image: str) -> None:
    """Make a probe live that runs in an image, under the Python in there."""
    found = [item async for item in service.client.builds.image(image, "python")][-1]
    assert isinstance(found, Image)
    await service.deploy(name, {"handler.py": support.PROBE}, runtime=found.runtime, image=found)


async def deploy_snapshot(
    service: Service, name: str, source: str = support.PROBE, timeout: float = 10.0
) -> None:
    """Make a function live whose import is so slow that it gets a snapshot, and wait for that.

    On an engine without snapshots it is just a function.
    """
    await service.deploy(name, {"handler.py": f"import time\ntime.sleep(0.05)\n{source}"}, timeout=timeout)
    if not service.forks:
        return  # it is started like any other
    for _ in range(3):
        lease = await service.acquire(name)
        await service.client.invocations.stop(lease.id, "the next one shall be started anew")
    async with asyncio.timeout(60):
        while True:
            status = next(f for f in await service.client.control.functions() if f.name == name)
            if status.snapshot or status.snapshot_refusal:
                return
            await asyncio.sleep(0.02)


async def kept(service: Service, name: str) -> bool:
    """Tell whether this machine lets a guarantee be kept; if not, it must be said why and what helps."""
    guarantee = next(g for g in await service.client.control.guarantees() if g.name == name)
    assert guarantee.kept or (guarantee.reason and guarantee.remedy)
    return guarantee.kept


def as_root(service: Service) -> bool:
    """Tell whether the service runs as root."""
    return service.data.root.stat().st_uid == 0


def processes_with(text: bytes, file: str) -> list[str]:
    """Return the processes of this machine in whose `cmdline` or `environ` a text stands."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in (process / file).read_bytes():
                found.append(process.name)
    return found


async def appeared(text: bytes, number: int) -> None:
    """Wait until so many processes have a text in their command line, which the kernel shows a moment after exec."""
    async with asyncio.timeout(60):
        while len(processes_with(text, "cmdline")) != number:
            await asyncio.sleep(0.01)


def kinds(links: list[str]) -> set[str]:
    """Return what descriptors lead to: files by their path, the others by their kind."""
    return {link.split(":")[0] for link in links}


def folder(service: Service, name: str) -> Path:
    """Make a folder for a build."""
    path = service.data.builds / name
    path.mkdir()
    service.give(path)
    return path
