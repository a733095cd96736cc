"""`pilotlight up --gateways 2`: one port, leases of their own, one set of metrics."""

import contextlib
import http.client
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.apps import App
from tests.support.platform import Process, Up, family, left_behind

HELLO = {"handler.py": "def handle(request):\n    return 'hello'\n"}
ONE = {
    **HELLO,
    "pilotlight.toml": '[functions.one]\npath = "."\naccess = "public"\nmax_instances = 1\ntimeout = "20s"\n',
}
CALLS_ONE = {
    "handler.py": (
        "import os, urllib.request\n\n\ndef handle(request):\n"
        "    url = os.environ['PILOTLIGHT_DATA_URL'] + '/function/one'\n"
        "    return urllib.request.urlopen(url).read()\n"
    ),
    "pilotlight.toml": '[functions.caller]\npath = "."\naccess = "public"\ntimeout = "20s"\n',
}


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("several") / "platform", ("--gateways", "2")) as up:
        App.make(up, "one", ONE).deploy()
        App.make(up, "caller", CALLS_ONE).deploy()
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []


def gateways(up: Up) -> dict[int, Process]:
    """Return the gateways by their numbers."""
    found = {}
    for each in family(up.process.pid):
        if match := re.search(r"cli\.main gateway .*--number (\d+)", each.command):
            found[int(match[1])] = each
    return found


def wait_until(condition, within: float = 60.0):
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return value


def connect(up: Up) -> http.client.HTTPConnection:
    parts = urlsplit(up.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection.connect()
    return connection


def holder(up: Up, connection: http.client.HTTPConnection) -> int:
    """Return the number of the gateway that has accepted a connection."""
    port = connection.sock.getsockname()[1]

    def find() -> int | None:
        for number, process in gateways(up).items():
            if (inodes := sockets_of(process.pid)) and peer_inode(port) in inodes:
                return number
        return None

    return wait_until(find)


def sockets_of(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if (target := str(entry.readlink())).startswith("socket:["):
                found.add(target[8:-1])
    return found


def peer_inode(port: int) -> str | None:
    """Return the inode of the gateway's end of a connection from a port of this process."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(f":{port:04X}") and fields[9] != "0":
            return fields[9]
    return None


@contextlib.contextmanager
def one_of_each(up: Up) -> Iterator[dict[int, http.client.HTTPConnection]]:
    """Connect to each gateway; the kernel hands connections out as it likes, so more may be made."""
    found: dict[int, http.client.HTTPConnection] = {}
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            connection = stack.enter_context(contextlib.closing(connect(up)))
            found.setdefault(holder(up, connection), connection)
            if len(found) == 2:
                break
        assert set(found) == {1, 2}, "500 connections went to one gateway"
        yield found


@pytest.fixture
def connections(up: Up) -> Iterator[dict[int, http.client.HTTPConnection]]:
    with one_of_each(up) as found:
        yield found


def call(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def counted(connection: http.client.HTTPConnection, name: str, **labels: str) -> float:
    status, text = call(connection, "/metrics")
    assert status == 200
    return sum(
        sample.value
        for each in text_string_to_metric_families(text.decode())
        for sample in each.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_a_function_with_one_instance_is_called_through_both(connections):
    for _ in range(10):
        for connection in connections.values():
            assert call(connection, "/function/one") == (200, b"hello")


def test_calls_through_both_at_once_all_find_the_only_instance(connections):
    answers: list[tuple[int, bytes]] = []

    def repeat(connection) -> None:
        answers.extend(call(connection, "/function/one") for _ in range(40))

    threads = [threading.Thread(target=repeat, args=(each,)) for each in connections.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {(200, b"hello")}
    assert len(answers) == 80


def test_the_metrics_that_either_tells_are_those_of_both(connections):
    def told() -> list[float]:
        labels = {"function": "one", "status": "200"}
        return [counted(each, "pilotlight_calls_total", **labels) for each in connections.values()]

    told()  # who is asked writes down what it has counted, for the others to read
    (before,) = set(told())
    for connection in connections.values():
        assert call(connection, "/function/one")[0] == 200
    told()
    assert set(told()) == {before + 2}


def test_functions_reach_functions_through_either(connections):
    for _ in range(4):
        for connection in connections.values():
            assert call(connection, "/function/caller") == (200, b"hello")


def test_one_that_is_killed_comes_back_and_what_it_held_is_free(up, connections):
    name, labels = "pilotlight_calls_total", {"function": "one"}
    assert call(connections[2], "/function/one") == (200, b"hello")
    before = counted(connections[2], name, **labels)
    former = gateways(up)[2]
    os.kill(former.pid, signal.SIGKILL)
    assert call(connections[1], "/function/one") == (200, b"hello")
    wait_until(lambda: counted(connections[1], name, **labels) >= before + 1)
    wait_until(lambda: not former.lives and 2 in gateways(up))
    assert "gateway/2 has died (killed by SIGKILL)" in up.log.read_text()
    with one_of_each(up) as again:
        assert call(again[2], "/function/one") == (200, b"hello")
        assert counted(again[2], name, **labels) >= before + 2


def test_control_and_logs_work_through_either(up, connections):
    key = {"Authorization": f"Bearer {up.data.admin_key.read_text().strip()}"}
    for connection in connections.values():
        connection.request("GET", "/api/v1/functions/one/logs?tail=10", headers=key)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
