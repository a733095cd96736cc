"""`pilotlight list`: the functions."""

import click

from cli import client, output
from cli.commands import flags

_HEADS = (
    *("FUNCTION", "APP", "RUNTIME", "ACCESS", "REVISION", "COMMIT"),
    *("UPDATED", "INSTANCES", "CALLS", "URL"),
)
_SPARE = ("APP", "COMMIT", "REVISION", "ACCESS", "UPDATED", "CALLS", "INSTANCES", "RUNTIME")


@click.command()
@flags.as_json
def command(*, as_json: bool) -> None:
    """Print what the platform knows of each function. Raises Problem."""
    platform = client.find()
    functions = platform.get(client.path("functions"))["functions"]
    if as_json:
        output.show_json(functions)
        return
    if not functions:
        output.note("No function is deployed yet. Make one with: pilotlight new python hello")
        return
    rows = [
        (
            each["name"],
            each["app"],
            each["config"]["runtime"],
            each["config"]["access"],
            each["revision"],
            each["commit"][:10],
            f"{output.ago(each['updated'])} ago",
            str(each["instances"]),
            str(each["calls"]),
            f"{platform.url}/function/{each['name']}",
        )
        for each in functions
    ]
    output.show_table(_HEADS, rows, _SPARE)
