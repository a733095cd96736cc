"""What a word of the command line may become, asked of the platform that runs.

Somebody waits for the Tab key: so quickly, and with nothing where no platform answers.
"""

import http.client
import json
from typing import Any, Final

import click

from cli import client
from pilotlight.problems import Problem

_WITHIN: Final = 1.0


def functions(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of functions that begin so."""
    return _fitting(_ask("functions"), "name", incomplete)


def revisions(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the revisions of the function that stands before."""
    name = context.params.get("name")
    return [] if name is None else _fitting(_ask("functions", name, "revisions"), "id", incomplete)


def keys(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of keys."""
    return _fitting(_ask("keys"), "id", incomplete)


def secrets(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of secrets."""
    return [name for name in _ask("secrets") if name.startswith(incomplete)]


def _fitting(found: list[dict[str, Any]], member: str, incomplete: str) -> list[str]:
    return [each[member] for each in found if each[member].startswith(incomplete)]


def _ask(*segments: str) -> list[Any]:
    """Return a list of the control API, empty where it can't be had: there is nowhere to say why."""
    try:
        with client.find().request("GET", client.path(*segments), timeout=_WITHIN) as response:
            if response.status != 200:
                return []
            found: list[Any] = json.loads(response.read())[segments[-1]]
            return found
    except (Problem, OSError, http.client.HTTPException, ValueError, KeyError):
        return []
