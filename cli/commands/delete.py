"""`pilotlight delete NAME`: delete a function."""

import argparse

from cli import client


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the function's name."""
    parser.add_argument("name", metavar="NAME", help="the function")


def run(arguments: argparse.Namespace) -> int:
    """Delete it, with its revisions and logs. Raises Problem."""
    client.find().call("DELETE", client.path("functions", arguments.name))
    print(f"{arguments.name} is deleted")
    return 0
