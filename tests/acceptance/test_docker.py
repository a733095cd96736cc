"""The whole platform on Docker, with either store: pushes that are built in containers, calls, state, a shell; and nothing is left."""

import json
from pathlib import Path

import pytest

from tests.support import redis_server, service
from tests.support.apps import App, call
from tests.support.platform import Up

COUNTER = """
import json, os, urllib.request

def handle(request):
    url = os.environ["PILOTLIGHT_DATA_URL"] + "/data/v1/counts/all/increment"
    with urllib.request.urlopen(urllib.request.Request(url, b"", method="POST")) as answer:
        return json.dumps({"count": json.loads(answer.read()), "user": os.getuid()})
"""
MANIFEST = '[functions.counter]\nmemory = "64MB"\naccess = "public"\ntimeout = "60s"\n'

pytestmark = service.dockerd_needed()


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_an_app_is_built_called_and_gone_again(tmp_path: Path, store: str) -> None:
    with (
        redis_server.setting(store) as kept_in,
        Up(tmp_path, ("--engine", "docker", "--store", kept_in)) as up,
    ):
        app = App.make(up, "counting", {"counter/handler.py": COUNTER, "pilotlight.toml": MANIFEST})
        app.deploy()
        answers = [call(up, "counter") for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 200], answers
        assert [answer.headers["pilotlight-start"] for answer in answers] == ["cold", "warm"]
        first, second = (json.loads(answer.text) for answer in answers)
        assert first["user"] == second["user"] > 65536
        assert first["count"] != second["count"]
        shell = up.run("shell", "counter", "--", "sh", "-c", "ls; id -u")
        assert "handler.py" in shell.stdout.splitlines(), shell.stderr
        found = {each["name"]: each for each in json.loads(up.run("doctor", "--json").stdout)}
        assert found["Docker answers"]["kept"]
        assert len(service.containers(up.data.label)) > 0
        assert up.stop() == 0
        assert "engine=docker" in up.log.read_text()
        assert service.containers(up.data.label) == set()
