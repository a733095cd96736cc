"""compose.yaml gives the platform what the unit of the system's service does, and no more; docs/COMPOSE.md is true to it."""

import configparser
import re
from dataclasses import fields
from typing import Any

import pytest
import yaml

from cli.serve import SERVICES, STOP_WITHIN
from pilotlight.privileges import SERVICE_UID
from pilotlight.settings import Settings, parse_duration
from tests.support.commands import command_of
from tests.support.platform import ROOT

TEXT = (ROOT / "compose.yaml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
MACHINES = [FILE["services"][name] for name in ("one", "two")]
PAGE = (ROOT / "docs/COMPOSE.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
CALLS = re.findall(
    r"^(?:.*\$\()?docker compose exec .*?(pilotlight [^)\n]*)", "\n".join(BLOCKS), re.MULTILINE
)


def unit() -> configparser.SectionProxy:
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str
    parsed.read(ROOT / "packaging/pilotlight.service")
    return parsed["Service"]


@pytest.mark.parametrize("machine", MACHINES, ids=("one", "two"))
def test_a_machine_has_the_capabilities_of_the_unit_and_its_time_to_stop(machine: dict[str, Any]) -> None:
    assert machine["cap_drop"] == ["ALL"]
    ours, units = {f"CAP_{name}" for name in machine["cap_add"]}, set(unit()["CapabilityBoundingSet"].split())
    assert (ours - units, units - ours) == (set(), {"CAP_SYS_RESOURCE"})  # limits stay as Docker sets them
    assert machine["stop_grace_period"] == f"{unit()['TimeoutStopSec']}s"
    assert "no-new-privileges" in machine["security_opt"]
    assert "privileged" not in machine


def test_a_machine_is_killed_only_when_its_services_had_their_time() -> None:
    for machine in MACHINES:
        assert parse_duration(machine["stop_grace_period"]) > STOP_WITHIN * len(SERVICES)


def test_machines_differ_in_what_is_theirs_alone() -> None:
    one, two = (dict(machine["environment"]) for machine in MACHINES)
    assert one.keys() == two.keys() <= {f"PILOTLIGHT_{field.name.upper()}" for field in fields(Settings)}
    assert {name for name in one if one[name] != two[name]} == {
        "PILOTLIGHT_PORT",
        "PILOTLIGHT_MACHINE_ADDRESS",
    }


def test_redis_belongs_to_the_user_of_the_services() -> None:
    assert FILE["services"]["redis"]["user"] == f"{SERVICE_UID}:{SERVICE_UID}"
    assert f"chown {SERVICE_UID}:{SERVICE_UID} /redis" in FILE["services"]["keys"]["command"][0]


def test_what_can_be_set_is_named_on_the_page() -> None:
    set_there = set(re.findall(r"\$\{(\w+):-[^}]+\}", TEXT))
    assert len(set_there) == TEXT.count("${") >= 6
    assert {name for name in set_there if f"`{name}`" not in PAGE} == set()


@pytest.mark.parametrize("call", CALLS)
def test_every_command_on_the_page_takes_what_it_is_given(call: str) -> None:
    command, rest = command_of(call)
    command.make_context(call, rest)


def test_there_are_commands_on_the_page() -> None:
    assert len(CALLS) >= 3
