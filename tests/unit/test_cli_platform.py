"""How the commands find the platform, and which key they send where."""

import json

import pytest

from cli import client, git, listener
from pilotlight.problems import Problem


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Make a data folder as a running platform leaves it, and nothing in the environment that names another."""
    monkeypatch.delenv("PILOTLIGHT_URL", raising=False)
    monkeypatch.delenv("PILOTLIGHT_KEY", raising=False)
    monkeypatch.setenv("PILOTLIGHT_DATA", str(tmp_path))
    (tmp_path / "platform.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "pid": 1}))
    (tmp_path / "admin.key").write_text("the-first-key\n")
    return tmp_path


def test_the_platform_of_the_data_folder_is_found_with_its_key(data):
    found = client.find()
    assert (found.url, found.key) == ("http://127.0.0.1:9", "the-first-key")


def test_the_environment_wins(data, monkeypatch):
    monkeypatch.setenv("PILOTLIGHT_URL", "https://faas.example/")
    monkeypatch.setenv("PILOTLIGHT_KEY", "mine")
    found = client.find()
    assert (found.url, found.key) == ("https://faas.example", "mine")


def test_the_first_key_is_never_sent_to_another_address(data, monkeypatch):
    monkeypatch.setenv("PILOTLIGHT_URL", "https://faas.example")
    assert client.find().key is None


def test_where_no_platform_runs_the_remedy_is_named(data):
    (data / "platform.json").unlink()
    with pytest.raises(Problem, match="Start it with: pilotlight up"):
        client.find()


def test_a_platform_that_does_not_answer_is_named(data):
    with pytest.raises(Problem, match=r"Nothing answers at http://127\.0\.0\.1:9 .*pilotlight up"):
        client.find().get("/api/v1/apps")


def test_an_address_that_does_not_parse_is_refused(data, monkeypatch):
    monkeypatch.setenv("PILOTLIGHT_URL", "faas.example:8080")
    with pytest.raises(Problem, match="write it like http://"):
        client.find()


@pytest.mark.parametrize(
    ("folder", "app"), [("hello", "hello"), ("My Project_2", "my-project-2"), ("2nd--try-", "nd-try")]
)
def test_an_app_is_called_as_its_folder_as_far_as_names_allow(folder, app):
    assert git.app_name(folder) == app


def test_a_folder_that_makes_no_name_asks_for_one():
    with pytest.raises(Problem, match="--app"):
        git.app_name("123")


def test_a_listener_on_all_addresses_is_reached_at_loopback():
    with listener.bind("0.0.0.0", 0) as every:
        assert listener.url(every) == f"http://127.0.0.1:{every.getsockname()[1]}"
