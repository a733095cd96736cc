"""`pilotlight bench warm`: what the platform adds to a warm call, and what a call costs of a core.

Beside it stand the instance called directly, and bare relays of two hops on the same libraries (relay.py):
one on uvloop and httptools alone, and one whose first hop is aiohttp's low-level server.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import load, options, platform, processes, report
from benchmarks.functions import CONCURRENT, manifest
from benchmarks.load import Address, Client
from benchmarks.platform import Platform
from benchmarks.report import Figure, Plot, Series
from benchmarks.rounds import Progress

_ROUNDS = 10
_CONNECTIONS = (1, 8, 64)
_NAME = "concurrent"
_THROUGH, _DIRECT = "through the platform", "the instance directly"
_RELAY, _ON_AIOHTTP = "a bare relay", "a bare relay on aiohttp"


@dataclass
class _Target:
    """Where calls go, and the process below which all lie that answer them."""

    name: str
    address: Address
    path: str
    root: int | None  # None where processor time is not counted
    microseconds: list[list[float]] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    per_core: list[float] = field(default_factory=list)

    def measure(self, client: Client, connections: int, seconds: float) -> None:
        """Call for some seconds, and note what it took."""
        pids = processes.tree(self.root) if self.root else []
        before = processes.cpu_seconds(pids)
        times = client.saturate(self.address, self.path, connections, seconds)
        used = processes.cpu_seconds(pids) - before
        self.microseconds.append([each * 1e6 for each in times])
        self.per_second.append(len(times) / seconds)
        if used:
            self.per_core.append(len(times) / used)


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the flags."""
    options.add(parser, rounds=_ROUNDS)
    parser.add_argument("--seconds", type=float, metavar="S", help="how long each slice takes (default 1)")


def run(arguments: argparse.Namespace) -> int:
    """Measure the three in turn, slice by slice. Raises Problem."""
    run = options.Run("warm", arguments)
    seconds = arguments.seconds or (0.3 if arguments.quick else 1.0)
    with (
        platform.running() as target,
        relay() as (port, pid),
        relay("aiohttp") as (slower_port, slower_pid),
        load.client() as client,
    ):
        _deploy(target)
        progress = Progress("warm", len(_CONNECTIONS) * options.rounds(arguments) * 4)
        for connections in _CONNECTIONS:
            path = f"/function/{_NAME}"
            targets = [
                _Target(_THROUGH, target.address, path, target.pid),
                _Target(_DIRECT, target.socket(_NAME), "/", None),
                _Target(_RELAY, ("127.0.0.1", port), "/", pid),
                _Target(_ON_AIOHTTP, ("127.0.0.1", slower_port), "/", slower_pid),
            ]
            for each in targets:
                _Target(each.name, each.address, each.path, None).measure(client, connections, 0.2)
            for _ in range(options.rounds(arguments)):
                for each in targets:
                    each.measure(client, connections, seconds)
                    progress.step(f"{each.name}, {connections} connections")
            figures = list(_figures(run, targets, connections))
            run.show(f"Warm calls from {_connections(connections)}", figures)
            run.plots.append(_plot(targets, connections))
    run.notes.append(
        "Requests/s per core are requests for each second of processor time of all processes that answer "
        "them: the platform's with its sandboxes, and each relay's two. The client is not counted. The "
        "intervals are those of the medians of slices, n of them."
    )
    return run.finish()


def _deploy(target: Platform) -> None:
    """Deploy a function that answers many calls at a time in one instance, and start that."""
    target.push(_NAME, {**CONCURRENT, **manifest(_NAME, concurrency="100", max_instances="1")})
    caller = load.Caller(target.address)
    caller.call(f"/function/{_NAME}")
    caller.close()


@contextlib.contextmanager
def relay(*words: str) -> Iterator[tuple[int, int]]:
    """Run a bare relay; give its port and the process id of its front, whose child the back is."""
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-P", "-m", "benchmarks.relay", str(Path(folder, "back.sock")), *words)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield int(process.stdout.readline()), process.pid
            finally:
                process.stdin.close()


def _figures(run: options.Run, targets: list[_Target], connections: int) -> Iterator[Figure]:
    through, direct, *bare = targets
    suffix = _connections(connections)
    for each in targets:
        beside = None if each is direct else (f"{direct.name}, {suffix}", direct.microseconds)
        yield report.of_slices(
            f"{each.name}, {suffix}", "µs", each.microseconds, chance=run.chance, baseline=beside
        )
    for each in (through, *bare):
        yield report.added(
            f"added by {'the platform' if each is through else each.name}, {suffix}",
            "µs",
            each.microseconds,
            direct.microseconds,
            chance=run.chance,
        )
    for name, kind in (("requests/s", "per_second"), ("requests/s per core", "per_core")):
        for each in bare:
            row = "platform" if each is bare[0] else f"platform, beside {each.name}"
            beside_name = f"{name}, {each.name}, {suffix}"
            own, theirs = getattr(through, kind), getattr(each, kind)
            yield report.figure(
                f"{name}, {row}, {suffix}",
                "1/s",
                own,
                chance=run.chance,
                better="higher",
                baseline=(beside_name, theirs),
            )
            yield report.figure(beside_name, "1/s", theirs, chance=run.chance, better="higher")


def _connections(count: int) -> str:
    return f"{count} connection{'s' if count > 1 else ''}"


def _plot(targets: list[_Target], connections: int) -> Plot:
    shares = [number / 200 for number in range(1, 200)]
    return Plot(
        name=f"warm-{connections}",
        title=f"Warm calls from {_connections(connections)}: share answered by then",
        kind="lines",
        x="µs",
        y="share",
        series=[
            Series(each.name, [ordered[int(share * len(ordered))] for share in shares], shares)
            for each in targets
            for ordered in [sorted(value for values in each.microseconds for value in values)]
        ],
        logarithmic=True,
    )
