"""`pilotlight up`: starting, stopping, dying, and what may not be left."""

import asyncio
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from cli.client import Platform
from cli.commands.up import wait_until_served
from cli.serve import SERVICES
from pilotlight.privileges import SERVICE_UID
from pilotlight.problems import Problem
from tests.support.platform import (
    PROGRAM,
    READY,
    Up,
    family,
    free_port,
    kill,
    left_behind,
    service,
    wait_until,
)


@pytest.fixture
def up(tmp_path):
    with Up(tmp_path / "platform") as up:
        yield up


def is_ready(up: Up) -> bool:
    with up.platform.request("GET", "/readyz") as answer:
        return answer.status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_and_leaves_the_data_folder_alone(up, number):
    processes = family(up.process.pid)
    assert len(processes) > len(SERVICES)
    assert up.stop(number) == 0
    assert left_behind(up.data, processes) == []
    assert not up.data.platform.exists()
    assert up.process.stdout.read() == "", "stdout has the one line only"


def test_the_ready_line_names_an_address_that_answers(up):
    assert up.url.startswith("http://127.0.0.1:")
    assert is_ready(up)


def test_killing_up_leaves_nothing_and_a_new_one_takes_over(up):
    processes = family(up.process.pid)
    up.process.kill()
    up.process.wait()
    assert up.start().startswith(READY)  # it waits until the services of the former one have ended
    assert [each for each in processes if each.lives] == []
    processes = family(up.process.pid)
    assert up.stop() == 0
    assert left_behind(up.data, processes) == []


def test_killing_every_process_at_once_leaves_nothing_after_a_restart(up):
    processes = family(up.process.pid)
    kill(*processes)
    up.process.wait()
    assert up.start().startswith(READY)
    assert [each for each in processes if each.lives] == []
    processes = family(up.process.pid)
    assert up.stop() == 0
    assert left_behind(up.data, processes) == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_dies_is_started_again(up, name):
    former = service(up, name)
    os.kill(former.pid, signal.SIGKILL)
    wait_until(lambda: not former.lives)
    wait_until(lambda: [each for each in family(up.process.pid) if f"cli.main {name} " in each.command])
    wait_until(lambda: is_ready(up))
    assert f"{name} has died (killed by SIGKILL)" in up.log.read_text()


def test_a_service_that_served_for_a_while_is_started_at_once_each_time_that_it_dies(up):
    for _ in range(3):
        former = service(up, "baas")
        os.kill(former.pid, signal.SIGKILL)
        wait_until(lambda former=former: not former.lives)
        wait_until(lambda: [each for each in family(up.process.pid) if "cli.main baas " in each.command])
        wait_until(lambda: is_ready(up))
    assert up.log.read_text().count("baas has died (killed by SIGKILL); starting it again in 0.1 s") == 3


def test_a_second_signal_kills_at_once(up):
    processes = family(up.process.pid)
    hung = service(up, "builder")
    os.kill(hung.pid, signal.SIGSTOP)
    up.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM: stopping" in up.log.read_text())
    up.process.send_signal(signal.SIGTERM)
    up.process.wait(10)
    assert [each for each in processes if each.lives] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_only_the_function_service_keeps_the_privileges_of_root(up):
    users = {}
    for name in SERVICES:
        status = Path(f"/proc/{service(up, name).pid}/status").read_text().splitlines()
        users[name] = {
            int(number) for line in status if line.startswith("Uid:") for number in line.split()[1:]
        }
    assert users == {name: {0 if name == "function-service" else SERVICE_UID} for name in SERVICES}


def refused(*flags: str) -> str:
    """Run `up`, which must fail, and return what it says."""
    done = subprocess.run([*PROGRAM, "up", *flags], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


def test_a_data_folder_in_use_is_refused_and_the_owner_named(up):
    said = refused("--data", str(up.data.root), "--port", "0")
    assert f"is in use by another running platform (process {up.process.pid})" in said
    assert "--data" in said


def test_a_port_in_use_is_refused_and_its_user_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("--data", str(tmp_path / "data"), "--port", str(port))
    assert f"Port {port} is in use by process {os.getpid()} (" in said
    assert "--port" in said


def test_a_data_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    said = refused("--data", str(tmp_path / "file" / "data"), "--port", "0")
    assert "can't be used" in said
    assert "--data" in said


def test_a_bad_setting_names_flag_value_and_what_was_expected():
    assert "--port: 'many' is not a port; use 0 to 65535" in refused("--port", "many")


def test_a_service_that_cannot_start_ends_up_with_its_reason(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "registry.db").write_text("this is no database, whatever its name says " * 50)
    said = refused("--data", str(data), "--port", str(free_port()))
    assert "registry.db" in said
    assert "The function-service service did not start; its reason stands above." in said


def test_a_platform_that_is_stopped_before_it_answers_waits_no_longer():
    stopping = asyncio.Event()
    stopping.set()
    with pytest.raises(Problem, match="stopped before it was ready"):
        wait_until_served(Platform(f"http://127.0.0.1:{free_port()}", None), stopping)
