"""docs/OPERATIONS.md names commands, flags, units, settings, messages and pages that there are."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pilotlight.settings import Settings
from tests.support.commands import command_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/OPERATIONS.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
CALLS = sorted(
    {
        part.strip()
        for line in LINES
        for part in re.split(r"&&|\|", line.partition(" #")[0])
        if part.strip().startswith("pilotlight ")
    }
)
NAMED = sorted(set(re.findall(r"`(pilotlight [a-z][^`]*)`", PAGE)) - {"pilotlight store migrate or restore"})


@pytest.mark.parametrize("call", [*CALLS, *NAMED])
def test_every_command_exists_and_takes_what_it_is_given(call):
    command, rest = command_of(call)
    if call in CALLS:
        command.make_context(call, rest)  # raises where the command line is wrong
    else:
        known = {flag for each in command.params for flag in each.opts}
        assert {word for word in rest if word.startswith("-")} <= known


def test_there_are_commands():
    assert len(CALLS) >= 9


def test_every_unit_that_is_copied_or_started_is_there():
    files = re.findall(r"/pilotlight/(packaging/\S+)", "\n".join(LINES))
    assert len(files) == 4
    assert [file for file in files if not (ROOT / file).is_file()] == []
    started = re.findall(r"^systemctl (?!daemon-reload)(.*)$", "\n".join(LINES), re.MULTILINE)
    units = {word for words in started for word in words.split() if word.startswith("pilotlight")}
    there = {path.name for path in (ROOT / "packaging").rglob("pilotlight*")}
    assert {unit if "." in unit else f"{unit}.service" for unit in units} <= there


def test_every_setting_exists():
    settings = {f"PILOTLIGHT_{field.name.upper()}" for field in fields(Settings)}
    named = set(re.findall(r"PILOTLIGHT_[A-Z_]+", PAGE)) - {"PILOTLIGHT_KEY"}
    assert named - {"PILOTLIGHT_URL"} <= settings
    assert set(re.findall(r"`--([a-z-]+)`", PAGE)) <= {
        field.name.replace("_", "-") for field in fields(Settings)
    }


def test_every_message_that_is_explained_is_one_of_ours():
    code = "".join(
        path.read_text() for folder in ("pilotlight", "cli") for path in (ROOT / folder).rglob("*.py")
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code).replace("`", "")
    messages = re.findall(r"^\| `([A-Za-z][^`]*)` \|", PAGE, re.MULTILINE)
    assert len(messages) >= 6
    for message in messages:
        parts = re.split(r" 8080 | process …|pilotlight ", message)
        assert [part for part in parts if part.strip() not in code] == [], message


def test_every_link_leads_to_a_page():
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGE)]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
