"""compose.yaml: two machines in containers of our image, one of which is killed, and what is left at the end."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support import compose as support
from tests.support.compose import NAMES, Compose
from tests.support.groups import control_groups
from tests.support.platform import wait_until

COUNTER = """
import json, os, urllib.request

def handle(request):
    url = os.environ["PILOTLIGHT_DATA_URL"] + "/data/v1/counts/all/increment"
    with urllib.request.urlopen(urllib.request.Request(url, b"", method="POST")) as answer:
        return json.dumps({"count": json.loads(answer.read())["value"], "user": os.getuid()})
"""
MANIFEST = '[functions.counter]\nmemory = "64MB"\ntimeout = "60s"\n'

pytestmark = support.needed()


@pytest.mark.timeout(900)  # it builds the image
def test_two_machines_are_one_platform_and_either_may_die(tmp_path: Path) -> None:
    with support.project(tmp_path) as compose:
        assert "PIP_" not in support.history()
        compose.run("up", "--detach")
        for name in NAMES:
            wait_until(lambda name=name: compose.ready(name))
            checks = json.loads(compose.run("exec", "-T", name, "pilotlight", "doctor", "--json"))
            assert [each for each in checks if each["needed"] and not each["kept"]] == []
        key = compose.run(
            *("exec", "-T", "one", "pilotlight", "keys", "create", "visitor"),
            *("--scope", "deploy", "--scope", "invoke"),
        ).strip()
        push(compose, "one", key, tmp_path / "counting")
        counts = [count(compose, name, key) for name in NAMES]
        assert counts[1] == counts[0] + 1

        dying, other = homes(compose, key)
        compose.run("kill", dying)
        assert not compose.ready(dying)
        counts.append(count(compose, other, key))
        compose.run("up", "--detach")
        wait_until(lambda: compose.ready(dying))
        counts.append(count(compose, dying, key))
        assert counts[-1] == counts[-2] + 1 > counts[1] + 1  # every write that was answered is there
        wait_until(lambda: compose.container(dying)["State"]["Health"]["Status"] == "healthy")

        compose.run("stop")
        containers = [compose.container(name) for name in (*NAMES, "redis", "keys")]
        assert [each["State"]["ExitCode"] for each in containers] == [0] * 4
        compose.run("down", "--volumes")
        assert compose.remains() == []
        assert [group for each in containers for group in control_groups(f"*{each['Id']}*")] == []
        mounts = Path("/proc/self/mountinfo").read_text()
        assert [line for line in mounts.splitlines() if compose.project in line] == []
        assert [each["Id"] for each in containers if each["Id"] in mounts] == []


def push(compose: Compose, name: str, key: str, folder: Path) -> None:
    """Push an app to a machine, as somebody without Pilotlight does it."""
    files = {"counter/handler.py": COUNTER, "pilotlight.toml": MANIFEST}
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    header = f"http.extraHeader=Authorization: Bearer {key}"
    for words in (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "--all"),
        ("-c", "user.name=Test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message=Count"),
        ("-c", header, "push", f"{compose.url(name)}/git/counting.git", "main"),
    ):
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode == 0, done.stderr


def call(compose: Compose, name: str, key: str) -> tuple[int, str, str]:
    """Call the function by way of a machine: the status, the body, and which instance has answered."""
    with compose.platform(name, key).request("GET", "/function/counter") as answer:
        return answer.status, answer.read().decode(), answer.headers["Pilotlight-Instance"] or ""


def count(compose: Compose, name: str, key: str) -> int:
    status, text, _ = call(compose, name, key)
    assert status == 200, text
    told = json.loads(text)
    assert told["user"] > 65536  # one of its own
    return told["count"]


def homes(compose: Compose, key: str) -> tuple[str, str]:
    """Return the machine on which the function's instances are, and the other one."""
    _, _, instance = call(compose, "one", key)
    folder = "/var/lib/pilotlight/run/instances"
    (home,) = (name for name in NAMES if instance in compose.run("exec", "-T", name, "ls", folder))
    return home, next(name for name in NAMES if name != home)
