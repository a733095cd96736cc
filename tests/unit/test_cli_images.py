"""`pilotlight images`: what it shows, and how base images come to be."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cli import base_images
from cli.main import main
from function_service.engines.docker import bases
from pilotlight.problems import Problem

FAKE = """#!/bin/sh
for word in "$@"; do echo "$word" >>"{folder}/arguments"; done
for word in "$@"; do case "$word" in *.tar) : >"$word" ;; esac; done
exit {code}
"""


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
    """Put a mmdebstrap first in the PATH that notes its arguments."""
    program = folder / "mmdebstrap"
    program.write_text(FAKE.format(folder=folder, code=code))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_every_runtime_that_there_is_has_a_base_image():
    assert base_images.PACKAGES.keys() == bases.NAMES.keys()


def test_it_is_made_of_the_packages_that_this_machine_gets(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch)
    (tmp_path / "sources").mkdir()
    for name in ("debian.sources", "more.list", "kept.bak"):
        (tmp_path / "sources" / name).write_text("deb x y z\n")
    monkeypatch.setattr(base_images, "_SOURCES", (tmp_path / "none", tmp_path / "sources"))
    base_images.make("python", "bookworm", ("imagemagick",), tmp_path / "root.tar")
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert "--include=ca-certificates,python3,imagemagick" in arguments
    sources = [str(tmp_path / "sources" / name) for name in ("debian.sources", "more.list")]
    assert arguments[-4:] == ["bookworm", str(tmp_path / "root.tar"), *sources]


def test_without_mmdebstrap_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Problem, match=r"not installed: apt-get install mmdebstrap\. Or .* --from"):
        base_images.make("python", "bookworm", (), tmp_path / "root.tar")


def test_a_mmdebstrap_that_fails_is_told(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, code=25)
    with pytest.raises(Problem, match="exit code 25"):
        base_images.make("native", "bookworm", (), tmp_path / "root.tar")


def test_what_an_image_of_a_registry_is_made_of_cannot_be_chosen(capsys):
    assert main(["images", "build", "python", "--from", "python:3", "--package", "x"]) == 2
    assert "--from takes the image as it is" in capsys.readouterr().err


def test_a_runtime_that_there_is_not_is_refused(capsys):
    assert main(["images", "build", "cobol"]) == 2
    assert "'native', 'python', 'node'" in capsys.readouterr().err


def test_without_docker_it_is_said_what_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "images", "build", "python"],
        env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/nowhere.sock"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/nowhere.sock does not answer" in done.stderr


def test_the_list_shows_what_uses_each_and_what_is_gone(monkeypatch, capsys):
    there = {"id": "sha256:" + "a" * 64, "name": "x:1", "kind": "named", "functions": ["one", "two"]}
    gone = {"id": "sha256:" + "b" * 64, "name": "y:1", "kind": "named", "functions": ["three"]}
    images = [there | {"size": 3 << 20, "created": 0.0, "present": True}]
    images.append(gone | {"size": 0, "created": 0.0, "present": False})

    class Answering:
        def get(self, path: str) -> dict[str, list[dict[str, object]]]:
            assert path == "/api/v1/images"
            return {"images": images}

    monkeypatch.setattr("cli.client.find", Answering)
    assert main(["images", "list"]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:6] == ["x:1", "a" * 12, "named", "one,", "two", "3.0"]
    assert "gone" in second
    assert main(["images", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == images
    images.clear()
    assert main(["images", "list"]) == 0
    assert "--engine docker" in capsys.readouterr().err
