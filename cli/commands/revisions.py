"""`pilotlight revisions NAME`: the revisions of a function that are kept, any of which `rollback` takes."""

import click

from cli import client, output
from cli.commands import flags

_HEADS = ("REVISION", "LIVE", "COMMIT", "BUILT", "RUNTIME", "HANDLER", "MEMORY")
_SPARE = ("HANDLER", "MEMORY", "RUNTIME", "COMMIT")


@click.command()
@flags.function
@flags.as_json
def command(name: str, *, as_json: bool) -> None:
    """Print each revision, newest first. Raises Problem."""
    platform = client.find()
    live = platform.get(client.path("functions", name))["revision"]
    kept = platform.get(client.path("functions", name, "revisions"))["revisions"]
    if as_json:
        output.show_json([{**each, "live": each["id"] == live} for each in kept])
        return
    rows = [
        (
            each["id"],
            "yes" if each["id"] == live else "",
            each["commit"][:10],
            f"{output.ago(each['created'])} ago",
            each["config"]["runtime"],
            each["config"]["handler"],
            output.size(each["config"]["memory"]),
        )
        for each in kept
    ]
    output.show_table(_HEADS, rows, _SPARE)
