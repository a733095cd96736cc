"""`pilotlight bench neighbour`: a quiet function while another one takes all that it can get.

The hostile functions have the limits of a manifest that says nothing. Quiet windows and hostile ones come in
turn; what counts of each is the 99th percentile of the quiet function's calls.
"""

import argparse
import contextlib
import time
from statistics import median

from benchmarks import flood, load, options, platform, report, stats
from benchmarks.functions import HELLO, manifest, together
from benchmarks.load import Caller, Client
from benchmarks.platform import Platform
from benchmarks.report import Figure, Plot, Series
from benchmarks.rounds import Progress

_ROUNDS = 5
_SECONDS = 3.0
_QUICK_SECONDS = 0.4
_EVERY = 0.005  # seconds between two calls of the quiet function
_LEAD = 0.2  # seconds that a hostile function has before anybody looks
_PAUSE = 0.05  # seconds until one that has ended is called again

_UNTIL = """import os
import time


def handle(request):
    end = time.monotonic() + float(request.path.strip("/"))
    own = os.getpid()
"""
_HOSTILE = {
    "a fork bomb": """
    while time.monotonic() < end:
        try:
            os.fork()
        except OSError:
            pass
    if os.getpid() != own:
        os._exit(0)
    return "done"
""",
    "a memory bomb": """
    held = []
    while time.monotonic() < end:
        held.append(bytearray(b"x" * (8 << 20)))
    return "done"
""",
    "a processor hog": """
    for _ in range(3):
        if own == os.getpid():
            os.fork()
    while time.monotonic() < end:
        pass
    if os.getpid() != own:
        os._exit(0)
    return "done"
""",
    "a hoarder of descriptors": """
    while time.monotonic() < end:
        held = []
        try:
            while time.monotonic() < end:
                held += os.pipe()
        except OSError:
            pass
        for descriptor in held:
            os.close(descriptor)
    return "done"
""",
    "one that fills /tmp": """
    while time.monotonic() < end:
        try:
            with open("/tmp/full", "wb") as file:
                while time.monotonic() < end:
                    file.write(b"x" * (1 << 20))
        except OSError:
            pass
        os.unlink("/tmp/full")
    return "done"
""",
    "one that prints gigabytes": """
    while time.monotonic() < end:
        for _ in range(200):
            os.write(1, b"x" * (1 << 20))
        os.write(1, b"short\\n" * (1 << 17))
    return "done"
""",
}
_QUIET = "nobody"


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the flags."""
    options.add(parser, rounds=_ROUNDS)
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"how long each window is (default {_SECONDS:g})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure quiet and hostile windows in turn. Raises Problem."""
    run = options.Run("neighbour", arguments)
    seconds = arguments.seconds or (_QUICK_SECONDS if arguments.quick else _SECONDS)
    count = options.rounds(arguments)
    paths = {what: f"/function/hostile-{number}" for number, what in enumerate(_HOSTILE)}
    with platform.running() as target, load.client() as crowd, load.client() as guest:
        target.push("quiet", {**HELLO["python"], **manifest("quiet")})
        target.push(
            "hostile",
            together(
                {
                    path.rpartition("/")[2]: ({"handler.py": _UNTIL + _HOSTILE[what]}, 'timeout = "60s"\n')
                    for what, path in paths.items()
                }
            ),
        )
        windows: dict[str, list[list[float]]] = {what: [] for what in (_QUIET, *paths)}
        progress = Progress("neighbour", (count + 1) * len(windows))
        for number in range(count + 1):
            for what, found in windows.items():
                took = _window(target, crowd, guest, paths.get(what), seconds)
                if number:
                    found.append(took)
                progress.step(what)
        run.show("A quiet function's calls beside", _figures(run, windows))
    run.plots.append(_plot(windows))
    run.notes.append(
        f"The quiet function is called every {_EVERY * 1000:g} ms over one connection. A value is the 99th "
        "percentile of a window. The hostile functions have a quarter of a core and 128 MB each; one that is "
        "ended is called again at once, so its cold starts are part of what the neighbour bears."
    )
    return run.finish()


def _window(
    target: Platform, crowd: Client, guest: Client, hostile: str | None, seconds: float
) -> list[float]:
    """Return how long each call of the quiet function took, in milliseconds."""
    if hostile is not None:
        raging = crowd.begin(rage, target.address, hostile, seconds + 2 * _LEAD)
        time.sleep(_LEAD)
    seen = guest.begin(flood.watch, target.address, "/function/quiet", _EVERY, seconds).result()
    if hostile is not None:
        raging.result()
        target.to_zero(hostile.rpartition("/")[2])
    if failed := [each.status for each in seen if each.status != 200]:
        raise RuntimeError(f"{len(failed)} of the quiet function's calls failed, one with {failed[0]}")
    return [each.took * 1000 for each in seen]


def rage(address: tuple[str, int], path: str, seconds: float) -> int:
    """Call a hostile function again and again, for it is ended again and again; return how often."""
    end = time.monotonic() + seconds
    calls = 0
    while (left := end - time.monotonic()) > 0:
        with contextlib.closing(Caller(address)) as caller, contextlib.suppress(ConnectionError):
            caller.call(f"{path}/{left:.3f}")
        calls += 1
        time.sleep(_PAUSE)
    return calls


def _figures(run: options.Run, windows: dict[str, list[list[float]]]) -> list[Figure]:
    tails = {what: [stats.percentile(window, 0.99) for window in found] for what, found in windows.items()}
    return [
        report.figure(
            f"p99 beside {what}",
            "ms",
            tails[what],
            chance=run.chance,
            baseline=None if what == _QUIET else (f"p99 beside {_QUIET}", tails[_QUIET]),
            parts={"median": median(value for window in found for value in window)},
        )
        for what, found in windows.items()
    ]


def _plot(windows: dict[str, list[list[float]]]) -> Plot:
    shares = [number / 200 for number in range(1, 200)]
    return Plot(
        name="neighbour",
        title="A quiet function's calls beside a hostile one: share answered by then",
        kind="lines",
        x="ms",
        y="share",
        logarithmic=True,
        series=[
            Series(
                what,
                [stats.percentile([value for window in found for value in window], s) for s in shares],
                shares,
            )
            for what, found in windows.items()
        ],
    )
