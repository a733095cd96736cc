"""Completion, where no platform runs; what it makes of one that runs is in the acceptance tests."""

import os
import subprocess
import sys

import pytest

from cli.commands.bench import BENCHES
from cli.main import COMMANDS, main
from runtimes.declaration import load_all


def complete(*words: str, **environment: str) -> list[str]:
    """Return what bash is told for the last word."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from cli.main import main; main()"],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PILOTLIGHT_")},
            "_PILOTLIGHT_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("pilotlight", *words)),
            "COMP_CWORD": str(len(words)),
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [line.removeprefix("plain,") for line in done.stdout.split()]


def test_commands_and_what_follows_them_are_completed():
    assert complete("") == list(COMMANDS)
    assert complete("invo") == [name for name in COMMANDS if name.startswith("invo")]
    assert complete("secrets", "s") == ["set"]
    assert complete("bench", "") == list(BENCHES)
    assert complete("new", "") == list(load_all())
    assert complete("list", "--j") == ["--json"]


def test_without_a_platform_names_are_silently_left_to_the_user(tmp_path):
    assert complete("logs", "h", PILOTLIGHT_DATA=str(tmp_path / "none")) == []
    assert complete("logs", "h", PILOTLIGHT_URL="http://127.0.0.1:9") == []
    assert complete("logs", "h", PILOTLIGHT_URL="nonsense") == []
    assert complete("rollback", "hello", "r", PILOTLIGHT_URL="http://127.0.0.1:9") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell, capsys):
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert f"_PILOTLIGHT_COMPLETE={shell}_complete" in shown


def test_another_shell_is_refused_and_those_there_are_named(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err
