"""`pilotlight new`: a folder with a function, and what it refuses."""

import subprocess

import pytest

from cli.main import main
from runtimes.declaration import load_all


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("runtime", load_all())
def test_each_runtime_makes_a_function_that_it_recognises(runtime, here):
    assert main(["new", runtime, "hello"]) == 0
    assert load_all()[runtime].recognise(here / "hello") is not None
    files = [file for file in (here / "hello").rglob("*") if file.is_file() and ".git" not in file.parts]
    assert [file for file in files if "__NAME__" in file.read_text()] == []
    assert "[functions.hello]" in (here / "hello" / "pilotlight.toml").read_text()


def test_the_folder_is_a_git_repository_on_main(here):
    assert main(["new", "python", "hello"]) == 0
    branch = subprocess.run(
        ["git", "symbolic-ref", "--short", "HEAD"],
        cwd=here / "hello",
        capture_output=True,
        text=True,
        check=True,
    )
    assert branch.stdout == "main\n"


def test_within_a_repository_no_other_one_is_begun(here):
    subprocess.run(["git", "init", "--quiet"], cwd=here, check=True)
    assert main(["new", "python", "hello"]) == 0
    assert not (here / "hello" / ".git").exists()


def test_an_empty_folder_is_taken(here):
    (here / "hello").mkdir()
    assert main(["new", "python", "hello"]) == 0


def test_a_folder_with_something_in_it_is_left_alone(here, capsys):
    (here / "hello").mkdir()
    (here / "hello" / "precious").write_text("mine")
    assert main(["new", "python", "hello"]) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert [file.name for file in (here / "hello").iterdir()] == ["precious"]


@pytest.mark.parametrize("name", ["Hello", "../hello", "a b", "-x-", "9lives", "x" * 64, "."])
def test_a_name_that_no_function_can_have_is_refused(name, here, capsys):
    assert main(["new", "python", "--", name]) == 1
    assert "lower-case letters" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_an_unknown_runtime_is_refused_and_the_known_ones_named(here, capsys):
    assert main(["new", "cobol", "hello"]) == 1
    assert "There are: native, node, python" in capsys.readouterr().err
