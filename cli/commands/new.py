"""`pilotlight new RUNTIME NAME`: a folder with a function that works."""

import shutil
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from cli import git
from pilotlight.ids import NAME_RULE, is_name
from pilotlight.problems import Problem
from runtimes.declaration import load_all

_PLACEHOLDER = "__NAME__"


def _runtimes(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the runtimes that begin so."""
    return [
        CompletionItem(name, help=runtime.title)
        for name, runtime in load_all().items()
        if name.startswith(incomplete)
    ]


@click.command()
@click.argument(
    "runtime",
    metavar="RUNTIME",
    help="python, node, native: a folder of runtimes/",
    shell_complete=_runtimes,
)
@click.argument("name", metavar="NAME", help="the function; also the folder that is made here")
def command(runtime: str, name: str) -> None:
    """Copy the runtime's template. Raises Problem."""
    runtimes = load_all()
    if runtime not in runtimes:
        raise Problem("invalid-request", f"There is no runtime {runtime!r}. There are: {', '.join(runtimes)}")
    if not is_name(name):
        raise Problem("invalid-request", f"{name!r} can't name a function. A name has {NAME_RULE}.")
    create(runtimes[runtime].template, Path.cwd() / name, name)
    where = begin_repository(Path.cwd() / name)
    print(f"Made {name}/{where}. Next:")
    print(f"  cd {name} && git add . && git commit -m {name}")
    print("  pilotlight remote add && git push pilotlight main")


def begin_repository(folder: Path) -> str:
    """Make folder a git repository with the branch main, unless it lies in one; return words that say so."""
    if git.attempt(folder, "rev-parse", "--is-inside-work-tree").returncode == 0:
        return ""
    git.run(folder, "init", "--quiet", "--initial-branch=main")
    return ", a git repository"


def create(template: Path, folder: Path, name: str) -> None:
    """Copy a template to folder, with the name filled in. Raises Problem where folder is in use."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise Problem("conflict", f"{folder} exists and is not an empty folder. Choose another name.")
    try:
        shutil.copytree(template, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        for file in folder.rglob("*"):
            if file.is_file() and _PLACEHOLDER in (text := file.read_text()):
                file.write_text(text.replace(_PLACEHOLDER, name))
    except OSError as error:
        raise Problem("invalid-request", f"{folder} can't be made: {error.strerror}.") from error
