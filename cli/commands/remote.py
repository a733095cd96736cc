"""`pilotlight remote add`: connect this git repository to the platform."""

import argparse
from pathlib import Path

from cli import client, git
from pilotlight.problems import Problem


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the app's name."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    adding = actions.add_parser(
        "add", help="add the git remote 'pilotlight', with its key, for this repository only"
    )
    adding.add_argument(
        "--app", metavar="NAME", help="the app (default: the name of the repository's folder)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Add the remote, or let it point to where the platform is now. Raises Problem."""
    platform = client.find()
    repository = git.top(Path.cwd())
    app = git.check_app(arguments.app) if arguments.app else git.app_name(repository.name)
    if platform.key is None:
        raise Problem(
            "key-required",
            "No key for the platform was found. Set PILOTLIGHT_KEY; whoever runs it makes one with: "
            "pilotlight keys create NAME",
        )
    platform.get(client.path("apps"))  # so that a wrong key is refused here, not at the first push
    url = git.address(platform.url, app)
    former = git.attempt(repository, "remote", "get-url", git.REMOTE)
    if former.returncode != 0:
        git.run(repository, "remote", "add", git.REMOTE, url)
    elif former.stdout.strip() != url:
        git.run(repository, "remote", "set-url", git.REMOTE, url)
        print(f"The remote {git.REMOTE!r} pointed to {former.stdout.strip()} before.")
    git.keep_key(repository, platform.url, platform.key)
    branch = git.attempt(repository, "symbolic-ref", "--short", "HEAD").stdout.strip() or "main"
    print(f"The remote {git.REMOTE!r} is {url}. Next: git push {git.REMOTE} {branch}")
    return 0
