"""SIGUSR2: the platform goes on as the program that is on the disk now, while clients call and write."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apps import App, call
from tests.support.load import Client, Load, Outcome, client
from tests.support.platform import Process, Up, family, left_behind, service, wait_until

SERVICES = ("function-service", "baas", "builder", "gateway")
COUNTS = {
    "handler.py": (
        "import json, os, time, urllib.error, urllib.request\n\n\ndef handle(request):\n"
        "    time.sleep(float(request.query.get('seconds', 0)))\n"
        "    url = f\"{os.environ['PILOTLIGHT_DATA_URL']}/ran/{request.body.decode()}/increment\"\n"
        "    try:\n"
        "        with urllib.request.urlopen(url, data=b'', timeout=20) as answer:\n"
        "            return {'count': json.load(answer)['value']}\n"
        "    except urllib.error.HTTPError as refused:\n"
        "        return refused.code, refused.read()\n"
    ),
    "pilotlight.toml": '[functions.counts]\npath = "."\nmax_instances = 6\ntimeout = "30s"\n',
}


def over_a_new_connection(up: Up, method: str, path: str, body: bytes = b"") -> Outcome:
    key = up.platform.key
    assert key is not None
    with client(up.url, key) as asking:
        return asking.ask(method, path, body)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with Up(tmp_path / "platform") as up:
        App.make(up, "counts", COUNTS).deploy()
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []


def upgraded(up: Up, times: int = 1) -> bool:
    said = up.log.read_text()
    assert "All goes on as it was" not in said, said
    return said.count("restarted: builder, function-service, baas, gateway") == times


def present(up: Up) -> dict[str, Process]:
    return {name: service(up, name) for name in SERVICES}


def test_an_upgrade_under_load_fails_no_call_and_no_write(up: Up) -> None:
    def calls(_: Client, name: str) -> Outcome:
        return over_a_new_connection(up, "POST", "/function/counts", name.encode())

    def long_calls(_: Client, name: str) -> Outcome:
        return over_a_new_connection(up, "POST", "/function/counts?seconds=1.5", name.encode())

    def writes(_: Client, name: str) -> Outcome:
        return over_a_new_connection(up, "PUT", f"/data/v1/written/{name}?app=counts", b'"it"')

    before = present(up)
    key = up.platform.key
    assert key is not None
    with Load(up.url, key, [calls, calls, long_calls, writes]) as load:
        load.wait(2)
        for times in (1, 2):
            up.process.send_signal(signal.SIGUSR2)
            wait_until(lambda: upgraded(up, times), within=120)  # noqa: B023
        load.wait(2, since=time.monotonic())
    failed = [(name, str(each)) for name, each in load.all() if not each.well]
    assert failed == []
    counted = [json.loads(each.body)["count"] for part in load.outcomes[:3] for each in part.values()]
    assert set(counted) == {1}, "a call was made twice"
    with client(up.url, key) as asking:
        assert all(
            asking.ask("GET", f"/data/v1/written/{name}?app=counts").body == b'"it"'
            for name in list(load.outcomes[3])[-50:]
        )
    after = present(up)
    assert {name for name in SERVICES if before[name] == after[name] or before[name].lives} == set()


def with_something_before_it(up: Up, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start the platform anew; return a module, not there yet, that its program loads before all else."""
    before = up.folder / "before" / "sitecustomize.py"
    before.parent.mkdir()
    up.stop()
    monkeypatch.setenv("PYTHONPATH", str(before.parent), prepend=os.pathsep)
    up.start()
    return before


def test_a_program_that_does_not_load_changes_nothing(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = with_something_before_it(up, monkeypatch)
    before = present(up)
    broken.write_text("raise SystemExit('it is half installed')\n")
    up.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: "All goes on as it was" in up.log.read_text())
    assert "it is half installed" in up.log.read_text()
    broken.unlink()
    assert present(up) == before
    assert call(up, "counts", method="POST", body=b"still").status == 200


def test_one_that_never_loads_holds_up_no_stop(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = with_something_before_it(up, monkeypatch)
    endless.write_text(f"open({str(endless.parent / 'begun')!r}, 'w').close()\nimport time\ntime.sleep(60)\n")
    up.process.send_signal(signal.SIGUSR2)
    wait_until((endless.parent / "begun").exists)
    processes = family(up.process.pid)
    began = time.monotonic()
    assert up.stop() == 0
    assert time.monotonic() - began < 30
    assert left_behind(up.data, processes) == []
