"""Two machines on one Redis, each service a process of its own, killed in turn while clients call and write.

What holds for each kill: a write that was answered is there afterwards, no call is made twice, and no call fails
but those that were under way at that moment. A client that finds a gateway gone asks the other one, as a load
balancer does.
"""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import machines
from tests.support.apps import App
from tests.support.load import COUNTS, client, documents
from tests.support.machines import Machine
from tests.support.platform import wait_until
from tests.support.redis_server import RedisServer

SOON = 0.5  # seconds until all that a killed process has brought about is over
SERVICES = ("function-service", "baas", "gateway")


@dataclass(frozen=True)
class Asked:
    """What became of a request."""

    begun: float
    ended: float
    status: int = 0  # 0: the connection was lost
    error: str = ""
    body: bytes = b""


class Client(threading.Thread):
    """Asks one thing after the other, each over a connection of its own, of whichever gateway is there."""

    def __init__(self, urls: list[str], key: str, kind: str, name: str) -> None:
        super().__init__()
        self._places = [url.removeprefix("http://") for url in urls]
        self._key = key
        self._kind = kind
        self._name = name
        self.asked: dict[str, Asked] = {}
        self.stopping = False

    def run(self) -> None:
        number = 0
        while not self.stopping:
            text = f"{self._name}-{number:05}"
            number += 1
            if self._kind == "call":
                self.asked[text] = self._ask("POST", "/function/counts", text.encode())
            else:
                path = f"/data/v1/written/{text}?app=counts"
                self.asked[text] = self._ask("PUT", path, json.dumps(text).encode())

    def _ask(self, method: str, path: str, body: bytes) -> Asked:
        begun = time.monotonic()
        while True:
            connection = http.client.HTTPConnection(self._places[0], timeout=60)
            try:
                connection.connect()
            except OSError:
                self._places.append(self._places.pop(0))
                time.sleep(0.01)  # both may be away for a moment
                continue
            with contextlib.closing(connection):
                try:
                    connection.request(method, path, body, {"Authorization": f"Bearer {self._key}"})
                    answer = connection.getresponse()
                    content = answer.read()
                except (OSError, http.client.HTTPException):
                    # The kernel takes connections for a moment longer than the gateway lives
                    self._places.append(self._places.pop(0))
                    return Asked(begun, time.monotonic())
                error = answer.getheader("Pilotlight-Error", "")
                return Asked(begun, time.monotonic(), answer.status, error, content)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with machines.redis() as server:
        yield server


@pytest.fixture
def both(redis: RedisServer, tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    one = Machine(machines.machine(tmp_path, "one", redis), (*SERVICES, "builder"))
    two = Machine(machines.machine(tmp_path, "two", redis), SERVICES)
    running: list[Machine] = []
    try:
        for machine in (one, two):
            machine.start()
            running.append(machine)
        for machine in (one, two):
            wait_until(machine.ready)
        yield one, two
    finally:
        for machine in running:
            machine.stop()


def deploy(machine: Machine) -> None:
    made = App(machine.up, machine.up.folder / "apps" / "counts")
    made.folder.mkdir(parents=True)
    made.git("init", "--quiet", "--initial-branch=main")
    made.commit(COUNTS)
    key = machine.up.data.admin_key.read_text().strip()
    place = machine.up.url.replace("http://", f"http://x:{key}@")
    done = made.git("push", f"{place}/git/counts.git", "main")
    assert done.returncode == 0, done.stderr


def layers(machine: Machine) -> set[str]:
    return {each.name for each in machine.up.data.layers.iterdir() if each.name.endswith(".note")}


KILLS: dict[str, Callable[[Machine], None]] = {
    "gateway": lambda machine: machine.kill("gateway"),
    "function-service": lambda machine: machine.kill("function-service"),
    "baas": lambda machine: machine.kill("baas"),
    "machine": lambda machine: machine.kill_all(),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", KILLS)
def test_any_of_two_can_be_killed_under_load(both: tuple[Machine, Machine], what: str) -> None:
    one, two = both
    deploy(two)  # by way of the gateway of the one without a builder
    wait_until(lambda: layers(one) and layers(one) == layers(two))
    urls = [machine.up.url for machine in both]
    key = one.up.data.admin_key.read_text().strip()
    clients = [
        Client([*urls[number % 2 :], *urls[: number % 2]], key, kind, f"{kind}{number}")
        for number, kind in enumerate(("call", "call", "call", "call", "write", "write"))
    ]

    def enough(since: float) -> bool:
        return all(
            sum(each.status in (200, 201) and each.begun >= since for each in list(asking.asked.values()))
            >= 20
            for asking in clients
        )

    for asking in clients:
        asking.start()
    killed: list[tuple[float, float]] = []
    served = [0.0]  # since when all serve again
    try:
        for machine in both:
            wait_until(lambda: enough(served[-1]), 120)
            began = time.monotonic()
            KILLS[what](machine)
            killed.append((began, time.monotonic() + SOON))
            if what == "machine":  # the other one goes on alone
                wait_until(lambda: enough(killed[-1][1]), 120)
                machine.start()
            wait_until(machine.ready, 120)
            served.append(time.monotonic())
        wait_until(lambda: enough(served[-1]), 120)
    finally:
        for asking in clients:
            asking.stopping = True
        for asking in clients:
            asking.join(120)
    asked = {name: each for asking in clients for name, each in asking.asked.items()}
    failed = {name: each for name, each in asked.items() if each.status not in (200, 201)}
    unexpected = {
        name: each
        for name, each in failed.items()
        if not any(each.begun <= end and each.ended >= begin for begin, end in killed)
    }
    assert unexpected == {}
    assert len(failed) <= len(killed) * len(clients), "no client has more than one request under way"
    with client(urls[1], key) as asking:
        ran, written = documents(asking, "ran", "counts"), documents(asking, "written", "counts")
    assert all(count == 1 for count in ran.values()), "a call was made twice"
    lost = [name for name, each in asked.items() if each.status == 201 and name not in written]
    assert lost == []
    answered = [
        name for name, each in asked.items() if each.status == 200 and json.loads(each.body).get("count") == 1
    ]
    assert [name for name in answered if name not in ran] == []


def ask(machine: Machine, name: str) -> tuple[int, bytes]:
    """Call the function once, by way of one machine."""
    with machine.up_platform().request("POST", "/function/counts", name.encode()) as answer:
        return answer.status, answer.read()


@pytest.mark.timeout(600)
def test_a_function_service_that_stays_away_is_stood_in_for(both: tuple[Machine, Machine]) -> None:
    one, two = both
    deploy(one)
    wait_until(lambda: layers(one) and layers(one) == layers(two))
    assert ask(one, "first")[0] == 200
    one.end("function-service")
    status, body = ask(one, "second")  # its instance has ended with it, and the claim has not lapsed yet
    assert status == 200 or b"ended during the call" in body, body
    assert ask(one, "third")[0] == 200
    assert ask(two, "fourth")[0] == 200


@pytest.mark.timeout(600)
def test_without_redis_what_runs_goes_on_and_all_is_well_when_it_is_back(
    redis: RedisServer, both: tuple[Machine, Machine]
) -> None:
    one, two = both
    deploy(one)
    wait_until(lambda: layers(one) and layers(one) == layers(two))
    for machine in both:  # the gateway of the second one learns where the function is at home
        assert ask(machine, "before")[0] == 200
    redis.kill()
    away = time.monotonic()
    while time.monotonic() < away + 10:  # longer than claims last
        for machine in both:
            status, body = ask(machine, f"without-{time.monotonic():.3f}")
            assert status == 200, body
            assert json.loads(body)["count"] is None  # what it needs of the data API is away
    redis.start(port=str(redis.port))
    for machine in both:
        wait_until(lambda machine=machine: json.loads(ask(machine, "after")[1]).get("count"))
