"""`pilotlight ps`: the instances that run now."""

import argparse

from cli import client, output


def configure(parser: argparse.ArgumentParser) -> None:
    """Take --json."""
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def run(arguments: argparse.Namespace) -> int:
    """Print each instance with what it uses. Raises Problem."""
    instances = client.find().get(client.path("instances"))["instances"]
    if arguments.json:
        output.show_json(instances)
        return 0
    if not instances:
        output.note("No instance runs; the next call starts one.")
        return 0
    heads = ("FUNCTION", "INSTANCE", "STATE", "AGE", "LAST USED", "MEMORY", "CPU", "PROCESSES", "START")
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
    print(output.table(heads, rows))
    return 0
