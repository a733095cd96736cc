"""A function service that is killed takes no call with it: what gateways hold lives on until its calls have ended."""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from function_service.contract import Job, Lease, Output
from pilotlight import trees
from runtimes.declaration import load_all
from tests.support import service as support
from tests.support.apps import App, call
from tests.support.attacks import deploy_probes, deploy_snapshot, processes_with
from tests.support.groups import control_groups
from tests.support.platform import READY, Process, Up, family, left_behind
from tests.support.service import Service


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


# The service alone, as root and as an ordinary user


@dataclass
class Place:
    """A data folder on which one service comes after the other, and what they hold on to as `up` lets them."""

    user: int
    root: Path
    ours: socket.socket
    anchor: socket.socket

    def service(self) -> contextlib.AbstractAsyncContextManager[Service]:
        return support.running(self.user, self.root, self.anchor)


@pytest.fixture(params=support.modes())
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="pilotlight-test-"))  # where every user may come to
    ours, anchor = socket.socketpair()
    with ours, anchor:
        yield Place(int(request.param), root, ours, anchor)
    trees.remove(root)


async def killed(service: Service) -> None:
    service.process.kill()
    await service.process.wait()


def sleeps(seconds: str) -> str:
    """Return what a probe runs to leave a child behind in a session of its own."""
    command = f"['sleep', '{seconds}']"
    return f"import subprocess\nsubprocess.Popen({command}, start_new_session=True)\nresult = 1"


def sleeping(seconds: str) -> list[str]:
    return processes_with(f"sleep\0{seconds}\0".encode(), "cmdline")


async def ask(lease: Lease, source: str) -> str:
    status, text = await support.request(lease, source)
    assert status == 200, text
    return text


def gone(place: Place, lease: Lease) -> bool:
    return not Path(lease.socket).exists() and not control_groups(lease.instance)


async def test_what_is_held_answers_while_the_service_is_away_and_ends_when_it_is_given_back(
    place: Place,
) -> None:
    async with place.service() as service:
        await deploy_probes(service)
        await deploy_snapshot(service, "restored")
        leases = {name: await service.acquire(name) for name in ("probe", "native", "restored")}
        for number, lease in enumerate(leases.values()):
            assert await ask(lease, sleeps(f"7700.{number}")) == "1"
        idle = await service.acquire("probe")
        await ask(idle, sleeps("7701"))
        await service.client.invocations.release(idle.id)
        job = Job(runtime="native", command=("/bin/sh", "-c", "echo begun; sleep 7702"), mounts=())
        build = service.client.builds.run(job)
        assert await anext(build) == Output("begun")
        await until(lambda: sleeping("7702"))
        await killed(service)
        # Nobody holds these: they end at once
        await until(lambda: not sleeping("7701") and not sleeping("7702"))
        for lease in leases.values():
            assert await ask(lease, "print('said meanwhile', flush=True)\nresult = 2") == "2"
    async with place.service() as service:
        for lease in leases.values():
            assert await ask(lease, "print('said later', flush=True)\nresult = 3") == "3"
        await service.client.invocations.claim([lease.id for lease in leases.values()])
        known = await service.client.control.instances(None)
        assert {each.id: each.state for each in known if each.state == "draining"} == {
            lease.id: "draining" for lease in leases.values()
        }
        for number, (name, lease) in enumerate(leases.items()):
            # A new call gets a new instance beside it
            assert await service.ask(name, "result = 4") == (200, "4")
            assert len(sleeping(f"7700.{number}")) == 1
            await service.client.invocations.release(lease.id)
            assert not sleeping(f"7700.{number}")
            assert gone(place, lease)
            lines = [each async for each in service.client.control.logs(name, 100, False)]
            said = [each.line for each in lines if each.instance == lease.id]
            assert said == ["said meanwhile", "said later"]
        await until(lambda: len(doors(service)) == len(zygotes(service)))
    assert not doors(service)
    assert not control_groups(f"{service.data.label}*")


def doors(service: Service) -> list[Path]:
    return list(service.data.zygotes.iterdir())


def zygotes(service: Service) -> list[str]:
    """Return the first processes of the zygotes that a service has now."""
    return [
        each.command
        for each in family(service.process.pid)
        if "function_service.engines.embedded.zygote" in each.command
        and Path(f"/proc/{each.pid}/comm").read_text() == "zygote-parent\n"
    ]


async def test_a_stop_after_the_restart_returns_when_every_process_is_dead(place: Place) -> None:
    async with place.service() as service:
        await deploy_probes(service)
        await deploy_snapshot(service, "restored")
        leases = [await service.acquire(name) for name in ("probe", "native", "restored")]
        for lease in leases:
            await ask(lease, sleeps("7710"))
        await until(lambda: len(sleeping("7710")) == len(leases))
        await killed(service)
    async with place.service() as service:
        for left, lease in zip((2, 1, 0), leases, strict=True):
            await service.client.invocations.stop(lease.id, "a call ran too long")
            assert len(sleeping("7710")) == left
            assert gone(place, lease)
            kind, detail, _ = await service.client.invocations.diagnose(lease.id)
            assert (kind, detail) == ("crashed", "The instance was stopped: a call ran too long.")


async def test_one_that_ends_by_itself_is_diagnosed(place: Place) -> None:
    async with place.service() as service:
        await deploy_probes(service)
        leases = [await service.acquire("probe") for _ in range(2)]
        await killed(service)
        with pytest.raises((EOFError, ConnectionError)):
            await ask(leases[0], "import os\nos._exit(5)")
    async with place.service() as service:
        kind, _, _ = await service.client.invocations.diagnose(leases[0].id)
        assert kind == "crashed"
        with pytest.raises((EOFError, ConnectionError)):
            await ask(leases[1], "import os\nos._exit(7)")
        kind, detail, _ = await service.client.invocations.diagnose(leases[1].id)
        assert (kind, detail) == ("crashed", "The function's process exited with code 7.")


async def test_two_services_that_are_killed_in_a_row_leave_the_instances_of_both(place: Place) -> None:
    async with place.service() as service:
        await deploy_probes(service)
        first = await service.acquire("probe")
        await killed(service)
    async with place.service() as service:
        second = await service.acquire("probe")
        await killed(service)
        for lease in (first, second):
            assert await ask(lease, "result = 5") == "5"
    async with place.service() as service:
        for lease in (first, second):
            assert await ask(lease, sleeps("7720")) == "1"
        await service.client.invocations.claim([first.id, second.id])
    assert not sleeping("7720"), "a service that is told to stop ends them"
    assert not control_groups(f"{service.data.label}*")


async def test_all_end_at_once_when_the_platform_is_gone(place: Place) -> None:
    async with place.service() as service:
        await deploy_probes(service)
        await deploy_snapshot(service, "restored")
        leases = [await service.acquire(name) for name in ("probe", "native", "restored")]
        for lease in leases:
            await ask(lease, sleeps("7730"))
        before = family(service.process.pid)
        await killed(service)
        assert len(sleeping("7730")) == 3
        place.ours.close()
        await until(lambda: not sleeping("7730"))
        await until(lambda: not [each for each in before if each.lives])


async def test_what_others_are_given_is_in_no_instance_that_is_forked_later(place: Place) -> None:
    """Zygotes hold descriptors of what they keep: those of one function must not reach another."""
    links = "import os\nresult = sorted(os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in range(3, 1000) if os.path.islink(f'/proc/self/fd/{n}'))"
    async with place.service() as service:
        await deploy_probes(service)
        await service.deploy("other", {"handler.py": support.PROBE}, egress=("example.org:443",))
        alone = await service.probe("probe", links)
        leases = [await service.acquire("other") for _ in range(5)]
        lease = await service.acquire("probe")  # that which was idle
        await service.client.invocations.stop(lease.id, "the next one shall be forked now")
        assert await service.probe("probe", links) == alone
        assert leases


# A whole platform under load

COUNT = """
import os, time, urllib.request
def count(name):
    url = f"{os.environ['PILOTLIGHT_DATA_URL']}/counts/{name}/increment"
    return urllib.request.urlopen(urllib.request.Request(url, method="POST")).read()
"""
SLOW = f"""{COUNT}
import subprocess
def handle(request):
    subprocess.Popen(["sleep", "7740"], start_new_session=True)
    time.sleep(30)
"""
HANDLER = f"""{COUNT}
def handle(request):
    print("x" * 1000, flush=True)
    time.sleep(0.02)
    return count(os.environ["PILOTLIGHT_FUNCTION"])
"""
PLAIN = f"""{HANDLER}
from pilotlight import before_snapshot
@before_snapshot
def refuse():
    raise RuntimeError("it is forked from the zygote")
"""
NODE = """
export default async function () {
  console.log("x".repeat(1000));
  await new Promise(resolve => setTimeout(resolve, 20));
  const answer = await fetch(process.env.PILOTLIGHT_DATA_URL + "/counts/node/increment", { method: "POST" });
  if (!answer.ok) throw new Error(await answer.text());
  return new Response(await answer.text());
}
"""
NATIVE = f"""#!/usr/bin/python3 -I
import http.server
{COUNT}
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        print("x" * 1000, flush=True)
        time.sleep(0.02)
        body = count("native")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
# As many as this machine has languages for
NAMES = ("plain", "restored", "native", *(("node",) if load_all()["node"].find() else ()))
FILES = {
    "plain/handler.py": PLAIN,
    "restored/handler.py": f"import time\ntime.sleep(0.05)\n{HANDLER}",
    **({"node/handler.mjs": NODE} if "node" in NAMES else {}),
    "native/server": NATIVE,
    "slow/handler.py": SLOW,
    "pilotlight.toml": "\n".join([
        *(f'[functions.{name}]\naccess = "public"\ntimeout = "60s"' for name in NAMES if name != "native"),
        '[functions.native]\naccess = "public"\ntimeout = "60s"\nruntime = "native"\nhandler = "server"',
        '[functions.slow]\naccess = "public"\ntimeout = "3s"',
    ]),
}  # fmt: skip


LEFT = {
    "handler.py": "import subprocess\ndef handle(request):\n    subprocess.Popen(['sleep', '7741'])\n    return 'left'\n",
    "pilotlight.toml": '[functions.left]\npath = "."\naccess = "public"\n',
}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("restarts") / "platform") as up:
        App.make(up, "app", FILES).deploy()
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []


def function_service(up: Up) -> Process | None:
    found = (each for each in family(up.process.pid) if "cli.main function-service " in each.command)
    return next(found, None)


async def kill_function_service(up: Up) -> None:
    """Kill it, and wait until the next one is there."""
    former = function_service(up)
    assert former is not None
    os.kill(former.pid, signal.SIGKILL)
    count = up.log.read_text().count("function-service is ready")
    await until(lambda: up.log.read_text().count("function-service is ready") > count, 60)


@dataclass
class Load:
    """Callers of all functions, until they are told to stop."""

    up: Up
    answered: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep_calling(self, client: aiohttp.ClientSession, name: str) -> None:
        while not self.stopping.is_set():
            async with client.get(f"{self.up.url}/function/{name}") as answer:
                text = await answer.text()
                if answer.status == 200:
                    self.answered[name] = self.answered.get(name, 0) + 1
                else:
                    self.failed.append(f"{name}: {answer.status} {text}")

    async def more(self, calls: int) -> None:
        """Wait until each function has answered so many more."""
        before = dict(self.answered)
        await until(
            lambda: (
                self.failed
                or all(self.answered.get(name, 0) >= before.get(name, 0) + calls for name in NAMES)
            ),
            60,
        )


def has_snapshot(up: Up, name: str) -> bool:
    functions = up.platform.get("/api/v1/functions")["functions"]
    return next(bool(each["snapshot"]) for each in functions if each["name"] == name)


def draining(up: Up) -> list[dict]:
    instances = up.platform.get("/api/v1/instances")["instances"]
    return [each for each in instances if each["state"] == "draining"]


async def test_no_call_fails_while_the_function_service_is_killed_again_and_again(up: Up) -> None:
    load = Load(up)
    async with aiohttp.ClientSession() as client, asyncio.TaskGroup() as callers:
        for name in NAMES:
            for _ in range(2):
                callers.create_task(load.keep_calling(client, name))
        await load.more(5)
        await until(lambda: has_snapshot(up, "restored"))
        with up.platform.request("DELETE", "/api/v1/functions/restored/instances") as answer:
            assert answer.status == 200  # those that were not made of it
        await load.more(3)
        for _ in range(2):
            await kill_function_service(up)
            await load.more(3)
        load.stopping.set()
    assert load.failed == []
    for name, count in load.answered.items():
        document = up.platform.get(f"/data/v1/counts/{name}?app=app")
        assert document == count, "each call was made once"
    await until(lambda: not draining(up))


async def test_a_call_that_runs_out_of_time_meanwhile_is_dead_before_its_504(up: Up) -> None:
    async with aiohttp.ClientSession() as client:
        calling = asyncio.create_task(client.get(f"{up.url}/function/slow"))
        await until(lambda: sleeping("7740"))
        await asyncio.sleep(2.5)  # its time ends while nobody is there who could end it
        restarting = asyncio.create_task(kill_function_service(up))
        async with await calling as answer:
            assert not sleeping("7740")
            assert answer.status == 504
            assert answer.headers["Pilotlight-Error"] == "timeout"
        await restarting


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "kill -TERM"])
async def test_when_up_ends_meanwhile_nothing_is_left(tmp_path: Path, number: int) -> None:
    with Up(tmp_path / "platform") as up:
        App.make(up, "left", LEFT).deploy()
        assert call(up, "left").text == "left"
        await until(lambda: sleeping("7741"))
        processes = family(up.process.pid)
        former = function_service(up)
        assert former is not None
        os.kill(former.pid, signal.SIGKILL)
        await until(lambda: not former.lives)
        assert sleeping("7741"), "a gateway holds it"
        up.process.send_signal(number)
        await asyncio.to_thread(up.process.wait, 30)
        if number == signal.SIGTERM:
            assert not sleeping("7741")
        await until(lambda: not sleeping("7741") and not [each for each in processes if each.lives])
        assert (await asyncio.to_thread(up.start)).startswith(READY)
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []
