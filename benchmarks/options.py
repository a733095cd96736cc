"""What every bench can be told, and what every bench does with what it found."""

import argparse
import os
import random
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, outcome, plots, report
from benchmarks.report import Figure, Plot, Report

_SEED = 20  # of the resampling: the same figures give the same intervals


def add(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Take the flags that all have; `rounds` is the usual number of rounds."""
    parser.set_defaults(usual_rounds=rounds)
    parser.add_argument("--rounds", type=_positive, metavar="N", help=f"how often (default {rounds})")
    parser.add_argument("--quick", action="store_true", help="only see that it works; the figures say little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with the tables and plots")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write the plots as PNG")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="tell what changed since a run that --json wrote"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def rounds(arguments: argparse.Namespace) -> int:
    """Return how many rounds are wanted."""
    usual: int = 3 if arguments.quick else arguments.usual_rounds
    return arguments.rounds or usual


class Run:
    """One run of a bench, from before its first measurement to its report."""

    def __init__(self, benchmark: str, arguments: argparse.Namespace) -> None:
        """Raises Problem where what the flags name can't be used; better now than after the run."""
        self._benchmark = benchmark
        self._arguments = arguments
        self._former = report.read(arguments.against) if arguments.against else None
        if arguments.plots or arguments.html:
            plots.check(needed=bool(arguments.plots))
        self._machine = machine.inspect()
        self._began = time.time()
        self.chance = random.Random(_SEED)
        self.figures: list[Figure] = []
        self.notes: list[str] = []
        self.plots: list[Plot] = []
        for line in machine.describe(self._machine):
            print(line, file=sys.stderr)

    def show(self, title: str, figures: list[Figure]) -> None:
        """Print a table of figures that are known now, and keep them."""
        self.figures += figures
        print(f"\n{title}\n\n{outcome.console(figures)}", flush=True)

    def finish(self) -> int:
        """Print the notes and what changed, write what was asked for, and return the exit code."""
        arguments = self._arguments
        found = Report(
            benchmark=self._benchmark,
            command=shlex.join(["pilotlight", *sys.argv[1:]]),
            started=datetime.fromtimestamp(self._began, UTC).isoformat(timespec="seconds"),
            seconds=round(time.time() - self._began, 1),
            quick=arguments.quick,
            machine=self._machine,
            load_after=os.getloadavg(),
            figures=self.figures,
            notes=list(dict.fromkeys(self.notes)),
            plots=self.plots,
        )
        for note in found.notes:
            print(f"\nNote: {note}")
        if self._former is not None:
            print(f"\nSince {self._former.started}\n\n{outcome.against(self._former, found)}")
        if arguments.json:
            report.write(found, arguments.json)
        if arguments.markdown:
            arguments.markdown.write_text(outcome.markdown(found, self._former))
        if arguments.plots:
            arguments.plots.mkdir(parents=True, exist_ok=True)
            for plot in found.plots:
                (arguments.plots / f"{plot.name}.png").write_bytes(plots.draw(plot, "png"))
        if arguments.html:
            arguments.html.write_text(outcome.html(found, self._former))
        return 0
