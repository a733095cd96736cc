"""`pilotlight backup FILE`: all that a platform keeps, in one file, while it runs."""

from pathlib import Path

import click

from cli import output
from pilotlight.settings import current

_EPILOG = """\
The file holds functions, repositories, documents, the audit log, keys and secrets, and the key that the
secrets are encrypted with, unless that lies elsewhere (--secrets-key): whoever reads it may do everything.
Its mode is 0600. Logs of functions are not in it. It is a tar, packed with gzip.
"""


@click.command(epilog=_EPILOG)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data", metavar="DATA", help="the folder that holds all state")
@click.option("--store", metavar="STORE", help="where the platform keeps its state, as for `pilotlight up`")
def command(*, file: Path, data: str | None, store: str | None) -> None:
    """Write a backup, and tell what is in it. Raises Problem."""
    from cli.backups.take import take

    with output.ending_tidily(), output.working("Taking a backup…"):
        taken = take(current({"data": data, "store": store}), file.absolute())
    names = ("functions", "revisions", "layers", "repositories", "documents", "keys")
    numbers = ", ".join(f"{name}: {getattr(taken, name)}" for name in names)
    print(f"{taken.file} ({output.size(taken.bytes)}) holds {numbers}.")
    if taken.secrets_key:
        output.note("It holds the keys, and the key of the secrets: who reads it may do everything.")
    else:
        output.note("The key of the secrets is not in it: keep a copy of the file that --secrets-key names.")
    for digest in taken.missing_layers:
        output.note(
            f"The layer {digest} is missing on the platform itself; what needs it has to be pushed again."
        )
