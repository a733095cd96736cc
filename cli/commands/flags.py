"""The settings as flags, one for each field of Settings; and the sockets that are handed over by number."""

import argparse
import os
import socket
from dataclasses import fields

from pilotlight.settings import Settings, current


def add(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting."""
    for setting in fields(Settings):
        name = setting.name.replace("_", "-")
        parser.add_argument(f"--{name}", metavar=name.upper(), help=setting.metadata["help"])
    parser.epilog = "Each flag is also PILOTLIGHT_… in the environment, such as PILOTLIGHT_MAX_BODY."


def settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings: flags, then environment, then defaults. Raises Problem."""
    return current({setting.name: getattr(arguments, setting.name) for setting in fields(Settings)})


def adopt(descriptor: int | None) -> socket.socket | None:
    """Take over a socket that the program which started this one has handed over."""
    if descriptor is None:
        return None
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
