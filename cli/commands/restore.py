"""`pilotlight restore FILE`: a data folder, made of a backup."""

import time
from pathlib import Path

import click

from cli import output
from pilotlight.datafolder import DataFolder
from pilotlight.settings import current

_EPILOG = """\
The data folder must be empty. What is restored keeps its state in files; `pilotlight store migrate` moves it
into a Redis. The keys of the backup are valid again, also such as were deleted since.
"""


@click.command(epilog=_EPILOG)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data", metavar="DATA", help="the folder that holds all state")
def command(*, file: Path, data: str | None) -> None:
    """Restore a backup, and tell from when it is. Raises Problem."""
    from cli.backups.bring_back import bring_back

    folder = DataFolder(current({"data": data}).data)
    with output.ending_tidily(), output.working("Restoring…"):
        head = bring_back(file.absolute(), folder)
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(head["made"]))
    print(f"{folder.root} is as it was at {made}. Start it with: pilotlight up --data {folder.root}")
