"""The command table: what it prints, which exit codes it gives, and that it is quick."""

import os
import subprocess
import sys

import pytest

from cli.main import COMMANDS, main
from pilotlight.problems import Problem


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_no_argument_shows_the_help(capsys):
    assert main([]) == 0
    assert "Usage: pilotlight" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pilotlight 0.")


def test_an_unknown_command_exits_with_2_and_suggests_a_near_one(capsys):
    assert main(["invok"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Did you mean 'invoke'?" in captured.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: pilotlight {name}" in shown
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "--jsn"], "'--jsn'. Did you mean '--json'? See pilotlight list --help"),
        (["secrets"], "Missing command. See pilotlight secrets --help"),
        (["secrets", "sat"], "Did you mean 'set'? There are: list, set, delete, discard."),
        (["invoke"], "Missing argument 'NAME'. See pilotlight invoke --help"),
        (["invoke", "hello", "-H", "nothing"], "write it like 'Name: value'. See pilotlight invoke --help"),
        (["logs", "hello", "--tail", "all"], "'all' is not a valid integer. See pilotlight logs --help"),
        (["bench", "warn"], "Did you mean 'warm'?"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_where_to_read_more(words, said, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def test_what_a_bench_takes_is_left_to_the_bench(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "warm", "--help"])
    assert ended.value.code == 0
    assert "--quick" in capsys.readouterr().out


def test_a_refusal_goes_to_stderr_with_exit_code_1(monkeypatch, capsys):
    def refuse():
        raise Problem("conflict", "It is so. Do that.", logs=["line one"])

    monkeypatch.setattr("cli.client.find", refuse)
    assert main(["list"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "pilotlight: It is so. Do that.\n  line one\n"


def test_help_imports_no_command_and_no_service():
    script = (
        "import sys; from cli.main import main; main(['--help']);"
        "kinds = ('cli.commands', 'rich', 'argparse', 'asyncio', 'aiohttp', 'http');"
        "print([name for name in sys.modules if name.startswith(kinds)])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_left_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cli.main", "--help"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")
