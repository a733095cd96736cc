"""`pilotlight bench cold-start`: every runtime, by what was cached, beside the same without a platform."""

import argparse
import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import baselines, options, platform, report, rounds
from benchmarks.functions import HELLO, SLOW, Language, languages, manifest
from benchmarks.load import Caller
from benchmarks.platform import Platform
from benchmarks.report import Figure, Plot, Series
from benchmarks.rounds import Case, Measured
from cli import receipts
from function_service.engines import choosing

_ROUNDS = 50
_TRIES = 100
_PAUSE = 0.05  # seconds in which the pool is refilled


@dataclass(frozen=True)
class Level:
    """What was cached when the call came. `empty` names the caches that were emptied before."""

    name: str
    empty: tuple[str, ...]
    cached: tuple[str, ...]  # the stages that must have taken no time then
    snapshot: bool = False


LEVELS = (
    Level("nothing cached", ("container", "code"), ()),
    Level("container cached", ("runtime", "code"), ()),
    Level("container and runtime cached", ("code",), ("container", "runtime")),
    Level("all three cached", ("snapshot",), ("container", "runtime")),
)
# For a function with slow imports, of which the platform takes a snapshot by itself if it is in Python
SLOW_LEVELS = (
    LEVELS[-1],
    Level("a snapshot after its imports", (), ("container", "runtime"), snapshot=True),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the flags."""
    options.add(parser, rounds=_ROUNDS)
    parser.add_argument(
        "--runtime", action="append", help="only this one, such as node or node22; may be given again"
    )
    engines = ("auto", "embedded", "docker")
    parser.add_argument("--engine", choices=engines, default="auto", help="what makes the sandboxes")


def run(arguments: argparse.Namespace) -> int:
    """Measure each runtime's cases and baselines in turn. Raises Problem."""
    run = options.Run("cold-start", arguments)
    wanted = arguments.runtime or list(HELLO)
    found = languages(wanted)
    for name in wanted:
        if name not in {language.pin for language in found}:
            run.notes.append(f"{name} is left out, since this machine does not have it.")
    flags = ("--engine", arguments.engine)
    forks = choosing.choose(arguments.engine)[0] != "docker"
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.ExitStack() as undo,
        platform.running(*flags) as target,
    ):
        for language in found:
            own = Path(folder, language.pin)
            own.mkdir()
            _measure(run, target, language, own, undo, options.rounds(arguments), forks=forks)
    return run.finish()


def _measure(
    run: options.Run,
    target: Platform,
    language: Language,
    folder: Path,
    undo: contextlib.ExitStack,
    count: int,
    *,
    forks: bool,
) -> None:
    caller = Caller(target.address)
    cases = []
    for kind, sources, levels in (("hello", HELLO, LEVELS), ("slow", SLOW, SLOW_LEVELS)):
        if language.name in sources:
            function = f"{kind}-{language.pin}"
            pinned = manifest(function, runtime=f'"{language.pin}"')
            target.push(function, {**sources[language.name], **pinned})
            print(f"{function} is deployed", file=sys.stderr)
            cases += [
                Case(f"{function}, {level.name}", partial(_cold, target, caller, function, level))
                for level in levels
                if (language.name == "python" and forks) or not level.snapshot
            ]
    program = baselines.program(language, folder)
    bare = baselines.cases(program, folder, run.notes, undo)
    # A platform that makes anew what the case before has emptied would slow the baseline
    bare = [Case(case.name, partial(_settled, target, case)) for case in bare]
    # In turn: a case of ours, then a baseline, and so on
    mixed = [case for pair in zip(cases, bare, strict=False) for case in pair]
    rest = [*cases[len(bare) :], *bare[len(cases) :]]
    measured = rounds.interleave(language.pin, [*mixed, *rest], count)
    caller.close()
    # What a program costs by itself says nothing of a platform: there the least sandbox is the baseline
    sandboxed = program.serves and len(bare) > 1
    first = bare[1 if sandboxed else 0].name
    figures = [
        report.figure(
            case.name,
            "ms",
            rounds.values(measured[case.name]),
            chance=run.chance,
            baseline=(first, rounds.values(measured[first])) if case.name != first else None,
            parts=rounds.parts(measured[case.name]),
        )
        for case in (*cases, *bare)
    ]
    run.show(f"Cold starts of {language.pin}, as the client sees them; stages are medians", figures)
    run.plots += _plots(language, figures)


def _settled(target: Platform, case: Case) -> Measured:
    target.settle()
    return case.measure()


def _cold(target: Platform, caller: Caller, function: str, level: Level) -> Measured:
    """Make one cold start with exactly that cached."""
    for _ in range(_TRIES):
        target.to_zero(function)
        for stage in level.empty:
            target.empty(stage)
        if level.cached:
            target.settle()
        if level.snapshot and not target.has_snapshot(function):
            caller.cold(f"/function/{function}")  # one more that shows that it is worth it
            time.sleep(_PAUSE)
            continue
        took, headers = caller.cold(f"/function/{function}")
        stages = receipts.read(headers).stages
        if all(stages[stage] == 0 for stage in level.cached):
            total = took * 1000
            # What the receipt does not explain is the way from the client and back
            return Measured(total, {**stages, "rest": max(0.0, total - sum(stages.values()))})
        time.sleep(_PAUSE)  # the pool was not full yet
    raise RuntimeError(f"{function} never started with {level.name}")


def _plots(language: Language, figures: list[Figure]) -> list[Plot]:
    names = [each.name for each in figures]
    parts = list(dict.fromkeys(name for each in figures for name in each.parts))
    whole = [0.0 if each.parts else each.median.value for each in figures]
    series = [Series(part, names, [each.parts.get(part, 0.0) for each in figures]) for part in parts]
    bars = Plot(
        name=f"cold-start-{language.pin}",
        title=f"Cold start of {language.pin}: medians of the stages",
        kind="bars",
        x="ms",
        y="",
        series=[*series, Series("baseline", names, whole)],
    )
    curves = Plot(
        name=f"cold-start-{language.pin}-distribution",
        title=f"Cold starts of {language.pin}: share that was done by then",
        kind="steps",
        x="ms",
        y="share",
        series=[
            Series(name, each.values, [(i + 1) / len(each.values) for i in range(len(each.values))])
            for name, each in zip(names, figures, strict=True)
        ],
        logarithmic=True,
    )
    return [bars, curves]
