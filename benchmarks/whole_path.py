"""The whole path, beside its baselines: start, push, cold start, warm calls.

    python -m benchmarks.whole_path [--rounds N] [--seconds S] [--json FILE]

`cold` is what the client of the gateway sees of a Python hello with all three layers cached, over starting
`python3 -I -S -c pass` as a process, the two in turn. `warm` is calls per second through one gateway process.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import load
from benchmarks.load import Caller
from benchmarks.platform import Platform, running

HELLO = {
    "handler.py": "def handle(request):\n    return 'hello'\n",
    "pilotlight.toml": '[functions.NAME]\npath = "."\naccess = "public"\ncpu = 1.0\n',
}
_PAUSE = 0.05  # seconds between two cold starts, in which the pool is refilled


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50, help="cold starts, and pushes for each ten of them")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long warm calls are made")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    with running() as first:
        figures = {"up, s": first.started, "--help, s": _help()}
        pushes = [_push(first, f"hello-{number}") for number in range(max(1, arguments.rounds // 10))]
        figures["push, s"] = statistics.median(pushes)
        figures |= _cold(first, arguments.rounds)
        figures |= _warm(first, arguments.seconds)
    for name, value in figures.items():
        print(f"{name:34}{value:12.3f}")
    print(f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _help() -> float:
    command = (str(Path(sys.executable).with_name("pilotlight")), "--help")
    return statistics.median(_timed(command) for _ in range(5))


def _timed(command: tuple[str, ...]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _push(target: Platform, name: str) -> float:
    return target.push(name, {path: text.replace("NAME", name) for path, text in HELLO.items()})


def _cold(target: Platform, rounds: int) -> dict[str, float]:
    baseline = (
        shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable,
        "-I",
        "-S",
        "-c",
        "pass",
    )
    caller = Caller(target.address)
    processes, starts = [], []
    for _ in range(rounds):
        target.to_zero("hello-0")
        time.sleep(_PAUSE)
        processes.append(_timed(baseline))
        took, _ = caller.cold("/function/hello-0")
        starts.append(took)
    caller.close()
    cold, process = statistics.median(starts), statistics.median(processes)
    return {
        "cold start, ms": cold * 1000,
        "python3 -I -S -c pass, ms": process * 1000,
        "cold start / process": cold / process,
    }


def _warm(target: Platform, seconds: float) -> dict[str, float]:
    figures: dict[str, float] = {}
    with load.client() as client:
        for connections in (1, 8):
            times = client.saturate(target.address, "/function/hello-0", connections, seconds)
            figures[f"warm calls/s, {connections} connections"] = len(times) / seconds
            figures[f"warm median, {connections} connections, ms"] = statistics.median(times) * 1000
    return figures


if __name__ == "__main__":
    sys.exit(main())
