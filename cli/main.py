"""The command line: names and one-line descriptions.

Each command is the object `command` of a module of its own, imported when it is asked for, so that
`pilotlight --help` is quick. Its callback returns the exit code, or nothing where it worked.
Exit codes: 0 it worked, 1 it did not, 2 the command line was wrong.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from cli import output
from cli.group import LazyGroup
from pilotlight.problems import Problem

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("cli.commands.up", "start the platform on this machine, in the foreground"),
    "new": ("cli.commands.new", "make a folder with a new function"),
    "dev": ("cli.commands.dev", "run the functions of a folder as they stand, and again at each save"),
    "remote": ("cli.commands.remote", "connect this git repository to the platform"),
    "deploy": ("cli.commands.deploy", "deploy a folder of a git repository that lies elsewhere"),
    "list": ("cli.commands.list", "list the functions"),
    "ps": ("cli.commands.ps", "list the instances that run now"),
    "logs": ("cli.commands.logs", "show what a function printed"),
    "invocations": ("cli.commands.invocations", "list the latest calls of a function"),
    "explain": ("cli.commands.explain", "tell the story of one request"),
    "shell": ("cli.commands.shell", "open a shell in a fresh sandbox of a function"),
    "invoke": ("cli.commands.invoke", "call a function"),
    "revisions": ("cli.commands.revisions", "list the revisions of a function that are kept"),
    "rollback": ("cli.commands.rollback", "make a former revision of a function live again"),
    "delete": ("cli.commands.delete", "delete a function"),
    "secrets": ("cli.commands.secrets", "list, set, delete and discard secrets"),
    "keys": ("cli.commands.keys", "list, create and delete keys"),
    "images": ("cli.commands.images", "list the images of Docker's, and make base images"),
    "backup": ("cli.commands.backup", "write all that the platform keeps into one file"),
    "restore": ("cli.commands.restore", "make a data folder of a backup"),
    "store": ("cli.commands.store", "move what the platform keeps into another store"),
    "audit": ("cli.commands.audit", "show who deployed, deleted, set, read and made what"),
    "doctor": ("cli.commands.doctor", "tell what this machine lets the platform guarantee"),
    "bench": ("cli.commands.bench", "measure cold starts, warm calls, bursts, memory and policies"),
    "completion": ("cli.commands.completion", "print what makes your shell complete these commands"),
    "gateway": ("cli.commands.service", "start the HTTP face alone"),
    "function-service": ("cli.commands.service", "start the function service alone"),
    "builder": ("cli.commands.service", "start the builder alone"),
    "baas": ("cli.commands.service", "start the data API alone"),
}

_EPILOG: Final = """\
pilotlight COMMAND --help tells more.

Commands find the platform by PILOTLIGHT_URL and PILOTLIGHT_KEY, else through the data folder of the one
that runs here (PILOTLIGHT_DATA where it is not the usual one).

Completion in bash, zsh and fish: pilotlight completion --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    try:
        code = program.main(words, prog_name="pilotlight", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        return _refuse(error)
    except Problem as problem:
        _say(problem.detail)
        for line in problem.extra.get("logs", []):
            print(f"  {output.harmless(line)}", file=sys.stderr)
        return 1
    except click.Abort as abort:
        if isinstance(abort.__cause__, KeyboardInterrupt):
            return 130
        raise  # click makes it of an EOFError, too, which is no word of the user's
    except BrokenPipeError:
        # The reader (head, less) has left. Python would complain once more when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return int(code or 0)


@click.command(
    cls=LazyGroup,
    table=COMMANDS,
    help="Push a folder of functions, call them over HTTP, pay nothing while nobody calls.",
    epilog=_EPILOG,
    invoke_without_command=True,
    options_metavar="",
    subcommand_metavar="COMMAND …",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(None, "-V", "--version", package_name="pilotlight", message="%(prog)s %(version)s")
@click.pass_context
def program(context: click.Context) -> None:
    """Show the help where no command is named."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _refuse(error: click.ClickException) -> int:
    """Tell what is wrong with the command line, and where to read more."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    more = f" See {context.command_path} --help" if context is not None else ""
    _say(f"{error.format_message()}{more}")
    return error.exit_code


def _say(text: str) -> None:
    print(f"pilotlight: {output.harmless(text)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
