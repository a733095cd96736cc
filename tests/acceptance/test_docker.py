"""The whole platform on Docker, with either store: pushes built in containers and images, calls, state, a shell."""

import json
import os
from pathlib import Path

import pytest

from tests.support import dockers, images, redis_server, service
from tests.support.apps import App, call
from tests.support.dockers import UpOn
from tests.support.platform import Up, wait_until

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


@service.gvisor_needed()[-1]
def test_where_each_container_has_a_kernel_of_its_own_it_is_the_same(tmp_path: Path) -> None:
    flags = ("--engine", "docker", "--docker-runtime", "runsc")
    with dockers.running(dockers.GVISOR) as dockerd, UpOn(tmp_path, flags, dockerd=dockerd) as up:
        app = App.make(up, "counting", {"counter/handler.py": COUNTER, "pilotlight.toml": MANIFEST})
        app.deploy()
        answers = [call(up, "counter") for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 200], answers
        assert [answer.headers["pilotlight-start"] for answer in answers] == ["cold", "warm"]
        first, second = (json.loads(answer.text) for answer in answers)
        assert first["user"] == second["user"] > 65536
        assert first["count"] != second["count"]
        shell = up.run("shell", "counter", "--", "sh", "-c", "ls; uname -r")
        assert "handler.py" in shell.stdout.splitlines(), shell.stderr
        assert os.uname().release not in shell.stdout
        assert len(service.containers(up.data.label, dockerd)) > 0
        assert up.stop() == 0
        assert "own_kernel=True" in up.log.read_text()
        assert service.containers(up.data.label, dockerd) == set()


def test_an_app_is_built_and_called_in_an_image_of_its_own(tmp_path: Path) -> None:
    image = "pilotlight-test-pushed:1"
    source = COUNTER.replace('"user": os.getuid()', '"marked": open("/marked").read()')
    manifest = f'{MANIFEST}image = "{image}"\n'
    with images.imported(image, images.of_python()), Up(tmp_path, ("--engine", "docker")) as up:
        app = App.make(up, "boxed", {"counter/handler.py": source, "pilotlight.toml": manifest})
        app.deploy()
        answer = call(up, "counter")
        assert answer.status == 200, answer
        assert json.loads(answer.text)["marked"] == images.MARK
        shell = up.run("shell", "counter", "--", "cat", "/marked")
        assert shell.stdout == images.MARK, shell.stderr
        assert up.stop() == 0
        assert service.containers(up.data.label) == set()


DOCKERFILE = """FROM pilotlight-test-acceptance:1
COPY word /www/index.html
RUN echo a step was here
CMD exec busybox httpd -f -p "127.0.0.1:$PORT" -h /www
"""


def test_a_function_with_a_dockerfile_is_built_at_the_push(tmp_path: Path) -> None:
    manifest = '[functions.site]\naccess = "public"\ntimeout = "60s"\n'
    files = {"site/Dockerfile": DOCKERFILE, "site/word": "hello", "pilotlight.toml": manifest}
    program = '#!/bin/sh\nexec busybox httpd -f -p "127.0.0.1:$PORT" -h /tmp\n'
    files |= {"other/server": program, "other/Dockerfile": DOCKERFILE}
    flags = ("--engine", "docker", "--dockerfiles", "yes")
    with images.imported("pilotlight-test-acceptance:1", {}), Up(tmp_path, flags) as up:
        app = App.make(up, "sites", files)
        pushed = app.push()
        assert pushed.returncode == 0, pushed.stderr
        assert "a step was here" in pushed.stderr
        assert (
            'its Dockerfile is not used (with handler = "Dockerfile" in the manifest it is)' in pushed.stderr
        )
        assert [call(up, "site").text for _ in range(2)] == ["hello"] * 2
        app.commit({"site/Dockerfile": DOCKERFILE.replace("echo a step was here", "cat /nowhere")})
        rejected = app.push()
        assert rejected.returncode != 0
        assert "Function 'site' can't be built by its Dockerfile" in rejected.stderr
        assert "cat: can't open '/nowhere'" in rejected.stderr
        assert call(up, "site").text == "hello"
        shell = up.run("shell", "site", "--", "cat", "/www/index.html")
        assert shell.stdout == "hello", shell.stderr
        assert up.run("delete", "site").returncode == 0
        with images.client() as api:
            wait_until(lambda: not api.images(name="pilotlight-function", filters=marked(up)))
        assert up.stop() == 0
        assert service.containers(up.data.label) == set()


def marked(up: Up) -> dict[str, str]:
    return {"label": f"pilotlight.image={up.data.label}"}
