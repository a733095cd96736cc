"""`pilotlight rollback NAME [REVISION]`: make a former revision live again."""

import argparse

from cli import client, output
from pilotlight.problems import Problem


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the function's name and the revision."""
    parser.add_argument("name", metavar="NAME", help="the function")
    parser.add_argument(
        "revision", nargs="?", metavar="REVISION", help="its first characters (default: the one before)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Switch, and tell what is live now. Raises Problem."""
    platform = client.find()
    wanted = {}
    if arguments.revision is not None:
        wanted["revision"] = _resolve(platform, arguments.name, arguments.revision)
    live = platform.call("POST", client.path("functions", arguments.name, "rollback"), wanted)
    print(
        f"{arguments.name} is at revision {live['id'][:12]} again "
        f"(commit {live['commit'][:10]}, built {output.ago(live['created'])} ago)"
    )
    return 0


def _resolve(platform: client.Platform, function: str, start: str) -> str:
    """Return the id of the revision that starts so."""
    kept = platform.get(client.path("functions", function, "revisions"))["revisions"]
    fitting = [each["id"] for each in kept if each["id"].startswith(start)]
    if len(fitting) == 1:
        return str(fitting[0])
    known = ", ".join(each["id"][:12] for each in kept)
    what = "More than one revision starts" if fitting else "No revision that is kept starts"
    raise Problem("not-found", f"{what} with {start}. There are, newest first: {known}")
