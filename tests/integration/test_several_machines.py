"""Two machines on one Redis: what is pushed to one is called on both, and its limits hold for both together."""

import http.client
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import machines
from tests.support.apps import Answer, App, call
from tests.support.platform import Up, family, kill, left_behind, wait_until
from tests.support.redis_server import RedisServer

HANDLER = """
import os, time
def handle(request):
    time.sleep(float(request.query.get("for", "0")))
    return {"instance": os.environ.get("HOSTNAME", ""), "secret": os.environ.get("WORD"), "body": len(request.body)}
"""
MANIFEST = '[functions.{0}]\npath = "."\naccess = "public"\nmax_instances = 2\ntimeout = "20s"\n{1}'


def files(name: str, more: str = "") -> dict[str, str]:
    return {"handler.py": HANDLER, "pilotlight.toml": MANIFEST.format(name, more)}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with machines.redis() as server:
        yield server


@pytest.fixture(scope="module")
def both(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, Up]]:
    folder = tmp_path_factory.mktemp("machines")
    with machines.machine(folder, "one", redis) as one, machines.machine(folder, "two", redis) as two:
        yield one, two
        for up in (one, two):
            processes = family(up.process.pid)
            assert up.stop() == 0
            assert left_behind(up.data, processes) == []


def instances(up: Up) -> list[dict]:
    """Return the instances on all machines, as one of them tells."""
    return json.loads(up.run("ps", "--json").stdout)


def code_layers(up: Up) -> set[str]:
    return {each.name for each in up.data.layers.iterdir() if each.name.endswith(".note")}


def home(answer: Answer, *machines: Up) -> Up:
    """Return the machine on which a call was made."""
    instance = answer.headers["pilotlight-instance"]
    (found,) = (up for up in machines if any(instance in each.name for each in up.data.instances.iterdir()))
    return found


def test_what_is_pushed_to_one_machine_is_called_on_another(both: tuple[Up, Up]) -> None:
    one, two = both
    App.make(one, "pushed", files("pushed")).deploy()
    answer = call(two, "pushed")
    assert answer.status == 200, answer.text
    assert answer.headers["pilotlight-start"] in ("cold", "warm")


def test_every_change_is_over_when_all_machines_answer_by_it(both: tuple[Up, Up]) -> None:
    for number in range(10):
        App.make(both[number % 2], f"fresh-{number}", files(f"fresh-{number}")).deploy()
        assert [call(up, f"fresh-{number}").status for up in both] == [200, 200]
        assert both[number // 2 % 2].run("delete", f"fresh-{number}").returncode == 0
        assert [call(up, f"fresh-{number}").status for up in both] == [404, 404]


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "frozen"])
def test_a_change_waits_three_seconds_at_most_for_a_machine_that_does_not_answer(
    tmp_path: Path, dead: bool
) -> None:
    with (
        machines.redis() as server,
        machines.machine(tmp_path, "one", server) as one,
        machines.machine(tmp_path, "two", server) as two,
    ):
        App.make(one, "known", files("known")).deploy()
        assert call(two, "known").status == 200
        everything = family(two.process.pid)
        if dead:
            kill(*everything)
        else:
            for each in everything:
                os.kill(each.pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            assert one.run("delete", "known").returncode == 0
            assert time.monotonic() - began < 10  # the command has to start, too
            assert call(one, "known").status == 404
            assert "action=not-heard machine=127.0.0.1:" in one.log.read_text()
        finally:
            for each in everything if not dead else ():
                os.kill(each.pid, signal.SIGCONT)


def test_a_function_is_at_home_on_one_machine_and_the_other_passes_its_calls_on(both: tuple[Up, Up]) -> None:
    one, _ = both
    App.make(one, "limited", files("limited")).deploy()
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: call(both[n % 2], "limited?for=0.2"), range(12)))
    assert [a.status for a in answers] == [200] * 12, [a.text for a in answers if a.status != 200]
    for up in both:
        found = [each for each in instances(up) if each["function"] == "limited"]
        assert 1 <= len(found) <= 2
    assert len({a.headers["pilotlight-instance"] for a in answers}) <= 2


def test_a_minimum_is_kept_by_one_machine_for_both_and_zero_is_zero_on_both(both: tuple[Up, Up]) -> None:
    one, two = both
    App.make(one, "ready", files("ready", "min_instances = 1\n")).deploy()

    def found() -> list[dict]:
        return [each for each in instances(two) if each["function"] == "ready"]

    wait_until(found)
    assert [call(up, "ready").headers["pilotlight-start"] for up in both] == ["warm", "warm"]
    (only,) = found()
    for up in both:
        with up.platform.request("DELETE", "/api/v1/functions/ready/instances") as answer:
            assert answer.status == 200, answer.read()
    wait_until(lambda: [each["id"] for each in found()] not in ([], [only["id"]]))  # it is kept anew
    assert len(found()) == 1


def test_bodies_and_their_answers_stream_through_another_machine(both: tuple[Up, Up]) -> None:
    one, two = both
    App.make(one, "bodies", files("bodies")).deploy()
    for up in (one, two):
        answer = call(up, "bodies", method="POST", body=b"x" * 3_000_000)
        assert (answer.status, json.loads(answer.body)["body"]) == (200, 3_000_000)


def test_pushes_to_any_machine_reach_the_one_with_the_repositories(both: tuple[Up, Up]) -> None:
    one, two = both
    app = App.make(two, "elsewhere", files("elsewhere"))
    app.deploy()
    assert (one.data.repositories / "elsewhere.git").is_dir()
    assert not (two.data.repositories / "elsewhere.git").exists()
    assert [call(up, "elsewhere").status for up in both] == [200, 200]


def test_strangers_get_nothing_that_is_for_machines(both: tuple[Up, Up]) -> None:
    one, _ = both
    App.make(one, "private", files("private")).deploy()
    layer = next(each.name for each in one.data.layers.iterdir() if each.is_dir())
    for path in (
        f"/machines/layers/{layer}",
        "/machines/builder/git/private.git/info/refs",
        "/machines/editions/1",
    ):
        with one.platform.request("GET", path) as answer:
            assert answer.status == 404
    address = one.flags[one.flags.index("--machine-address") + 1]
    with pytest.raises((OSError, http.client.HTTPException)):
        urllib.request.urlopen(f"http://{address}/healthz", timeout=30)


def test_a_changed_secret_and_a_new_key_hold_on_every_machine(both: tuple[Up, Up]) -> None:
    one, two = both
    assert one.run("secrets", "set", "WORD", stdin="first").returncode == 0
    App.make(one, "secretive", files("secretive", 'secrets = ["WORD"]\n')).deploy()
    assert two.run("secrets", "set", "WORD", stdin="second").returncode == 0
    with two.platform.request("DELETE", "/api/v1/functions/secretive/instances") as answer:
        assert answer.status == 200, answer.read()
    assert json.loads(call(one, "secretive").body)["secret"] == "second"
    made = two.run("keys", "create", "visitor", "--scope", "deploy", "--json")
    assert made.returncode == 0, made.stderr
    visitor = one.platform
    visitor.key = json.loads(made.stdout)["key"]
    with visitor.request("GET", "/api/v1/functions") as answer:
        assert answer.status == 200, answer.read()


def test_a_function_that_is_deleted_on_one_machine_is_gone_on_the_other(both: tuple[Up, Up]) -> None:
    one, two = both
    App.make(one, "doomed", files("doomed")).deploy()
    assert call(two, "doomed").status == 200
    assert two.run("delete", "doomed").returncode == 0
    assert call(one, "doomed").status == 404
    wait_until(lambda: not [each for each in instances(one) if each["function"] == "doomed"])


def test_when_a_machine_dies_as_a_whole_the_other_takes_its_functions(tmp_path: Path) -> None:
    with (
        machines.redis() as server,
        machines.machine(tmp_path, "one", server) as one,
        machines.machine(tmp_path, "two", server) as two,
    ):
        App.make(one, "survivor", files("survivor")).deploy()
        assert call(two, "survivor").status == 200
        wait_until(lambda: code_layers(one) == code_layers(two))
        dying = home(call(two, "survivor"), one, two)
        kill(*family(dying.process.pid))
        answer = call(two if dying is one else one, "survivor")  # it waits until the claim has lapsed
        assert answer.status == 200, answer.text
        assert answer.headers["pilotlight-start"] == "cold"
