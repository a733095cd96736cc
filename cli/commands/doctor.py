"""`pilotlight doctor`: what this machine lets the platform guarantee, and what it lacks."""

import argparse
from dataclasses import asdict

from cli import checks, output


def configure(parser: argparse.ArgumentParser) -> None:
    """Take --json."""
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each guarantee and each thing needed; 1 where one is lacking. Raises Problem."""
    found = checks.examine()
    if arguments.json:
        output.show_json([asdict(each) for each in found])
    else:
        heads = ("GUARANTEE", "KEPT", "REASON AND REMEDY")
        rows = [(each.name, "yes" if each.kept else "NO", f"{each.reason} {each.remedy}") for each in found]
        print(output.table(heads, rows))
    return 0 if all(each.kept or not each.needed for each in found) else 1
