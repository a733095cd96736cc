"""`pilotlight store migrate`: a real platform moves from its files into a Redis, and back into others."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.apps import App, call
from tests.support.platform import Up, free_port
from tests.support.redis_server import running

HANDLER = "import os\ndef handle(request):\n    return os.environ['TOKEN']\n"
MANIFEST = '[functions.shop]\nsecrets = ["TOKEN"]\n'


@pytest.fixture
def redis():
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), port=str(free_port())) as server:
        yield server


@dataclass
class Seen:
    """What a user sees of a platform's state."""

    documents: list
    keys: list
    secrets: list
    revisions: list
    answer: bytes

    @classmethod
    def of(cls, up: Up) -> "Seen":
        def told(*words: str) -> list:
            done = up.run(*words, "--json")
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        with up.platform.request("GET", "/data/v1/things?app=shop") as response:
            documents = json.loads(response.read())["documents"]  # with their ETags and ends
        return cls(
            documents,
            told("keys", "list"),
            told("secrets", "list"),
            told("revisions", "shop"),
            call(up, "shop").body,
        )


def put(up: Up, key: str, query: str = "", **headers: str) -> int:
    path = f"/data/v1/things/{key}?app=shop{query}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with up.platform.request("PUT", path, b'{"n": 1}', named) as response:
        return response.status


def test_a_platform_moves_into_a_redis_and_back_with_all_that_it_keeps(redis, tmp_path):
    url = f"redis://127.0.0.1:{redis.port}/3"
    port = ("--port", str(free_port()))
    with Up(tmp_path / "platform", port) as up:
        assert up.run("secrets", "set", "TOKEN", stdin="t0ken").returncode == 0
        app = App.make(up, "shop", {"handler.py": HANDLER, "pilotlight.toml": MANIFEST})
        app.deploy()
        app.commit({"other.py": ""})
        app.deploy()
        assert [put(up, "a"), put(up, "a"), put(up, "b", "&ttl=5000")] == [201, 204, 201]
        before = Seen.of(up)
        assert len(before.revisions) == 2
        assert before.answer == b"t0ken"
        refused = up.run("store", "migrate", "sqlite", url)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "in use by another running platform" in refused.stderr
        assert up.stop() == 0

        done = up.run("store", "migrate", "sqlite", url)
        assert done.returncode == 0, done.stderr
        assert "registry" in done.stdout

        up.flags = (*port, "--store", url)
        assert up.start(), up.log.read_text()
        assert Seen.of(up) == before
        tag = before.documents[0]["etag"]
        assert put(up, "a", If_Match='"1"') == 412
        assert put(up, "a", If_Match=tag) == 204
        changed = Seen.of(up)
        refused = up.run("store", "migrate", url, f"sqlite:{tmp_path / 'elsewhere'}")
        assert refused.returncode == 1
        assert "in use by another platform" in refused.stderr
        assert up.stop() == 0

        refused = up.run("store", "migrate", url, "sqlite")
        assert refused.returncode == 1
        assert "nothing is overwritten" in refused.stderr
        for file in (*up.data.root.glob("registry.db*"), *up.data.documents.iterdir()):
            file.unlink()
        done = up.run("store", "migrate", url, "sqlite")
        assert done.returncode == 0, done.stderr

        up.flags = port
        assert up.start(), up.log.read_text()
        assert Seen.of(up) == changed
        assert put(up, "c") == 201
        app.commit({"third.py": ""})
        app.deploy()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sqlite:none", "redis://127.0.0.1:1/0"), "There is no store in"),
        (("redis://:pass@127.0.0.1:1/0", "sqlite:new"), "does not answer"),
        (("sqlite:", "sqlite:new"), "sqlite:FOLDER"),
        (("mysql://x:pass@y", "sqlite:new"), "A store is sqlite, sqlite:FOLDER"),
    ],
)
def test_what_is_no_store_is_told_without_a_password(words, said, tmp_path):
    up = Up(tmp_path)
    done = up.run("store", "migrate", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "pass" not in done.stderr
    shutil.rmtree(tmp_path)
