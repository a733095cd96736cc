"""`pilotlight keys list|create|delete`: who may use the platform."""

import re
import time
from typing import Final

import click

from cli import client, complete, output
from cli.commands import flags
from cli.group import Group
from pilotlight.problems import Problem

SCOPES: Final = ("invoke", "deploy", "data", "admin")
_UNITS: Final = {"m": 60, "h": 3600, "d": 86400}


@click.group(cls=Group, no_args_is_help=False)
def command() -> None:
    """Keys."""


@command.command("list", help="List them.")
@flags.as_json
def list_(*, as_json: bool) -> None:
    """Print what is known of each key, which is all but the key itself. Raises Problem."""
    found = client.find().get(client.path("keys"))["keys"]
    if as_json:
        output.show_json(found)
        return
    rows = [
        (
            each["id"],
            each["name"],
            ",".join(each["scopes"]),
            each["app"] or "all",
            _end(each["expires"]),
            f"{output.ago(each['created'])} ago",
        )
        for each in found
    ]
    heads = ("ID", "NAME", "SCOPE", "APP", "EXPIRES", "CREATED")
    output.show_table(heads, rows, spare=("CREATED", "EXPIRES"))


@command.command(help="Create one and print it; it is told only once.")
@click.argument("name", metavar="NAME", help="what it is for")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    default=("admin",),
    show_default=True,
    help="what it is good for; may be given several times",
)
@click.option("--app", metavar="NAME", help="the only app that it is good for (default: all)")
@click.option("--expires", metavar="TIME", help="how long it lasts, such as 12h or 90d (default: for ever)")
@flags.as_json
def create(
    name: str, *, scopes: tuple[str, ...], app: str | None, expires: str | None, as_json: bool
) -> None:
    """Print the key alone to stdout. Raises Problem."""
    end = None if expires is None else time.time() + _seconds(expires)
    wanted = {"name": name, "scopes": scopes, "app": app, "expires": end}
    made = client.find().call("POST", client.path("keys"), wanted)
    if as_json:
        output.show_json(made)
        return
    output.note(f"The key {made['name']!r} has the id {made['id']}. It is shown only now:")
    print(made["key"])


@command.command(help="Delete one.")
@click.argument("name", metavar="ID", help="as pilotlight keys list shows it", shell_complete=complete.keys)
def delete(name: str) -> None:
    """Delete a key, which works no longer from then on. Raises Problem."""
    client.find().call("DELETE", client.path("keys", name))
    print(f"{name} is deleted")


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text)
    if match is None:
        raise Problem("invalid-request", f"--expires {text}: write it like 30m, 12h or 90d.")
    return int(match[1]) * _UNITS[match[2]]


def _end(moment: float | None) -> str:
    """Tell when a key ends."""
    if moment is None:
        return "never"
    if moment <= time.time():
        return f"{output.ago(moment)} ago"
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
