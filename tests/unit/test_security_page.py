"""The attacks that docs/SECURITY.md lists have the tests that it names, and no test of an attack is left out."""

import re
from pathlib import Path

import pytest

from function_service.engines.embedded.guarantees import inspect

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/SECURITY.md").read_text()
HOME = "tests/security"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for table in re.findall(r"^\| attack \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    for line in table.splitlines()
]


def named(row: list[str]) -> list[tuple[str, str]]:
    """Return the tests of a row: the file, from the top of the repository, and the name."""
    found = re.findall(r"`([\w/.]+\.py)::(\w+)`", row[2])
    return [(file if "/" in file else f"{HOME}/{file}", test) for file, test in found]


def test_there_are_rows_of_each_attacker():
    assert len(ROWS) > 60
    assert all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_attack_has_a_test_that_exists(row):
    tests = named(row)
    assert tests
    assert row[2] == ", ".join(re.findall(r"`[^`]+`", row[2])), "there is more than tests in the last column"
    for file, name in tests:
        assert re.search(rf"^ *(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), (file, name)


def test_every_file_with_attacks_is_named():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / HOME).glob("test_*.py")}
    files |= {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*hostile*.py")}
    assert files - {file for row in ROWS for file, _ in named(row)} == set()


def test_the_guarantees_are_those_that_the_doctor_shows():
    table = re.search(r"^\| `pilotlight doctor` \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table is not None
    shown = [line.split("|")[1].strip().strip("`") for line in table.group(1).splitlines()]
    assert shown == [guarantee.name for guarantee in inspect()]
