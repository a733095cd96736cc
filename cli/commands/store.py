"""`pilotlight store migrate`: all that a platform keeps goes from one store into another."""

import click

from cli import output, store_places
from cli.group import Group
from pilotlight import store_whole


@click.group(cls=Group, no_args_is_help=False)
def command() -> None:
    """Where the platform keeps its state."""


_PURPOSE = "pilotlight store migrate"

_EPILOG = """\
FROM and TO are each one of

\b
sqlite              the files of the data folder (PILOTLIGHT_DATA)
sqlite:FOLDER       those of another data folder
redis://HOST:PORT/0, rediss://…, unix:///PATH   a Redis
redis+sentinel://HOST:PORT,…/SERVICE/0          the one that sentinels name
redis+cluster://HOST:PORT,…                     a Cluster

TO must be empty, and FROM stays as it is. Layers, repositories, logs and secrets.key are in the data folder
in any case. Where it was interrupted, run it again.
"""


@command.command("migrate", help="Copy the registry and all documents.", epilog=_EPILOG)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def migrate(*, source: str, target: str) -> None:
    """Copy all, while no platform runs on either, and verify it. Raises Problem."""
    with (
        output.ending_tidily(),
        store_places.sources(source, _PURPOSE) as sources,
        store_places.targets(target, _PURPOSE) as targets,
        output.working("Copying…"),
    ):
        copied = store_whole.copy(sources, targets)
    rows = [(name, str(copied[name].entries), copied[name].sha256) for name in store_whole.NAMES]
    output.show_table(("STORE", "ENTRIES", "SHA-256 ON BOTH SIDES"), rows)
