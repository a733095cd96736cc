"""`pilotlight bench scale`: what functions that are deployed cost, and whether they slow those called."""

import argparse
import contextlib
import time
from dataclasses import dataclass
from functools import partial

from benchmarks import options, platform, processes, report, rounds
from benchmarks.functions import HELLO, IN_ONE_APP, manifest, many
from benchmarks.load import Caller
from benchmarks.platform import Platform
from benchmarks.report import Figure
from benchmarks.rounds import Case, Measured, Progress
from cli import receipts

_ROUNDS = 50
_FUNCTIONS, _CALLED = 1000, 100
_QUICK_FUNCTIONS, _QUICK_CALLED = 12, 4
_FEW = 3
_PAUSE = 0.05  # seconds in which the pool is refilled
_TRIES = 100
_SETTLE = 5.0  # seconds after which nothing that a push or a call has begun is under way
_SLICE, _SLICES = 10.0, 4  # seconds of idleness
_PUSHES = 5
_KB = 1024.0


@dataclass(frozen=True)
class _Side:
    """One of the two platforms, and what its figures are called after."""

    name: str
    target: Platform
    caller: Caller

    def cold(self) -> Measured:
        """Make a cold start of hello for which a blank sandbox waited."""
        for _ in range(_TRIES):
            self.target.to_zero("hello")
            time.sleep(_PAUSE)
            took, headers = self.caller.cold("/function/hello")
            if receipts.read(headers).stages["container"] == 0:
                return Measured(took * 1000)
        raise RuntimeError("no blank sandbox waited, however often hello was called")


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the flags."""
    options.add(parser, rounds=_ROUNDS)
    parser.add_argument(
        "--functions", type=int, metavar="N", help=f"deployed on one of the two (default {_FUNCTIONS})"
    )
    parser.add_argument(
        "--called", type=int, metavar="N", help=f"of them, before the measurement (default {_CALLED})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare a platform of few functions with one of many, in turn. Raises Problem."""
    run = options.Run("scale", arguments)
    quick = arguments.quick
    functions = arguments.functions or (_QUICK_FUNCTIONS if quick else _FUNCTIONS)
    called = min(functions, arguments.called or (_QUICK_CALLED if quick else _CALLED))
    with contextlib.ExitStack() as stack:
        sides = []
        for size in (_FEW, functions):
            target = stack.enter_context(platform.running())
            target.push("hello", {**HELLO["python"], **manifest("hello")})
            caller = stack.enter_context(contextlib.closing(Caller(target.address)))
            sides.append(_Side(f"{size} functions", target, caller))
        few, crowded = sides
        names = [f"other-{number}" for number in range(functions)]
        few.target.push("others", many(names[:_FEW]))
        run.show("Deploying", _deploy(run, crowded, names, quick=quick))
        for side, some in ((few, names[:_FEW]), (crowded, names[:: functions // called][:called])):
            for name in some:
                side.caller.cold(f"/function/{name}")
        run.show(
            f"Nothing to do, {called} of {functions} functions having been called",
            _idle(run, sides, slices=1 if quick else _SLICES),
        )
        run.show(
            "Cold starts of hello, as the client sees them", _starts(run, sides, options.rounds(arguments))
        )
        run.show("A push of one function more", _pushes(run, sides, 1 if quick else _PUSHES))
    run.notes.append(
        f"Two platforms on the same machine, measured in turn: one with {_FEW} functions beside hello, all "
        f"called before, one with {functions}, of which {called} were. Idle are all processes of a platform "
        "with its sandboxes: the processor time of those that live through a slice, and how often their "
        "threads went to sleep and came back."
    )
    return run.finish()


def _deploy(run: options.Run, side: _Side, names: list[str], *, quick: bool) -> list[Figure]:
    """Push the functions, and tell how long each took and what memory it has added."""
    time.sleep(0 if quick else _SETTLE)
    before = processes.memory(side.target.pid)
    took = []
    progress = Progress("pushes", -(-len(names) // IN_ONE_APP))
    for first in range(0, len(names), IN_ONE_APP):
        some = names[first : first + IN_ONE_APP]
        took.append(side.target.push(f"others-from-{first}", many(some)) / len(some) * 1000)
        progress.step(f"{took[-1]:.0f} ms for each function")
    time.sleep(0 if quick else _SETTLE)
    after = processes.memory(side.target.pid)
    figures = [report.figure("a push, for each function", "ms", took, chance=run.chance)]
    if before is None or after is None:
        run.notes.append("The memory of sandboxes can't be looked into by this user, so it is left out.")
        return figures
    added = [(after - before) / len(names) / _KB]
    return [*figures, report.figure("memory that a function adds", "KB", added, chance=run.chance)]


def _idle(run: options.Run, sides: list[_Side], slices: int) -> list[Figure]:
    """Look at both platforms in the same slices of time."""
    time.sleep(_SETTLE)
    cpu: dict[str, list[float]] = {side.name: [] for side in sides}
    wakeups: dict[str, list[float]] = {side.name: [] for side in sides}
    progress = Progress("idle", slices)
    for _ in range(slices):
        began = time.monotonic()
        before = [_use(side) for side in sides]
        time.sleep(_SLICE)
        after = [_use(side) for side in sides]
        seconds = time.monotonic() - began
        for side, former, latter in zip(sides, before, after, strict=True):
            both = former.keys() & latter.keys()
            cpu[side.name].append(sum(latter[pid][0] - former[pid][0] for pid in both) / seconds * 100)
            wakeups[side.name].append(sum(latter[pid][1] - former[pid][1] for pid in both) / seconds)
        progress.step("looked")
    return [
        # Without a ratio: the baseline may be nothing that could be counted
        *(
            report.figure(f"processor, idle, {name}", "% of a core", cpu[name], chance=run.chance)
            for name in cpu
        ),
        *_pair(run, "wake-ups, idle", "1/s", wakeups),
    ]


def _use(side: _Side) -> dict[int, tuple[float, int]]:
    """Return the processor time and the wake-ups of each process of a platform up to now."""
    pids = processes.tree(side.target.pid)
    return {pid: (processes.cpu_seconds([pid]), processes.wakeups(pid)) for pid in pids}


def _starts(run: options.Run, sides: list[_Side], count: int) -> list[Figure]:
    cases = [Case(side.name, side.cold) for side in sides]
    found = rounds.interleave("cold starts", cases, count)
    return _pair(run, "cold start", "ms", {name: rounds.values(found[name]) for name in found})


def _pushes(run: options.Run, sides: list[_Side], count: int) -> list[Figure]:
    def push(side: _Side) -> Measured:
        name = f"late-{time.monotonic_ns()}"
        return Measured(side.target.push(name, {**HELLO["python"], **manifest(name)}) * 1000)

    cases = [Case(side.name, partial(push, side)) for side in sides]
    found = rounds.interleave("one function more", cases, count)
    return _pair(run, "push", "ms", {name: rounds.values(found[name]) for name in found})


def _pair(run: options.Run, what: str, unit: str, values: dict[str, list[float]]) -> list[Figure]:
    """Make figures of both sides; those of the second stand beside those of the first."""
    (few, alone), (many_, crowded) = values.items()
    beside = f"{what}, {few}"
    return [
        report.figure(f"{what}, {many_}", unit, crowded, chance=run.chance, baseline=(beside, alone)),
        report.figure(beside, unit, alone, chance=run.chance),
    ]
