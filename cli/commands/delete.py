"""`pilotlight delete NAME`: delete a function."""

import click

from cli import client
from cli.commands import flags


@click.command()
@flags.function
def command(name: str) -> None:
    """Delete it, with its revisions and logs. Raises Problem."""
    client.find().call("DELETE", client.path("functions", name))
    print(f"{name} is deleted")
