"""What several commands take: the settings as flags, one for each field of Settings; --json; a function.

And the sockets that one process hands to another by number.
"""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

import click

from cli import complete
from pilotlight.settings import Settings, current

as_json: Final = click.option("--json", "as_json", is_flag=True, help="print JSON for machines")

function: Final = click.argument(
    "name", metavar="NAME", help="the function", shell_complete=complete.functions
)

EPILOG: Final = "Each setting is also PILOTLIGHT_… in the environment, such as PILOTLIGHT_MAX_BODY."


def settings(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a flag for each setting; it gets all of them as keywords, for `chosen`."""
    for setting in reversed(fields(Settings)):
        name = setting.name.replace("_", "-")
        flag = click.option(f"--{name}", metavar=name.upper(), help=setting.metadata["help"])
        callback = flag(callback)
    return callback


def descriptors(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command flags for what is handed over by number: an agreement between our own processes."""

    def add(callback: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            callback = click.option(f"--{name}", type=int, hidden=True)(callback)
        return callback

    return add


def chosen(flags: Mapping[str, str | None]) -> Settings:
    """Return the settings: flags, then environment, then defaults. Raises Problem."""
    return current(flags)


def adopt(descriptor: int | None) -> socket.socket | None:
    """Take over a socket that the program which started this one has handed over."""
    if descriptor is None:
        return None
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
