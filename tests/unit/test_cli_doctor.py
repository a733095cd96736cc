"""`pilotlight doctor` where no platform runs: it tells what `up` would get, and the exit code sums up."""

import json

import pytest

from cli import checks
from cli.checks import Check
from cli.main import main
from function_service.contract import Guarantee
from function_service.engines.embedded import guarantees, namespaces
from pilotlight.settings import current


@pytest.fixture
def nothing_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("PILOTLIGHT_URL", raising=False)
    monkeypatch.setenv("PILOTLIGHT_DATA", str(tmp_path))


def test_it_asks_for_a_control_group_as_up_does_before_it_looks(nothing_runs, monkeypatch):
    steps = []

    def inspect():
        steps.append("inspect")
        return [Guarantee(name="a limit", kept=True)]

    monkeypatch.setattr("cli.delegation.request", lambda: steps.append("request"))
    monkeypatch.setattr("function_service.engines.embedded.guarantees.inspect", inspect)
    assert checks.guarantees(current()) == [Check("a limit", True)]
    assert steps == ["request", "inspect"]


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (Check("a limit", True), 0),
        (Check("a limit", False, "It is so.", "Do that."), 1),
        (Check("a language", False, "None was found.", "Install it.", needed=False), 0),
    ],
)
def test_the_exit_code_tells_whether_all_that_is_needed_is_there(found, code, monkeypatch, capsys):
    monkeypatch.setattr("cli.checks.examine", lambda: [found])
    assert main(["doctor"]) == code
    (_, line) = capsys.readouterr().out.splitlines()
    assert line.split("  ")[0] == found.name
    assert line.endswith(f"{found.reason} {found.remedy}".strip() or "yes")
    assert main(["doctor", "--json"]) == code
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["kept"], told["reason"], told["remedy"]) == (found.kept, found.reason, found.remedy)


@pytest.mark.parametrize(
    ("mappers", "ranges", "kept"),
    [
        ((None, None), ((1, 65536), (1, 65536)), False),
        (("/usr/bin/newuidmap", "/usr/bin/newgidmap"), (None, None), False),
        (("/usr/bin/newuidmap", "/usr/bin/newgidmap"), ((1, 65536), None), False),
        (("/usr/bin/newuidmap", "/usr/bin/newgidmap"), ((1, 65536), (1, 65536)), True),
    ],
)
def test_users_of_their_own_need_both_programs_and_ranges_in_both_files(mappers, ranges, kept, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(namespaces, "_mappers", lambda: mappers)
    monkeypatch.setattr(namespaces, "_ranges", lambda: ranges)
    found = guarantees._users(None)
    assert found.kept is kept
    assert kept or "/etc/subuid" in found.remedy
