"""`kill -9` of each process of the platform in turn, while clients call and write in a closed loop.

Each test says what callers may see of it, in `MAY_SEE`: nothing else happens to any of them. What was
answered is true, and stays; what was not is reported with its cause; no call is made twice.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import redis_server
from tests.support.apps import App
from tests.support.load import COUNTS, Client, Load, Outcome, client, documents
from tests.support.platform import (
    READY,
    Process,
    Up,
    family,
    free_port,
    kill,
    left_behind,
    service,
    wait_until,
)
from tests.support.service import containers, dockerd_needed, kill_containers

LOST = ""  # the caller's connection ended before its answer was whole, or could not be made
MAY_SEE: dict[str, set[str]] = {
    "gateway": {LOST, "unavailable"},
    "function-service": set(),
    "baas": {"unavailable"},
    "builder": set(),
    "zygotes": {"crashed"},
    "instances": {"crashed"},
    "up": {LOST, "unavailable", "crashed"},
    "everything": {LOST, "unavailable", "crashed"},
}
"""The causes (Pilotlight-Error) of what may fail when these are killed, besides the pushes of a builder.

None of the function service: the instances outlive it, and calls that need a new one wait (test_restarts.py).
"""

SLOW_TO_START = "import time\ntime.sleep(1)\ndef handle(request):\n    return 'pushed'\n"


def calls(asking: Client, name: str) -> Outcome:
    outcome = asking.ask("POST", "/function/counts", name.encode())
    if outcome.well:
        assert json.loads(outcome.body)["name"] == name, str(outcome)
    return outcome


def writes(asking: Client, name: str) -> Outcome:
    outcome = asking.ask(
        "PUT", f"/data/v1/written/{name}?app=counts", json.dumps(name).encode(), {"If-None-Match": "*"}
    )
    # What was broken off may have been written all the same, but each name is asked for only once
    assert outcome.status != 412, name
    return outcome


def increments(asking: Client, name: str) -> Outcome:  # all of them add to one number
    return asking.ask("POST", "/data/v1/totals/all/increment?app=counts")


@contextlib.contextmanager
def platform(engine: str, kept_in: str, folder: Path) -> Iterator[Up]:
    flags = ("--port", str(free_port()), "--engine", engine)
    with redis_server.setting(kept_in) as store, Up(folder / "platform", (*flags, "--store", store)) as up:
        App.make(up, "counts", COUNTS).deploy()
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with platform("embedded", request.param, tmp_path_factory.mktemp("kills")) as up:
        yield up


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def docker_up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with platform("docker", request.param, tmp_path_factory.mktemp("kills")) as up:
        yield up
    assert containers(up.data.label) == set()


def kill_service(up: Up, name: str) -> None:
    """Kill a service, and wait for the next one: what that does about the first is a part of it."""

    def begun() -> int:
        return up.log.read_text().count(f"cli.supervisor: {name} is ready")

    before = begun()
    kill(service(up, name))
    wait_until(lambda: begun() > before)


def kill_builder(up: Up) -> None:
    """Kill the builder while it builds."""
    app = App.make(up, f"pushed-{time.monotonic_ns()}", {"handler.py": SLOW_TO_START})
    with subprocess.Popen(
        ["git", "push", "pilotlight", "main"],
        cwd=app.folder,
        env=up.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as push:
        for line in push.stdout:
            if "handler:" in line:  # the push tells which handler it builds
                break
        kill(service(up, "builder"))
        said = push.stdout.read()
        assert push.wait(60) != 0, said
    app.deploy()  # a new builder takes it, and nothing of the first attempt is in its way
    assert not list(up.data.builds.iterdir())


def kill_zygotes(up: Up) -> None:
    kill(*wait_until(lambda: zygotes(up)))  # a service that was killed just now boots new ones


def kill_instances(up: Up) -> None:
    """Kill what runs in sandboxes, those that wait in the pool too."""
    found = wait_until(lambda: zygotes(up))
    kill(*(each for zygote in found for each in family(zygote.pid) - {zygote}))


def zygotes(up: Up) -> set[Process]:
    """Return the processes that sandboxes are forked from; each is the child of one that watches over it."""
    parents = {each for each in family(service(up, "function-service").pid) if _name(each) == "zygote-parent"}
    return {each for parent in parents for each in family(parent.pid) if _parent(each) == parent.pid}


def _name(process: Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    except OSError:
        return ""


def _parent(process: Process) -> int:
    read = Process.read(process.pid)
    return 0 if read is None else read[1]


def kill_up(up: Up) -> None:
    processes = family(up.process.pid)
    up.process.kill()
    up.process.wait()
    assert up.start().startswith(READY)
    assert [each for each in processes if each.lives] == []


def kill_everything(up: Up) -> None:
    processes = family(up.process.pid)
    kill(*processes)
    up.process.wait()
    assert up.start().startswith(READY)
    wait_until(lambda: not any(each.lives for each in processes))  # the end of a process takes a moment


KILLS: dict[str, Callable[[Up], None]] = {
    "gateway": lambda up: kill_service(up, "gateway"),
    "function-service": lambda up: kill_service(up, "function-service"),
    "baas": lambda up: kill_service(up, "baas"),
    "builder": kill_builder,
    "zygotes": kill_zygotes,
    "instances": kill_instances,
    "up": kill_up,
    "everything": kill_everything,
}
KILLS_ON_DOCKER = {
    **{name: KILLS[name] for name in ("gateway", "function-service", "baas", "builder", "up", "everything")},
    "instances": lambda up: kill_containers(up.data.label),
}


@pytest.mark.parametrize("what", KILLS)
def test_killed_under_load_nothing_that_was_answered_is_lost_or_wrong(up: Up, what: str) -> None:
    drill(up, KILLS[what], f"{what}-", MAY_SEE[what])


@dockerd_needed()[0]
@pytest.mark.parametrize("what", KILLS_ON_DOCKER)
def test_on_docker_it_is_the_same_but_for_calls_that_ran_in_containers(docker_up: Up, what: str) -> None:
    may_see = (
        {"crashed"} if what == "function-service" else MAY_SEE[what]
    )  # containers end with their service
    drill(docker_up, KILLS_ON_DOCKER[what], f"{what}-", may_see)


def drill(up: Up, kill_it: Callable[[Up], None], prefix: str, may_see: set[str]) -> None:
    """Kill it under load, and look what has become of every request and write."""
    key = up.platform.key
    assert key is not None
    with client(up.url, key) as asking:
        before = documents(asking, "totals", "counts").get("all", 0)
    with Load(up.url, key, [calls, calls, calls, writes, increments], prefix) as load:
        load.wait(10)
        kill_it(up)
        load.wait(10, since=time.monotonic())
    failed = [each for _, each in load.all() if not each.well]
    unexpected = [each for each in failed if each.error not in may_see or (each.status and not each.error)]
    assert not unexpected, "\n".join(map(str, unexpected[:5]))

    with client(up.url, key) as asking:
        ran = documents(asking, "ran", "counts")
        written = documents(asking, "written", "counts")
        total = documents(asking, "totals", "counts")["all"] - before
    made: dict[str, Outcome] = {name: each for part in load.outcomes[:3] for name, each in part.items()}
    answered = [name for name, each in made.items() if each.well and json.loads(each.body)["count"]]
    assert all(ran[name] == 1 for name in answered)
    assert all(ran.get(name, 0) <= 1 for name in made), "a call was made twice"
    assert all(written[name] == name for name, each in load.outcomes[3].items() if each.well)
    added = list(load.outcomes[4].values())
    assert sum(each.well for each in added) <= total <= len(added)
