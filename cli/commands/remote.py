"""`pilotlight remote add`: connect this git repository to the platform."""

from pathlib import Path

import click

from cli import client, git
from cli.group import Group
from pilotlight.problems import Problem


@click.group(cls=Group, no_args_is_help=False)
def command() -> None:
    """Git remotes."""


@command.command(help="Add the git remote 'pilotlight', with its key, for this repository only.")
@click.option("--app", metavar="NAME", help="the app (default: the name of the repository's folder)")
def add(app: str | None) -> None:
    """Add the remote, or let it point to where the platform is now. Raises Problem."""
    platform = client.find()
    repository = git.top(Path.cwd())
    app = git.check_app(app) if app else git.app_name(repository.name)
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
