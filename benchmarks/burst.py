"""`pilotlight bench burst`: from no instance to many at once, and cold starts per second on end."""

import argparse
import os
import subprocess
import time
from pathlib import Path

from benchmarks import clone_and_mount, load, options, platform, report
from benchmarks.functions import HELLO, HOLDING, IN_ONE_APP, languages, manifest, many
from benchmarks.load import Answer, Client
from benchmarks.platform import Platform
from benchmarks.report import Plot, Series
from benchmarks.rounds import Progress

_ROUNDS = 10
_SIZES = (10, 50, 100)
_HOLD = 0.25  # seconds a call stays at least, and more for more instances, so that each needs its own
_HOLD_EACH = 0.02
_SETTLE = 0.5  # seconds between bursts, in which what was ended is buried and the pool is refilled
_WAKING = 500  # calls at once to a function at zero
_AT_ONCE = 8
_FUNCTIONS, _FEW = 300, 40  # so many that each has long ended when its turn comes again
_ENDED = 1.5  # seconds after which an instance with a keep-alive of 0 is gone
_BARE = "bare clone-and-mount loop"


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the flags."""
    options.add(parser, rounds=_ROUNDS)
    parser.add_argument(
        "--instances", type=int, action="append", metavar="N", help=f"how many at once (default {_SIZES})"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="how long each slice on end takes (default 3)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure bursts, then cold starts on end beside the bare loop, in turn. Raises Problem."""
    run = options.Run("burst", arguments)
    python = next(each.executable for each in languages() if each.name == "python")
    count = options.rounds(arguments)
    with platform.running() as target, load.client() as client:
        for size in arguments.instances or ((5,) if arguments.quick else _SIZES):
            _burst(run, target, client, python, size, count)
        _wake_up(run, target, client, 20 if arguments.quick else _WAKING, count)
        seconds = arguments.seconds or (0.3 if arguments.quick else 3.0)
        _on_end(run, target, client, python, seconds, count, _FEW if arguments.quick else _FUNCTIONS)
    return run.finish()


def _bare(python: str, *words: str) -> float:
    """Run the bare loop; return how many a second it made."""
    command = (python, "-I", "-S", str(Path(clone_and_mount.__file__)), *words, str(_AT_ONCE))
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _burst(run: options.Run, target: Platform, client: Client, python: str, size: int, count: int) -> None:
    """Make so many calls at once that each needs an instance, from zero."""
    name = f"holding-{size}"
    target.push(name, {**HOLDING, **manifest(name, max_instances=str(size), timeout='"60s"')})
    hold = _HOLD + _HOLD_EACH * size
    walls, bare, curves = [], [], []
    progress = Progress(f"burst of {size}", count + 1)
    for number in range(count + 1):
        target.to_zero(name)
        time.sleep(_SETTLE)
        answers = client.burst(target.address, f"/function/{name}/{hold}", size)
        _check(answers, size)
        # What the call held its instance for, as it measured itself, is no part of the start
        waits = sorted(each.after - float(each.body) for each in answers)
        alone = size / _bare(python, str(max(0.2, size / 500)))
        progress.step(f"{waits[-1] * 1000:.0f} ms")
        if number:
            walls.append(waits[-1] * 1000)
            curves.append(waits)
            bare.append(alone * 1000)
    beside = f"{size} of the {_BARE}"
    run.show(
        f"From 0 to {size} instances at once, {size} calls; until all are answered",
        [
            report.figure(f"burst of {size}", "ms", walls, chance=run.chance, baseline=(beside, bare)),
            report.figure(beside, "ms", bare, chance=run.chance),
        ],
    )
    middle = sorted(curves, key=lambda waits: waits[-1])[len(curves) // 2]
    run.plots.append(
        Plot(
            name=f"burst-{size}",
            title=f"A burst of {size} calls from zero: how many were answered by then",
            kind="steps",
            x="ms",
            y="answered",
            series=[Series("platform", [w * 1000 for w in middle], [float(n + 1) for n in range(size)])],
        )
    )


def _wake_up(run: options.Run, target: Platform, client: Client, calls: int, count: int) -> None:
    """Make many calls at once to a function that sleeps and needs only a few instances; none may fail."""
    target.push("sleeper", {**HELLO["python"], **manifest("sleeper")})
    asleep, awake, instances = [], [], []
    progress = Progress(f"wake-up by {calls}", count + 1)
    for number in range(count + 1):
        target.to_zero("sleeper")
        time.sleep(_SETTLE)
        times = []
        for _ in range(2):
            answers = client.burst(target.address, "/function/sleeper", calls)
            _check(answers, calls)
            times.append(max(each.after for each in answers) * 1000)
        progress.step(f"{times[0]:.0f} ms")
        if number:
            asleep.append(times[0])
            awake.append(times[1])
            instances.append(float(len(target.instances("sleeper"))))
    beside = f"{calls} calls, awake"
    run.show(
        f"{calls} calls at once to a function at zero; until all are answered, none with an error",
        [
            report.figure(
                f"{calls} calls, asleep", "ms", asleep, chance=run.chance, baseline=(beside, awake)
            ),
            report.figure(beside, "ms", awake, chance=run.chance),
            report.figure("instances that it took", "", instances, chance=run.chance),
        ],
    )


def _check(answers: list[Answer], size: int) -> None:
    failed = [each for each in answers if each.status != 200]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {size} calls failed, one with {failed[0].status}: {failed[0].body}"
        )


def _on_end(
    run: options.Run,
    target: Platform,
    client: Client,
    python: str,
    seconds: float,
    count: int,
    functions: int,
) -> None:
    """Wake function after function, each of which ends its instance as soon as it is idle."""
    names = [f"fleeting-{number}" for number in range(functions)]
    for first in range(0, functions, IN_ONE_APP):
        some = names[first : first + IN_ONE_APP]
        target.push(f"fleeting-from-{first}", many(some, keep_alive='"0s"'))
    paths = [f"/function/{name}" for name in names]
    ours, bare, share = [], [], []
    progress = Progress("cold starts on end", count + 1)
    for number in range(count + 1):
        time.sleep(_ENDED)
        cold = client.wake(target.address, paths, _AT_ONCE, seconds)
        alone = _bare(python, str(seconds))
        progress.step(f"{sum(cold) / seconds:.0f} a second")
        if number:
            ours.append(sum(cold) / seconds)
            share.append(sum(cold) / len(cold))
            bare.append(alone)
    run.show(
        f"Cold starts on end, {_AT_ONCE} at once on {len(os.sched_getaffinity(0))} processors",
        [
            report.figure(
                "cold starts per second",
                "1/s",
                ours,
                chance=run.chance,
                better="higher",
                baseline=(_BARE, bare),
            ),
            report.figure(_BARE, "1/s", bare, chance=run.chance, better="higher"),
        ],
    )
    run.notes.append(
        f"The bare loop is clone_and_mount.py: {_AT_ONCE} children at a time, each in namespaces of its own, "
        "with a tmpfs and a /proc, and nothing else. Only cold starts count among the calls on end, of which "
        f"at least {min(share):.0%} were cold in each slice."
    )
