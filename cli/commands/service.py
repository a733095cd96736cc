"""`pilotlight gateway|function-service|builder|baas`: one service in this process."""

import argparse
import os

from cli.commands import flags
from cli.serve import run_service


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the settings, and the descriptors that `up` hands over."""
    flags.add(parser)
    for name in ("--lifeline", "--listener", "--claim"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    if arguments.claim is not None:
        # Held open, never read: the data folder stays claimed until the last service of it has ended
        os.set_inheritable(arguments.claim, False)
    return run_service(
        arguments.command,
        flags.settings(arguments),
        lifeline=flags.adopt(arguments.lifeline),
        port=flags.adopt(arguments.listener),
    )
