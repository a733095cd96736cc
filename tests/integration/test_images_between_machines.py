"""Functions in images on two machines, each with a dockerd of its own: what one has, the other gets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from function_service.engines.docker.permitted import FETCHED
from tests.support import dockers, images, machines
from tests.support import service as support
from tests.support.apps import App, call
from tests.support.dockers import UpOn
from tests.support.image_registry import ImageRegistry
from tests.support.platform import Up, family, kill, wait_until
from tests.support.redis_server import RedisServer

BASE = "pilotlight-test-moved:1"
DOCKERFILE = f"""FROM {BASE}
COPY word /www/index.html
CMD exec busybox httpd -f -p "127.0.0.1:$PORT" -h /www
"""
SERVER = """#!/bin/sh
mkdir -p /tmp/www
cat /marked >/tmp/www/index.html
exec busybox httpd -f -p "127.0.0.1:$PORT" -h /tmp/www
"""
MANIFEST = '[functions.{0}]\npath = "."\naccess = "public"\ntimeout = "60s"\n{1}'

pytestmark = support.dockerd_needed()


@pytest.fixture(scope="module")
def second() -> Iterator[str]:
    with dockers.running() as path:
        yield path


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with machines.redis() as server:
        yield server


@pytest.fixture(autouse=True)
def base() -> Iterator[str]:
    with images.imported(BASE, {}) as id_:
        yield id_


def pair(folder: Path, server: RedisServer, second: str, listed: str, other: str = "") -> tuple[Up, Up]:
    """Return two machines; the first has this machine's dockerd, and both permit these images, or each its own."""
    one, two = (machines.machine(folder, name, server) for name in ("one", "two"))
    flags = ("--engine", "docker", "--dockerfiles", "yes")
    one.flags += (*flags, "--images", listed)
    flags_of_two = (*two.flags, *flags, "--images", other or listed)
    return one, UpOn(two.folder, flags_of_two, dockerd=second)


def fetched(second: str) -> list[dict[str, Any]]:
    with images.client(second) as api:
        return api.images(name=FETCHED)


def test_what_was_built_on_one_machine_runs_on_the_other_and_goes_with_its_function(
    tmp_path: Path, redis: RedisServer, second: str
) -> None:
    one, two = pair(tmp_path, redis, second, BASE)
    with one, two:
        files = {"Dockerfile": DOCKERFILE, "word": "hello", "pilotlight.toml": MANIFEST.format("site", "")}
        App.make(one, "site", files).deploy()
        (image,) = wait_until(lambda: fetched(second))  # ahead of the first call
        assert image["RepoTags"][0].startswith(f"{FETCHED}:{two.data.label}-")
        answer = call(two, "site")
        assert (answer.status, answer.text) == (200, "hello")
        with images.client(second) as api:
            assert api.containers(filters={"ancestor": image["Id"], "label": f"pilotlight={two.data.label}"})
        listed = two.run("images", "list")
        assert "fetched" in listed.stdout, listed.stderr
        assert two.run("delete", "site").returncode == 0
        wait_until(lambda: not fetched(second))
        assert [up.stop() for up in (two, one)] == [0, 0]
    assert containers(second, two) == []


def containers(second: str, up: Up) -> list[Any]:
    with images.client(second) as api:
        return api.containers(all=True, filters={"label": f"pilotlight={up.data.label}"})


def test_an_image_that_no_registry_has_comes_from_the_other_machine_which_may_die_then(
    tmp_path: Path, redis: RedisServer, second: str, base: str
) -> None:
    one, two = pair(tmp_path, redis, second, BASE)
    with one, two:
        manifest = MANIFEST.format("named", f'runtime = "native"\nimage = "{BASE}"\n')
        App.make(one, "named", {"handler": SERVER, "pilotlight.toml": manifest}).deploy()
        (image,) = wait_until(lambda: fetched(second))
        assert image["Id"] == base
        wait_until(lambda: call(two, "named").status == 200)
        kill(*family(one.process.pid))
        answer = call(two, "named")
        assert (answer.status, answer.text) == (200, images.MARK)
        one.start()  # which has the repositories
        assert one.run("delete", "named").returncode == 0
        wait_until(lambda: not fetched(second))
        assert [up.stop() for up in (two, one)] == [0, 0]


def test_an_image_of_a_registry_is_pulled_by_its_digest(
    tmp_path: Path, redis: RedisServer, second: str
) -> None:
    with ImageRegistry() as registry:
        one, two = pair(tmp_path, redis, second, f"{registry.place}/**")
        with one, two:
            image = f"{registry.place}/team/tool:1"
            manifest = MANIFEST.format("pulled", f'runtime = "native"\nimage = "{image}"\n')
            App.make(one, "pulled", {"handler": SERVER, "pilotlight.toml": manifest}).deploy()
            (found,) = wait_until(lambda: fetched(second))
            assert found["Id"] == registry.id
            assert f"/v2/team/tool/manifests/{registry.digest}" in registry.asked
            assert call(two, "pulled").text == "of a registry\n"
            assert two.run("delete", "pulled").returncode == 0
            wait_until(lambda: not fetched(second))
            assert [up.stop() for up in (two, one)] == [0, 0]
        with images.client() as api:
            images.remove(api, image)


def test_a_machine_that_does_not_permit_an_image_neither_gets_nor_starts_it(
    tmp_path: Path, redis: RedisServer, second: str
) -> None:
    one, two = pair(tmp_path, redis, second, BASE, other="python:3.*")
    with one, two:
        manifest = MANIFEST.format("barred", f'runtime = "native"\nimage = "{BASE}"\n')
        App.make(one, "barred", {"handler": SERVER, "pilotlight.toml": manifest}).deploy()
        answer = call(two, "barred")
        assert answer.status == 502
        assert "python:3.*" in answer.text
        assert fetched(second) == []
        assert call(one, "barred").status == 200
        assert one.run("delete", "barred").returncode == 0
        assert [up.stop() for up in (two, one)] == [0, 0]
