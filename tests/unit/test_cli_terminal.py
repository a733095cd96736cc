"""What a person sees at a terminal: tables that fit the window, and nothing of a value is lost."""

import pytest

from cli import output, terminal

HEADS = ("NAME", "ID", "CALLS")
ROWS = [("hello", "r9ef7d9b631a7", "7"), ("[bold]odd[/]", "r997529812785", "12")]


@pytest.fixture
def window(monkeypatch):
    """Make the terminal as wide as one says."""
    monkeypatch.setenv("LINES", "40")
    return lambda width: monkeypatch.setenv("COLUMNS", str(width))


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_a_table_that_fits_is_the_one_of_a_pipe(window, capsys):
    window(80)
    terminal.show_table(HEADS, ROWS, ("ID",))
    captured = capsys.readouterr()
    assert lines(captured.out) == output.table(HEADS, ROWS).splitlines()
    assert captured.err == ""


def test_a_narrow_window_lacks_what_can_be_spared_and_says_so(window, capsys):
    window(25)
    terminal.show_table(HEADS, ROWS, ("ID", "CALLS"))
    captured = capsys.readouterr()
    assert lines(captured.out) == output.table(("NAME", "CALLS"), [(a, c) for a, _, c in ROWS]).splitlines()
    assert " ".join(captured.err.split()) == "In a wider window also: ID"


def test_a_window_too_narrow_for_everything_folds_and_cuts_nothing(window, capsys):
    window(12)
    terminal.show_table(("ID",), [("0123456789abcdef",)], ())
    assert lines(capsys.readouterr().out) == ["ID", "0123456789ab", "cdef"]


def test_reason_and_remedy_stand_on_lines_of_their_own(window, capsys):
    window(40)
    checks = [
        (True, "git", "2.47", ""),
        (False, "a limit", "this process has none of it, so far", "Get one."),
    ]
    terminal.show_checks(("KEPT", "WHAT"), checks)
    assert lines(capsys.readouterr().out) == [
        "KEPT  WHAT",
        "yes   git",
        "      2.47",
        "NO    a limit",
        "      this process has none of it, so",
        "      far",
        "      → Get one.",
    ]


def test_what_takes_long_is_not_told_to_a_pipe(capsys):
    with output.telling() as tell:
        tell("Waiting")
    with output.working("Waiting"):
        pass
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
