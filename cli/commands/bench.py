"""`pilotlight bench WHAT`: the laboratory. Each bench is a module, imported when asked for.

Such a module reads its flags with argparse, as those that run alone do: it has `configure(parser)` and
`run(arguments)`, which returns the exit code.
"""

import argparse
import importlib
from typing import Final

import click

from cli.group import LazyGroup

BENCHES: Final[dict[str, tuple[str, str]]] = {
    "cold-start": ("benchmarks.cold_start", "cold starts by runtime and by what was cached"),
    "warm": ("benchmarks.warm", "what the platform adds to a warm call, and calls per second and core"),
    "burst": ("benchmarks.burst", "from no instance to many at once, and cold starts per second"),
    "density": ("benchmarks.density", "the memory of idle and of running instances"),
    "scale": ("benchmarks.scale", "what a thousand deployed functions cost those that are called"),
    "overload": ("benchmarks.overload", "what becomes of calls when ten times too many come"),
    "neighbour": ("benchmarks.neighbour", "a quiet function beside one that takes all that it can get"),
    "soak": ("benchmarks.soak", "what is left after a mixed life of minutes or hours"),
    "keep-alive": ("benchmarks.keep_alive", "keep-alive policies on a trace, in simulated time"),
    "function": ("benchmarks.function", "what the cold start of your own function is made of"),
}


class _Benches(LazyGroup):
    """Hands what follows a bench's name, as it stands there, to the parser of that bench."""

    def load(self, name: str, module: str) -> click.Command:
        """Make a command that runs a bench."""

        def run(words: tuple[str, ...]) -> int:
            bench = importlib.import_module(module)
            parser = argparse.ArgumentParser(
                prog=f"pilotlight bench {name}", description=f"Measure {BENCHES[name][1]}."
            )
            bench.configure(parser)
            code: int = bench.run(parser.parse_args(words))
            return code

        return click.Command(
            name,
            callback=run,
            params=[click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)],
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
        )


command = _Benches(
    name="bench", table=BENCHES, no_args_is_help=False, subcommand_metavar="WHAT …", options_metavar=""
)
