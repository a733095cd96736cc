"""`pilotlight gateway|function-service|builder|baas`: one service in this process."""

import os
from typing import Any

import click

from cli.commands import flags
from cli.serve import run_service


@click.command(epilog=flags.EPILOG)
@flags.settings
@flags.descriptors("lifeline", "listener", "private", "machines", "number", "claim", "anchor")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    lifeline: int | None,
    listener: int | None,
    private: int | None,
    machines: int | None,
    number: int | None,
    claim: int | None,
    anchor: int | None,
    **chosen: Any,
) -> int:
    """Serve until SIGINT or SIGTERM, as the service that the command is called after."""
    if claim is not None:
        # Held open, never read: the data folder stays claimed until the last service of it has ended
        os.set_inheritable(claim, False)
    return run_service(
        context.info_name or "",
        flags.chosen(chosen),
        lifeline=flags.adopt(lifeline),
        port=flags.adopt(listener),
        private=flags.adopt(private),
        machines=flags.adopt(machines),
        number=number,
        anchor=flags.adopt(anchor),
    )
