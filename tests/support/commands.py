"""The command that a line of a page stands for."""

import shlex

import click

from cli.main import COMMANDS, program


def command_of(call: str) -> tuple[click.Command, list[str]]:
    """Return the command of a line such as `pilotlight keys list --json`, and the words behind its name."""
    words = shlex.split(call)[1:]
    assert words[0] in COMMANDS
    command = program.get_command(click.Context(program), words[0])
    rest = words[1:]
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), rest.pop(0))
    assert command is not None
    return command, rest
