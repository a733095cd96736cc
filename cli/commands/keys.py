"""`pilotlight keys list|create|delete`: who may use the platform."""

import click

from cli import client, complete, output
from cli.commands import flags
from cli.group import Group


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
    rows = [(each["id"], each["name"], f"{output.ago(each['created'])} ago") for each in found]
    output.show_table(("ID", "NAME", "CREATED"), rows, spare=("CREATED",))


@command.command(help="Create one and print it; it is told only once.")
@click.argument("name", metavar="NAME", help="what it is for")
@flags.as_json
def create(name: str, *, as_json: bool) -> None:
    """Print the key alone to stdout. Raises Problem."""
    made = client.find().call("POST", client.path("keys"), {"name": name})
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
