"""`pilotlight rollback NAME [REVISION]`: make a former revision live again."""

import click

from cli import client, complete, output
from cli.commands import flags
from pilotlight.problems import Problem


@click.command()
@flags.function
@click.argument(
    "revision",
    required=False,
    metavar="[REVISION]",
    help="its first characters, see pilotlight revisions (default: the one before)",
    shell_complete=complete.revisions,
)
def command(name: str, revision: str | None) -> None:
    """Switch, and tell what is live now. Raises Problem."""
    platform = client.find()
    wanted = {} if revision is None else {"revision": _resolve(platform, name, revision)}
    live = platform.call("POST", client.path("functions", name, "rollback"), wanted)
    print(
        f"{name} is at revision {live['id']} again "
        f"(commit {live['commit'][:10]}, built {output.ago(live['created'])} ago)"
    )


def _resolve(platform: client.Platform, function: str, start: str) -> str:
    """Return the id of the revision that starts so."""
    kept = platform.get(client.path("functions", function, "revisions"))["revisions"]
    fitting = [each["id"] for each in kept if each["id"].startswith(start)]
    if len(fitting) == 1:
        return str(fitting[0])
    known = ", ".join(each["id"] for each in kept)
    what = "More than one revision starts" if fitting else "No revision that is kept starts"
    raise Problem("not-found", f"{what} with {start}. There are, newest first: {known}")
