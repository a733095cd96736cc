"""`pilotlight bench density`: the memory of one instance more, idle and running."""

import argparse
import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import load, options, platform, processes, report
from benchmarks.functions import HOLDING, languages, manifest
from benchmarks.load import Client
from benchmarks.platform import Platform
from benchmarks.report import Figure, Plot, Series
from benchmarks.rounds import Progress

_ROUNDS = 3
_INSTANCES = 100
_HOLD, _HOLD_EACH = 2.0, 0.04  # seconds that calls stay, in which all of them are looked at
_SETTLE = 1.5  # seconds after which what was ended is buried, and the pool is full
_WITHIN = 60.0
_KB = 1024.0
_ENOUGH = 10  # instances from which on they show in the memory of the whole machine


@dataclass(frozen=True)
class _Look:
    """The memory of the platform at one moment, in bytes."""

    groups: list[float]  # of each instance, as its control group counts it
    tree: int | None  # PSS of all processes of the platform; None where they may not be looked into
    available: int  # of the machine


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the flags."""
    options.add(parser, rounds=_ROUNDS)
    parser.add_argument(
        "--instances",
        type=int,
        metavar="N",
        help=f"up to how many, in steps (default {_INSTANCES}, at most 1000)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Look at the platform with no instance, and with more and more of them. Raises Problem."""
    run = options.Run("density", arguments)
    most = min(1000, arguments.instances or (5 if arguments.quick else _INSTANCES))
    python = next(each.executable for each in languages() if each.name == "python")
    name = "holding"
    idle_curve, running_curve = [], []
    with platform.running() as target, load.client() as client:
        settings = {"max_instances": "1000", "timeout": '"300s"', "keep_alive": '"1h"'}
        target.push(name, {**HOLDING, **manifest(name, **settings)})
        for size in _steps(most):
            found = _measure(run, target, client, python, size, options.rounds(arguments))
            run.show(f"{size} instance{'s' if size > 1 else ''}: the memory of one", found)
            idle_curve.append((size, found[0].median.value))
            running_curve.append((size, found[1].median.value))
    run.plots.append(
        Plot(
            name="density",
            title="Memory that one instance adds, by how many there are",
            kind="lines",
            x="instances",
            y="KB",
            series=[
                Series(label, [float(x) for x, _ in curve], [y for _, y in curve])
                for label, curve in (("idle", idle_curve), ("running", running_curve))
            ],
            logarithmic=True,
        )
    )
    run.notes.append(
        "`added` is what the platform's processes with all sandboxes hold more than without instances (PSS, "
        "from smaps_rollup: what is shared is divided among its users), for each instance. `control group` "
        "is what the kernel counts for one sandbox, `the machine` what it could give to programs less than "
        "before, both with the kernel's own memory. The baseline is one more `python3 -I -S` that waits, "
        "among as many (PSS)."
    )
    return run.finish()


def _steps(most: int) -> list[int]:
    return [size for size in (1, 10, 100, 300) if size < most] + [most]


def _measure(
    run: options.Run, target: Platform, client: Client, python: str, size: int, count: int
) -> list[Figure]:
    name = "holding"
    added: dict[str, list[float]] = {"idle": [], "running": []}
    groups: dict[str, list[float]] = {"idle": [], "running": []}
    machine: dict[str, list[float]] = {"idle": [], "running": []}
    bare: list[float] = []
    progress = Progress(f"{size} instances", count)
    for _ in range(count):
        target.to_zero(name)
        _wait(target, name, 0)
        time.sleep(_SETTLE)
        empty = _look(target, name)
        hold = _HOLD + _HOLD_EACH * size
        calls = client.begin_burst(target.address, f"/function/{name}/{hold}", size)
        _wait(target, name, size)
        looks = {"running": _look(target, name)}
        failed = [each for each in calls.result(_WITHIN + hold) if each.status != 200]
        if failed:
            raise RuntimeError(f"{len(failed)} of {size} calls failed, one with {failed[0].body}")
        time.sleep(_SETTLE)
        looks["idle"] = _look(target, name)
        for state, look in looks.items():
            groups[state] += [each / _KB for each in look.groups]
            machine[state].append((empty.available - look.available) / size / _KB)
            if look.tree is not None and empty.tree is not None:
                added[state].append((look.tree - empty.tree) / size / _KB)
        bare += _bare(python, min(size, 50))
        progress.step("looked")
    suffix = f"of {size}"
    beside = (f"a bare interpreter, {suffix}", bare)
    kinds = {"added": added, "control group": groups}
    if not added["idle"]:
        run.notes.append("The memory of sandboxes can't be looked into by this user, so `added` is left out.")
        del kinds["added"]
    if not any(groups["idle"]):
        run.notes.append("No memory is counted for single sandboxes here (`pilotlight doctor` tells why).")
        del kinds["control group"]
    if size >= _ENOUGH or not kinds:
        kinds["the machine"] = machine
    figures = [
        report.figure(f"{kind}, {state}, {suffix}", "KB", values[state], chance=run.chance, baseline=beside)
        for kind, values in kinds.items()
        for state in ("idle", "running")
    ]
    return [*figures, report.figure(beside[0], "KB", bare, chance=run.chance)]


def _wait(target: Platform, name: str, size: int) -> None:
    """Wait until so many instances are there."""
    deadline = time.monotonic() + _WITHIN
    while (there := len(target.instances(name))) != size:
        if time.monotonic() > deadline:
            raise RuntimeError(f"there are {there} instances, not {size}")
        time.sleep(0.05)


def _look(target: Platform, name: str) -> _Look:
    instances = target.instances(name)
    return _Look(
        [float(str(each["memory"])) for each in instances],
        processes.memory(target.pid),
        processes.available_memory(),
    )


def _bare(python: str, size: int) -> list[float]:
    """Return the PSS of each of some interpreters that wait, in KB."""
    with _interpreters(python, size) as pids:
        return [memory / _KB for pid in pids if (memory := processes.pss(pid))]


@contextlib.contextmanager
def _interpreters(python: str, size: int) -> Iterator[list[int]]:
    command = (python, "-I", "-S", "-c", "import sys; print(flush=True); sys.stdin.read()")
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(size)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.communicate()
