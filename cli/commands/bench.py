"""`pilotlight bench WHAT`: the laboratory. Each bench is a module, imported when asked for."""

import argparse
import importlib
from typing import Final

BENCHES: Final[dict[str, tuple[str, str]]] = {
    "cold-start": ("benchmarks.cold_start", "cold starts by runtime and by what was cached"),
    "warm": ("benchmarks.warm", "what the platform adds to a warm call, and calls per second and core"),
    "burst": ("benchmarks.burst", "from no instance to many at once, and cold starts per second"),
    "density": ("benchmarks.density", "the memory of idle and of running instances"),
    "keep-alive": ("benchmarks.keep_alive", "keep-alive policies on a trace, in simulated time"),
    "function": ("benchmarks.function", "what the cold start of your own function is made of"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the bench, and leave what follows to it."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = (f"  {name:12}{description}" for name, (_, description) in BENCHES.items())
    parser.epilog = "\n".join(("WHAT is one of:", *lines, "", "pilotlight bench WHAT --help tells more."))
    parser.add_argument("bench", metavar="WHAT", choices=list(BENCHES), help="what to measure")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help="what that bench takes")


def run(arguments: argparse.Namespace) -> int:
    """Run the bench; its module has `configure` and `run` as a command has. Raises Problem."""
    module, description = BENCHES[arguments.bench]
    bench = importlib.import_module(module)
    parser = argparse.ArgumentParser(
        prog=f"pilotlight bench {arguments.bench}", description=f"Measure {description}."
    )
    bench.configure(parser)
    code: int = bench.run(parser.parse_args(arguments.rest))
    return code
