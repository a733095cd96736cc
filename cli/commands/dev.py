"""`pilotlight dev FOLDER`: the functions of a working tree, in the sandboxes of a platform of their own.

The folder is pushed as it stands, and again at each save, from a repository beside it: nothing is committed
to the developer's own.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Final

import click

from cli import client, git, output, own_platform, watch
from cli.client import Platform
from pilotlight.problems import Problem

_PREFIX: Final = "pilotlight-dev-"
_AUTHOR: Final = ("-c", "user.name=dev", "-c", "user.email=dev@localhost", "-c", "commit.gpgSign=false")


@click.command()
@click.argument(
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="a function's folder, or one that holds several (default: this one)",
)
@click.option(
    "--port", type=int, metavar="PORT", help="where it listens (default: 8080 or the next free one)"
)
@click.option("--debug", is_flag=True, help="let debuggers attach to functions in Python and Node")
@click.option(
    "--debug-port",
    type=int,
    metavar="PORT",
    help="where they attach (default: 5678 for Python, 9229 for Node, or the next free one)",
)
def command(folder: Path, port: int | None, *, debug: bool, debug_port: int | None) -> None:
    """Run them until Ctrl-C, with each change on save; what they print is shown. Raises Problem."""
    folder = folder.resolve()
    app = git.app_name(folder.name)
    signal.signal(signal.SIGTERM, _exit)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # in step with what git prints
    own_platform.sweep(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"))
    where = port or own_platform.free_port("this platform")
    top = Path(tempfile.mkdtemp(prefix=_PREFIX))
    top.chmod(0o711)  # the services of a platform that root starts must reach their sockets
    # A call that stood at a breakpoint must not make the next ones look too slow to wait for
    flags = ("--debug", "yes", "--queue-wait", "1h") if debug or debug_port else ()
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(own_platform.running(top, where, *flags))
        print("\n".join((started.line, *started.notes)))
        ports = None
        if flags:
            from cli.debugging import Ports

            ports = stack.enter_context(contextlib.closing(Ports(started, folder, app, debug_port)))
        mirror = _Mirror(folder, top / "repository", started.platform, app)
        followed: set[str] = set()
        for _ in watch.changes(folder):
            if mirror.push():
                _follow(started.platform, app, followed)
                if ports is not None:
                    ports.open_new()


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


class _Mirror:
    """A repository of ours with the folder as its working tree."""

    def __init__(self, folder: Path, repository: Path, platform: Platform, app: str) -> None:
        self._folder = folder
        repository.mkdir()
        git.run(repository, "init", "--quiet", "--initial-branch=main")
        (repository / ".git/info").mkdir(exist_ok=True)
        (repository / ".git/info/exclude").write_text("".join(f"{name}/\n" for name in watch.IGNORED))
        git.run(repository, "remote", "add", git.REMOTE, git.address(platform.url, app))
        git.keep_key(repository, platform.url, platform.key or "")
        self._git = (f"--git-dir={repository / '.git'}", f"--work-tree={folder}")

    def push(self) -> bool:
        """Push the folder as it is now; git shows the build as it goes. Return whether it went live."""
        git.run(self._folder, *self._git, "add", "--all")
        git.run(
            self._folder,
            *self._git,
            *_AUTHOR,
            "commit",
            "--quiet",
            "--no-verify",
            "--allow-empty",
            "-m",
            "save",
        )
        words = ("git", *self._git, "push", "--quiet", "--force", git.REMOTE, "main")
        return subprocess.run(words, cwd=self._folder, check=False).returncode == 0


def _follow(platform: Platform, app: str, followed: set[str]) -> None:
    """Show what functions print that were not there before."""
    for name in platform.get(client.path("apps", app))["functions"]:
        if name not in followed:
            followed.add(name)
            threading.Thread(target=_show, args=(platform, name), name=f"log of {name}", daemon=True).start()


def _show(platform: Platform, name: str) -> None:
    where = client.path("functions", name, "logs") + "?tail=1000&follow=true"
    try:
        with platform.request("GET", where, timeout=None) as response:
            while line := response.readline():
                print(f"{name} | {output.harmless(json.loads(line)['line'])}")
    except (Problem, OSError):
        return  # the platform is ending, or the function was deleted
