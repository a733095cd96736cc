"""`pilotlight audit`: who did what."""

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from cli import client, output
from cli.commands import flags


@click.command()
@click.option("--tail", default=50, show_default=True, metavar="N", help="how many of the last entries")
@flags.as_json
def command(*, tail: int, as_json: bool) -> None:
    """Print the last entries, oldest first. Raises Problem."""
    found = client.find().get(f"{client.path('audit')}?tail={tail}")["entries"]
    if as_json:
        output.show_json(found)
        return
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(each["time"])),
            each["action"],
            plain(each["by"].get("name") or "the platform"),
            plain(each["by"].get("address") or "-"),
            each["outcome"],
            _details(each["details"]),
        )
        for each in found
    ]
    heads = ("TIME (UTC)", "ACTION", "KEY", "FROM", "OUTCOME", "WHAT")
    output.show_table(heads, rows, spare=("FROM",))


def _details(details: Mapping[str, Any]) -> str:
    """Return what it was done to, such as `app=shop commit=1f0e…`."""
    told = {name: value for name, value in details.items() if value is not None}
    return " ".join(f"{name}={_told(value)}" for name, value in told.items())


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_told, value))
    if isinstance(value, dict):
        return ",".join(f"{plain(name)}:{_told(each)}" for name, each in value.items())
    return plain(value) if isinstance(value, str) else json.dumps(value)


def plain(text: str) -> str:
    """Return a text whose control characters, if any, do nothing to the terminal."""
    return text if text.isprintable() else json.dumps(text)
