"""`pilotlight ps`: the instances that run now."""

import click

from cli import client, output
from cli.commands import flags

_HEADS = ("FUNCTION", "INSTANCE", "STATE", "AGE", "LAST USED", "MEMORY", "CPU", "PROCESSES", "START")
_SPARE = ("START", "PROCESSES", "CPU", "AGE", "STATE", "LAST USED")


@click.command()
@flags.as_json
def command(*, as_json: bool) -> None:
    """Print each instance with what it uses. Raises Problem."""
    instances = client.find().get(client.path("instances"))["instances"]
    if as_json:
        output.show_json(instances)
        return
    if not instances:
        output.note("No instance runs; the next call starts one.")
        return
    rows = [
        (
            each["function"],
            each["id"],
            each["state"],
            output.ago(each["created"]),
            f"{output.ago(each['last_used'])} ago",
            output.size(each["memory"]),
            f"{each['cpu_seconds']:.2f} s",
            str(each["processes"]),
            output.milliseconds(sum(each["stages"].values())),
        )
        for each in instances
    ]
    output.show_table(_HEADS, rows, _SPARE)
