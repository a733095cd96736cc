"""The command line: names and one-line descriptions.

Each command is a module of its own, imported when it is asked for, so that `pilotlight --help` is quick.

A command module has `configure(parser)` and `run(arguments)`, which returns the exit code.
Exit codes: 0 it worked, 1 it did not, 2 the command line was wrong.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("cli.commands.up", "start the platform on this machine, in the foreground"),
    "new": ("cli.commands.new", "make a folder with a new function"),
    "remote": ("cli.commands.remote", "connect this git repository to the platform"),
    "deploy": ("cli.commands.deploy", "deploy a folder of a git repository that lies elsewhere"),
    "list": ("cli.commands.list", "list the functions"),
    "ps": ("cli.commands.ps", "list the instances that run now"),
    "logs": ("cli.commands.logs", "show what a function printed"),
    "invoke": ("cli.commands.invoke", "call a function"),
    "rollback": ("cli.commands.rollback", "make a former revision of a function live again"),
    "delete": ("cli.commands.delete", "delete a function"),
    "secrets": ("cli.commands.vault", "list, set and delete secrets"),
    "keys": ("cli.commands.vault", "list, create and delete keys"),
    "doctor": ("cli.commands.doctor", "tell what this machine lets the platform guarantee"),
    "bench": ("cli.commands.bench", "measure cold starts, warm calls, bursts, memory, keep-alive policies"),
    "gateway": ("cli.commands.service", "start the HTTP face alone"),
    "function-service": ("cli.commands.service", "start the function service alone"),
    "builder": ("cli.commands.service", "start the builder alone"),
    "baas": ("cli.commands.service", "start the data API alone"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left. Python would complain once more when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"pilotlight {version('pilotlight')}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        _say(f"There is no command {name!r}.{_suggestion(name)} See pilotlight --help")
        return 2
    return _run(name, rest)


def _run(name: str, words: list[str]) -> int:
    from pilotlight.problems import Problem

    module, description = COMMANDS[name]
    command = importlib.import_module(module)
    parser = argparse.ArgumentParser(
        prog=f"pilotlight {name}", description=f"{description[0].upper()}{description[1:]}."
    )
    parser.set_defaults(command=name)
    command.configure(parser)
    parsed = parser.parse_args(words)
    try:
        code: int = command.run(parsed)
    except Problem as problem:
        _say(problem.detail)
        for line in problem.extra.get("logs", []):
            print(f"  {line}", file=sys.stderr)
        return 1
    return code


def _say(text: str) -> None:
    print(f"pilotlight: {text}", file=sys.stderr)


def _suggestion(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: pilotlight COMMAND …",
            "",
            "Push a folder of functions, call them over HTTP, pay nothing while nobody calls.",
            "",
            *lines,
            "",
            "pilotlight COMMAND --help tells more; pilotlight --version the version.",
            "Commands find the platform by PILOTLIGHT_URL and PILOTLIGHT_KEY, else through the data folder",
            "of the one that runs here (PILOTLIGHT_DATA where it is not the usual one).",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
