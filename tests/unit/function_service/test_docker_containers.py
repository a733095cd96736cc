"""What the docker engine asks of dockerd for a container, without one."""

import json
from pathlib import Path
from typing import Any

import docker
import pytest

from function_service.engines.docker import container


def plan(folder: Path, **more: Any) -> container.Plan:
    given: dict[str, Any] = {
        "name": "pilotlight-x",
        "label": "x",
        "image": "sha256:0",
        "command": ("/python", "-c", "pass"),
        "environment": {"LC_ALL": "C"},
        "user": 1000,
        "memory": 1 << 27,
        "processes": 10,
        "shown": ((folder, "/run", True), (folder, "/function", False)),
        "tmp": 1 << 26,
        "runtime": "",
    }
    return container.Plan(**given | more)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was asked for, after `create`, by a client whose owner has configured proxies."""
    proxy = "http://operator:secret@proxy.example.com:3128"
    (tmp_path / "config.json").write_text(json.dumps({"proxies": {"default": {"httpProxy": proxy}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    client = docker.APIClient(base_url=f"unix://{tmp_path}/nobody.sock", version="1.41")
    found: dict[str, Any] = {}
    monkeypatch.setattr(client, "create_container_from_config", lambda config, *_: found.update(config))
    container.create(client, plan(tmp_path, environment={"LC_ALL": "C", "OF_THE_IMAGE": None}))
    client.close()
    return found


def test_the_proxies_of_root_are_for_no_container(asked: dict[str, Any]) -> None:
    assert "secret" not in json.dumps(asked)


def test_what_it_is_shown_can_be_written_only_where_that_is_said(asked: dict[str, Any]) -> None:
    mounts = {each["Target"]: each["ReadOnly"] for each in asked["HostConfig"]["Mounts"]}
    assert mounts == {"/run": False, "/function": True}


def test_what_an_image_sets_is_taken_away(asked: dict[str, Any]) -> None:
    assert sorted(asked["Env"]) == ["LC_ALL=C", "OF_THE_IMAGE"]
