"""`pilotlight doctor`: what this machine lets the platform guarantee, and what it lacks."""

import sys
from dataclasses import asdict

import click

from cli import checks, output
from cli.commands import flags


@click.command()
@flags.as_json
def command(*, as_json: bool) -> int:
    """Print each guarantee and each thing needed; 1 where one is lacking. Raises Problem."""
    found = checks.examine()
    if as_json:
        output.show_json([asdict(each) for each in found])
    elif sys.stdout.isatty():
        from cli import terminal

        rows = [(each.kept, each.name, each.reason, each.remedy) for each in found]
        terminal.show_checks(("KEPT", "GUARANTEE, REASON AND REMEDY"), rows)
    else:
        heads = ("GUARANTEE", "KEPT", "REASON AND REMEDY")
        lines = [
            (each.name, "yes" if each.kept else "NO", output.with_remedy(each.reason, each.remedy))
            for each in found
        ]
        print(output.table(heads, lines))
    return 0 if all(each.kept or not each.needed for each in found) else 1
