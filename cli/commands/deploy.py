"""`pilotlight deploy --from URL`: push a folder of a git repository that lies elsewhere."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from cli import client, git, output
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from git import Repo

_AUTHOR = {
    "GIT_AUTHOR_NAME": "Pilotlight",
    "GIT_AUTHOR_EMAIL": "pilotlight@localhost",
    "GIT_COMMITTER_NAME": "Pilotlight",
    "GIT_COMMITTER_EMAIL": "pilotlight@localhost",
}


@click.command()
@click.option("--from", "source", required=True, metavar="URL", help="the git repository: URL or path")
@click.option("--ref", default="HEAD", metavar="REF", help="a branch, tag or commit (default: its HEAD)")
@click.option("--path", default="", metavar="SUB/FOLDER", help="the folder to deploy (default: all of it)")
@click.option("--app", metavar="NAME", help="the app (default: the name of that folder or repository)")
def command(*, source: str, ref: str, path: str, app: str | None) -> int:
    """Fetch, cut the folder out, push; the build's lines come live on stderr. Raises Problem."""
    platform = client.find()
    folder = _folder(path)
    name = folder.name or PurePosixPath(source.rstrip("/")).name.removesuffix(".git")
    app = git.check_app(app) if app else git.app_name(name)
    signal.signal(signal.SIGTERM, _exit)  # so that the folder goes, too, when this process is ended
    with tempfile.TemporaryDirectory(prefix="pilotlight-deploy-") as temporary:
        from git import Repo

        with Repo.init(temporary, bare=True) as repository:
            commit = _fetch(repository, source, ref)
            tree = _tree(repository, commit, folder, f"{source} at {ref}")
            what = f"{folder} of {source}" if folder.name else source
            with repository.git.custom_environment(**_AUTHOR):
                made = repository.git.commit_tree(tree, "-m", f"Deploy {what} at {commit}")
        return _push(Path(temporary), platform, app, made)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _folder(text: str) -> PurePosixPath:
    folder = PurePosixPath(text.strip("/") or ".")
    if ".." in folder.parts:
        raise Problem("invalid-request", f"--path {text}: name a folder inside of the repository.")
    return folder


def _fetch(repository: "Repo", source: str, ref: str) -> str:
    """Bring one commit, without its history where the other side can do that; return its id."""
    from git import GitCommandError
    from git.exc import UnsafeProtocolError

    if source.startswith("-") or ref.startswith("-"):
        raise Problem("invalid-request", "A repository or a ref can't start with a dash.")
    source = str(Path(source).resolve()) if Path(source).is_dir() else source
    try:
        repository.git.check_unsafe_protocols(source)
        try:
            _run_fetch(repository, "--depth=1", "--no-tags", source, ref)
            return str(repository.git.rev_parse("FETCH_HEAD^{commit}"))
        except GitCommandError:
            # Some servers give no single commit by its id, and none knows a shortened one
            _run_fetch(repository, source, "+refs/heads/*:refs/remotes/from/*", "+refs/tags/*:refs/tags/*")
            return str(repository.git.rev_parse("--verify", f"{ref}^{{commit}}"))
    except UnsafeProtocolError as error:
        raise Problem("invalid-request", f"{source}: this kind of address is not allowed.") from error
    except GitCommandError as error:
        raise Problem("invalid-request", f"{ref} of {source} can't be read: {_words(error)}") from error


def _run_fetch(repository: "Repo", *words: str) -> None:
    """Run git fetch, and show how far it is, once git tells: before that it may ask for a password.

    Raises GitCommandError.
    """
    if not sys.stderr.isatty():
        repository.git.fetch("--quiet", *words)
        return
    from git.cmd import handle_process_output

    with output.telling() as tell:
        said: list[str] = []

        def hear(line: str) -> None:
            tell(line.strip()) if "%" in line else said.append(line)

        fetch = repository.git.fetch("--progress", *words, as_process=True, universal_newlines=True)
        handle_process_output(fetch, None, hear, finalizer=None, decode_streams=False)
        fetch.wait(stderr="".join(said))


def _tree(repository: "Repo", commit: str, folder: PurePosixPath, where: str) -> str:
    """Return the tree of a folder. Raises Problem where there is none."""
    from git import GitCommandError

    if not folder.name:
        return f"{commit}^{{tree}}"
    try:
        tree = str(repository.git.rev_parse("--verify", f"{commit}:{folder}"))
        if repository.git.cat_file("-t", tree) == "tree":
            return tree
    except GitCommandError:
        pass  # there is nothing of that name
    folders = repository.git.ls_tree("-d", "--name-only", commit).replace("\n", ", ") or "none"
    raise Problem("not-found", f"There is no folder {folder} in {where}. There are: {folders}")


def _push(repository: Path, platform: client.Platform, app: str, commit: str) -> int:
    """Push one commit to the branch that the app is deployed from; git passes on what the platform prints."""
    url = git.address(platform.url, app)
    if platform.key is not None:
        git.keep_key(repository, platform.url, platform.key)
    heads = git.attempt(repository, "ls-remote", "--symref", url, "HEAD")
    first = heads.stdout.split()
    branch = first[1] if heads.returncode == 0 and first[:1] == ["ref:"] else "refs/heads/main"
    pushed = subprocess.run(
        ["git", "push", "--force", url, f"{commit}:{branch}"], cwd=repository, check=False
    )
    return 0 if pushed.returncode == 0 else 1


def _words(error: Any) -> str:
    """Return what git said, without GitPython's frame around it."""
    text = str(error.stderr).strip().removeprefix("stderr:").strip().strip("'").strip()
    return text or f"git ended with {error.status}"
