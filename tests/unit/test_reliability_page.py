"""The promises of docs/RELIABILITY.md have the tests that it names, and its limits are settings that exist."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from cli.commands.bench import BENCHES
from pilotlight.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/RELIABILITY.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for table in re.findall(r"^\|.*\| tests \|\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    for line in table.splitlines()
]


def test_there_are_rows():
    assert len(ROWS) > 25


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_promise_has_a_test_that_exists(row):
    named = re.findall(r"`([\w/.]+\.py)(?:::(?:Test\w+::)?(\w+))?`", row[-1])
    assert named
    assert row[-1] == ", ".join(re.findall(r"`[^`]+`", row[-1])), (
        "there is more than tests in the last column"
    )
    for file, name in named:
        text = (ROOT / file).read_text()
        assert not name or re.search(rf"^ *(async )?def {name}\(", text, re.MULTILINE), (file, name)


def test_the_settings_and_benches_that_it_names_exist():
    settings = {f"--{field.name.replace('_', '-')}" for field in fields(Settings)}
    assert (
        set(re.findall(r"`(--[\w-]+)`", PAGE)) - {"--markdown", "--html", "--plots", "--against", "--quick"}
        <= settings
    )
    assert set(re.findall(r"<!-- table: bench ([\w-]+) -->", PAGE)) <= set(BENCHES)
