"""compose.yaml of this repository, started as a user does it, without a registry and without a package index."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.client import Platform
from pilotlight.problems import Problem
from tests.support import debian, images
from tests.support.platform import ROOT, free_port
from tests.support.service import dockerd_needed

NAMES = ("one", "two")
# What packaging/Dockerfile would install, and what it needs for that
_PACKAGES = (
    "ca-certificates",
    "coreutils",
    "curl",
    "dash",
    "dpkg",
    "git",
    "grep",
    "python3",
    "python3-venv",
    "tini",
)
_BASE, _REDIS, _IMAGE = (f"pilotlight-test-compose-{name}:1" for name in ("base", "redis", "image"))
_PROGRAMS = ("curl", "docker-compose", "dpkg-query", "git", "redis-server", "tini")


def needed() -> list[Any]:
    """Return the marks of tests that start it."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    reason = f"this machine lacks what a compose.yaml is tried with (apt-get install {' '.join(missing)})"
    return [*dockerd_needed(), pytest.mark.skipif(bool(missing), reason=reason)]


@dataclass(frozen=True)
class Compose:
    """One project: the folder of the file, and the environment that it is started in."""

    folder: Path
    environment: dict[str, str]

    @property
    def project(self) -> str:
        return self.environment["COMPOSE_PROJECT_NAME"]

    def run(self, *words: str) -> str:
        """Run docker-compose, which must succeed; return what it printed."""
        done = subprocess.run(
            ["docker-compose", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=800,
        )
        assert done.returncode == 0, f"docker-compose {' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def url(self, name: str) -> str:
        """Return the address of a machine's gateway."""
        return f"http://127.0.0.1:{self.environment[f'PILOTLIGHT_{name.upper()}_PORT']}"

    def platform(self, name: str, key: str | None = None) -> Platform:
        """Return a machine's gateway."""
        return Platform(self.url(name), key)

    def ready(self, name: str) -> bool:
        """Tell whether a machine serves everything."""
        try:
            with self.platform(name).request("GET", "/readyz") as answer:
                return answer.status == 200
        except Problem:
            return False

    def container(self, name: str) -> dict[str, Any]:
        """Return what Docker tells of a container."""
        found: dict[str, Any]
        with images.client() as api:
            (found,) = api.containers(all=True, filters={"label": self._labels(name)})
            return dict(api.inspect_container(found["Id"]))

    def remains(self) -> list[str]:
        """Return the names of the containers, volumes and networks of this project."""
        filters = {"label": self._labels()}
        with images.client() as api:
            found = [each["Names"][0] for each in api.containers(all=True, filters=filters)]
            found += [each["Name"] for each in api.volumes(filters=filters)["Volumes"] or ()]
            return found + [each["Name"] for each in api.networks(filters=filters)]

    def _labels(self, name: str = "") -> list[str]:
        labels = [f"com.docker.compose.project={self.project}"]
        return [*labels, f"com.docker.compose.service={name}"] if name else labels


@contextlib.contextmanager
def project(folder: Path) -> Iterator[Compose]:
    """Yield the project with its image built, not started; nothing of it is there afterwards."""
    tar = folder / "base.tar"
    debian.pack(_PACKAGES, tar)
    _copy(folder / "source")
    _download_wheels(folder / "source" / "wheels")
    environment = {
        **os.environ,
        "COMPOSE_PROJECT_NAME": f"pilotlight-test-{os.getpid()}",
        "DOCKER_BUILDKIT": "0",  # BuildKit wants a bridge, which the dockerd of tests has not
        "PILOTLIGHT_IMAGE": _IMAGE,
        "REDIS_IMAGE": _REDIS,
        "PILOTLIGHT_ONE_PORT": str(free_port()),
        "PILOTLIGHT_TWO_PORT": str(free_port()),
        "PILOTLIGHT_ONE_ADDRESS": f"127.0.0.1:{free_port()}",
        "PILOTLIGHT_TWO_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    compose = Compose(folder / "source", environment)
    with images.imported_tar(_BASE, tar, kind="test-compose"), images.imported(_REDIS, images.of_redis()):
        try:
            compose.run("build", "--build-arg", f"BASE={_BASE}", "--build-arg", "LANGUAGES=", "one")
            yield compose
        finally:
            compose.run("down", "--volumes")
            with images.client() as api:
                images.remove(api, _IMAGE)


def _copy(folder: Path) -> None:
    """Copy what the image is made of, and the file itself, so that wheels can lie beside them."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    wanted = [line.removeprefix("!") for line in lines if line.startswith("!")]
    for name in (*wanted, ".dockerignore", "compose.yaml", "packaging"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            folder.mkdir(exist_ok=True)
            shutil.copy(source, folder / name)


def _download_wheels(folder: Path) -> None:
    """Have this machine's pip, with its configuration, fetch the wheels for the Python of its Debian."""
    words = ("download", "--quiet", "--require-hashes", "--no-deps", "--only-binary=:all:")
    requirements = ("--requirement", str(ROOT / "requirements.lock"), "--dest", str(folder))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", "/usr/bin/python3", *words, *requirements],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr


def history(image: str = _IMAGE) -> str:
    """Return how an image was made, as it tells everybody who has it."""
    with images.client() as api:
        return json.dumps([api.history(image), api.inspect_image(image)["Config"]])
