"""`pilotlight up --store redis://…`: the registry and the documents in Redis, which may be away for a while."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support import redis_groups
from tests.support.apps import Answer, App, call
from tests.support.platform import PROGRAM, Up, family, free_port, wait_until
from tests.support.redis_server import RedisServer, running

HANDLER = "def handle(request):\n    return 'here'\n"


@pytest.fixture
def redis():
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), port=str(free_port())) as server:
        yield server


def on(server: RedisServer, folder: Path) -> Up:
    return Up(folder, ("--store", f"redis://127.0.0.1:{server.port}/3"))


def document(up: Up, method: str, body: bytes | None = None) -> Answer:
    with up.platform.request(method, "/data/v1/things/a?app=shop", body) as response:
        return Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())


def test_functions_and_documents_are_there_after_everything_was_killed(redis, tmp_path):
    with on(redis, tmp_path / "platform") as up:
        App.make(up, "shop", {"handler.py": HANDLER}).deploy()
        assert document(up, "PUT", b'{"n": 1}').status == 201
        assert not list(up.data.root.rglob("*.db"))
        everything = family(up.process.pid)
        for process in everything:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        up.process.wait()
        redis.kill()
        redis.start(port=str(redis.port))
        assert up.start(), up.log.read_text()
        assert call(up, "shop").body == b"here"
        assert json.loads(document(up, "GET").body) == {"n": 1}


def test_without_redis_warm_calls_go_on_and_the_rest_says_so_until_it_is_back(redis, tmp_path):
    with on(redis, tmp_path / "platform") as up:
        App.make(up, "shop", {"handler.py": HANDLER}).deploy()
        assert call(up, "shop").status == 200
        redis.kill()
        assert call(up, "shop").body == b"here"
        refused = document(up, "PUT", b"1")
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert "does not answer" in json.loads(refused.body)["detail"]
        listed = up.run("secrets", "set", "NAME", stdin="x")
        assert listed.returncode == 1
        assert "does not answer" in listed.stderr
        redis.start(port=str(redis.port))
        assert document(up, "PUT", b"1").status == 201


def refused(folder: Path, url: str) -> str:
    """Start a platform that can't be started; return what it says."""
    words = ("up", "--data", str(folder / "data"), "--port", "0", "--store", url)
    done = subprocess.run([*PROGRAM, *words], check=False, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_two_platforms_do_not_share_one_registry(redis, tmp_path):
    with on(redis, tmp_path / "one") as one:
        assert str(one.data.root) in refused(tmp_path / "two", one.flags[1])


def test_where_redis_is_not_the_platform_does_not_start_and_says_why(tmp_path):
    said = refused(tmp_path, f"redis://:secret@127.0.0.1:{free_port()}")
    assert "does not answer" in said
    assert "secret" not in said


def test_what_redis_may_lose_is_not_guaranteed(tmp_path):
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), port=str(free_port()), appendonly="no") as redis,
        on(redis, tmp_path / "platform") as up,
    ):
        assert "appendonly" in up.run("doctor").stdout
        assert up.stop() == 0
        assert "Not guaranteed on this machine: acknowledged writes are kept" in up.log.read_text()


def test_with_sentinels_a_platform_goes_on_with_another_redis(tmp_path):
    with (
        redis_groups.sentinels() as group,
        Up(tmp_path / "platform", ("--store", group.url())) as up,
    ):
        App.make(up, "shop", {"handler.py": HANDLER}).deploy()
        assert document(up, "PUT", b'{"n": 1}').status == 201
        assert "min-replicas" in up.run("doctor").stdout
        redis_groups.copied(group.master())
        group.master().kill()
        refused = document(up, "PUT", b"1")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert call(up, "shop").body == b"here"
        wait_until(lambda: document(up, "GET").status == 200)
        assert json.loads(document(up, "GET").body) == {"n": 1}
        assert up.run("secrets", "set", "NAME", stdin="x").returncode == 0
        assert up.stop() == 0
