"""`pilotlight list`: the functions."""

import argparse

from cli import client, output


def configure(parser: argparse.ArgumentParser) -> None:
    """Take --json."""
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def run(arguments: argparse.Namespace) -> int:
    """Print what the platform knows of each function. Raises Problem."""
    platform = client.find()
    functions = platform.get(client.path("functions"))["functions"]
    if arguments.json:
        output.show_json(functions)
        return 0
    if not functions:
        output.note("No function is deployed yet. Make one with: pilotlight new python hello")
        return 0
    heads = (
        "FUNCTION",
        "APP",
        "RUNTIME",
        "ACCESS",
        "REVISION",
        "COMMIT",
        "UPDATED",
        "INSTANCES",
        "CALLS",
        "URL",
    )
    rows = [
        (
            each["name"],
            each["app"],
            each["config"]["runtime"],
            each["config"]["access"],
            each["revision"][:12],
            each["commit"][:10],
            f"{output.ago(each['updated'])} ago",
            str(each["instances"]),
            str(each["calls"]),
            f"{platform.url}/function/{each['name']}",
        )
        for each in functions
    ]
    print(output.table(heads, rows))
    return 0
