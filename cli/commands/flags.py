"""The settings as flags: one for each field of Settings."""

import argparse
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
