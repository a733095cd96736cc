"""Git repositories, packed into one file each, and made of such files again."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from builder.limits import Limits
from builder.repository import Repositories
from pilotlight import privileges
from pilotlight.ids import is_name
from pilotlight.problems import Problem
from pilotlight.settings import inherited

_WITHIN: Final = 3600.0  # seconds that git has for one of them
_EMPTY: Final = "Refusing to create empty bundle"


def pack(root: Path, into: Path) -> dict[str, str]:
    """Pack each repository below root as it is at one moment; return what HEAD of each leads to, by app.

    Those without any commit are left out. Raises Problem.
    """
    repositories = Repositories(root, Limits())
    heads: dict[str, str] = {}
    for app in repositories.apps():
        where = f"--git-dir={repositories.path(app)}"
        try:
            head = _git(repositories, (root,), where, "symbolic-ref", "HEAD").strip()
            with (into / f"{app}.bundle").open("xb") as file:
                words = ("bundle", "create", "--quiet", "-", "--all")
                _git(repositories, (root,), where, *words, output=file)
        except Problem as problem:
            if _EMPTY in problem.detail or not repositories.exists(app):
                continue
            raise
        heads[app] = head
    return heads


def unpack(bundles: Path, heads: Mapping[str, str], root: Path) -> None:
    """Make the repositories, of files called like their apps. Raises Problem, OSError."""
    repositories = Repositories(root, Limits())
    root.mkdir(mode=0o700)
    if os.geteuid() == 0:
        for each in (root, bundles, *bundles.iterdir()):
            os.chown(each, privileges.SERVICE_UID, privileges.SERVICE_UID)
    for app, head in heads.items():
        if not is_name(app):
            raise Problem("invalid-request", f"The backup names an app {app!r}, which can't be one.")
        path = str(repositories.path(app))
        _git(repositories, (root,), "init", "--quiet", "--bare", "--template=", path)
        # What was let in once is not judged again
        words = ("-c", "transfer.fsckObjects=false", "fetch", "--quiet", str(bundles / app), "+refs/*:refs/*")
        _git(repositories, (root, bundles), f"--git-dir={path}", *words)
        _git(repositories, (root,), f"--git-dir={path}", "symbolic-ref", "HEAD", head)


def _git(
    repositories: Repositories, folders: tuple[Path, ...], *words: str, output: IO[bytes] | None = None
) -> str:
    """Run git as the user whose the repositories are; return what it prints, unless that goes to a file."""
    confined = (sys.executable, "-P", "-m", "cli.backups.confined", *map(str, folders), "--")
    try:
        done = subprocess.run(
            (*confined, "git", *words),
            check=False,
            env={**repositories.environment(), **inherited("PYTHONPATH")},
            cwd=repositories.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.PIPE,
            timeout=_WITHIN,
        )
    except subprocess.TimeoutExpired as error:
        raise Problem("unavailable", f"git {words[1]} takes too long.") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise Problem("unavailable", f"git {' '.join(words)} failed: {said}")
    return "" if output is not None else done.stdout.decode(errors="replace")
