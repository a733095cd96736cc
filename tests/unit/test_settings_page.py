"""docs/SETTINGS.md names every setting, and the default that each really has."""

import re
from dataclasses import fields

import pytest

from pilotlight.settings import Settings
from tests.support.platform import ROOT

PAGE = (ROOT / "docs/SETTINGS.md").read_text()
ROWS = re.findall(r"^\| (`--.*?) \|(.*?)\| .+ \|$", PAGE, re.MULTILINE)
NAMED = {flag: default.strip() for flags, default in ROWS for flag in re.findall(r"`(--[\w-]+)`", flags)}
SETTINGS = {f"--{setting.name.replace('_', '-')}": setting for setting in fields(Settings)}
PARSED = {flag: default.strip("`") for flag, default in NAMED.items() if re.fullmatch(r"`[\w.]+`", default)}


def test_every_setting_has_a_place():
    assert sorted(NAMED) == sorted(SETTINGS)


@pytest.mark.parametrize("flag", sorted(PARSED))
def test_what_is_said_to_be_the_default_is(flag):
    assert SETTINGS[flag].metadata["parse"](PARSED[flag]) == SETTINGS[flag].default
