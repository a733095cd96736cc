"""`pilotlight remote add`: connect this git repository to the platform."""

import socket
from pathlib import Path

import click

from cli import client, git
from cli.client import Platform
from cli.group import Group
from pilotlight.problems import Problem


@click.group(cls=Group, no_args_is_help=False)
def command() -> None:
    """Git remotes."""


@command.command(help="Add the git remote 'pilotlight', with a key for this app, for this repository only.")
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
    key = _key(platform, platform.key, repository, app)
    url = git.address(platform.url, app)
    former = git.attempt(repository, "remote", "get-url", git.REMOTE)
    if former.returncode != 0:
        git.run(repository, "remote", "add", git.REMOTE, url)
    elif former.stdout.strip() != url:
        git.run(repository, "remote", "set-url", git.REMOTE, url)
        print(f"The remote {git.REMOTE!r} pointed to {former.stdout.strip()} before.")
    git.keep_key(repository, platform.url, key, platform.certificate)
    branch = git.attempt(repository, "symbolic-ref", "--short", "HEAD").stdout.strip() or "main"
    print(f"The remote {git.REMOTE!r} is {url}. Next: git push {git.REMOTE} {branch}")


def _key(platform: Platform, ours: str, repository: Path, app: str) -> str:
    """Return the key for this repository: the one that it has, else a new one that is for this app only.

    Where ours can't make others it is ours itself. Raises Problem where that can't push either.
    """
    kept = git.kept_key(repository, platform.url)
    if kept is not None and kept != ours and _refused(Platform(platform.url, kept), app) is None:
        return kept
    wanted = {"name": f"git remote on {socket.gethostname()}"[:100], "scopes": ["deploy"], "app": app}
    try:
        return str(platform.call("POST", client.path("keys"), wanted)["key"])
    except Problem as problem:
        if problem.kind != "forbidden":
            raise
    if (refusal := _refused(platform, app)) is not None:
        raise refusal  # here, not at the first push
    return ours


def _refused(platform: Platform, app: str) -> Problem | None:
    """Return why a key can't push an app, None where it can; the app need not be there yet."""
    try:
        platform.get(client.path("apps", app))
    except Problem as problem:
        return None if problem.kind == "not-found" else problem
    return None
