"""`pilotlight bench soak`: a mixed life for minutes or hours, and what is left of it at the end.

A cycle pushes an app in several revisions, calls its functions cold and warm, lets them crash, run out of
time and write documents, and deletes all of it again. So whatever there is more of at the end than at the
beginning, at rest both times, has been left behind.
"""

import argparse
import functools
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import inventory, load, options, platform, report
from benchmarks.functions import HELLO, SLOW, languages, together
from benchmarks.inventory import Item
from benchmarks.load import Caller, Client
from benchmarks.platform import Platform
from benchmarks.report import Figure, Plot, Series
from benchmarks.rounds import Progress

_MINUTES = 10.0
_WARM_UP = 2  # cycles, after which caches and allocators have what they keep
_QUICK_CYCLES = 1
_REVISIONS = 2  # of each app
_WARM = 0.3  # seconds of warm calls from a few connections
_CONNECTIONS = 4
_WRITES = 20
_REST_WITHIN = 30.0  # seconds in which everything that was ended must be gone

_STATEFUL = """import json
import os
import urllib.request

DATA = os.environ["PILOTLIGHT_DATA_URL"]


def call(method, path, value):
    body = json.dumps(value).encode()
    request = urllib.request.Request(DATA + path, body, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def handle(request):
    number = request.path.strip("/")
    call("PUT", f"/documents/{number}?ttl=600", {"text": "x" * 2000})
    print("wrote", number, "y" * 200)
    return call("POST", "/documents/count/increment", {})
"""
_CRASHING = "import os\n\n\ndef handle(request):\n    print('the last line')\n    os._exit(3)\n"
_ENDLESS = "import time\n\n\ndef handle(request):\n    time.sleep(60)\n"


@dataclass
class _Life:
    """What lives one cycle after the other on a platform."""

    target: Platform
    client: Client
    whole: bool  # with the functions that take longer
    numbers: Iterator[int]

    def cycle(self) -> None:
        """Push, call, delete. Raises RuntimeError where an answer is not the expected one."""
        number = next(self.numbers)
        app = f"life-{number % 3}"
        for revision in range(_REVISIONS):
            files = _files(app, f"{number}-{revision}", whole=self.whole)
            self.target.push(app, files, force=revision > 0)
            self._call(app, number)
        listed = json.loads(self.target.api("GET", "/api/v1/functions"))["functions"]
        for each in listed:
            self.target.to_zero(each["name"])
        for each in listed:
            self.target.api("DELETE", f"/api/v1/functions/{each['name']}")
        self._forget(app)

    def _call(self, app: str, number: int) -> None:
        address = self.target.address
        self.client.saturate(address, f"/function/{app}-hello", _CONNECTIONS, _WARM)
        caller = Caller(address)
        for name, status in (
            ("hello", 200),
            *((name, 200) for name in (_more() if self.whole else ())),
            ("crashing", 502),
            ("endless", 504),
        ):
            self._expect(caller, f"/function/{app}-{name}", status)
        for place in range(_WRITES):
            self._expect(caller, f"/function/{app}-stateful/{number % 10}-{place}", 200)
        self.target.to_zero(f"{app}-hello")
        self._expect(caller, f"/function/{app}-hello", 200)
        caller.close()

    def _expect(self, caller: Caller, path: str, status: int) -> None:
        _, _, found = caller.call(path)
        if found != status:
            raise RuntimeError(f"{path} was answered {found} instead of {status}")

    def _forget(self, app: str) -> None:
        """Delete the documents: those of an app stay when its functions are deleted."""
        while True:
            page = json.loads(self.target.api("GET", f"/data/v1/documents?limit=1000&app={app}"))
            for document in page["documents"]:
                self.target.api("DELETE", f"/data/v1/documents/{document['key']}?app={app}")
            if page["cursor"] is None:
                return

    def rest(self) -> list[Item]:
        """Wait until as much as can be is gone, and return what is there."""
        deadline = time.monotonic() + _REST_WITHIN
        while True:
            self.target.settle()
            found = inventory.take(self.target)
            if time.monotonic() > deadline or found[0].value <= self.resting:
                return found
            time.sleep(0.2)

    resting: float = 0.0
    """How many processes there were at the first rest."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the flags."""
    options.add(parser, rounds=1)
    parser.add_argument(
        "--minutes", type=float, metavar="N", help=f"how long it lives (default {_MINUTES:g})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Live, and compare; return 1 where something has grown. Raises Problem."""
    run = options.Run("soak", arguments)
    seconds = 60 * (arguments.minutes or _MINUTES)
    with platform.running() as target, load.client() as client:
        life = _Life(target, client, not arguments.quick, itertools.count())
        for _ in range(1 if arguments.quick else _WARM_UP):
            life.cycle()
        target.settle()
        life.resting = inventory.take(target)[0].value
        history = [life.rest()]
        began = time.monotonic()
        progress = Progress("soak", None)
        moments = [0.0]
        while (len(history) <= _QUICK_CYCLES) if arguments.quick else (time.monotonic() - began < seconds):
            life.cycle()
            history.append(life.rest())
            moments.append((time.monotonic() - began) / 60)
            progress.step(f"{moments[-1]:.1f} minutes")
    before, after = history[0], history[-1]
    run.show(f"After {len(history) - 1} cycles of life, all of it deleted", _figures(run, before, after))
    run.plots += _plots(moments, history)
    run.notes.append(
        f"A cycle: {_REVISIONS} pushes of five or six functions, calls of each, cold and warm, a crash and a "
        f"time-out, {_REVISIONS * _WRITES} documents, and the end of all. Compared are moments of rest after "
        "the first cycles and after the last one. Allowed is what is kept by a limit, or not given back by "
        "an allocator or a database. Documents are deleted, and logs go with their functions."
    )
    code = run.finish()
    grown = [new for old, new in _pairs(before, after) if new.value - old.value > new.allowed]
    for each in grown:
        print(f"\nGrown beyond what is kept: {each.name}, now {each.value:.4g} {each.unit}".rstrip())
    return 1 if grown else code


def _files(app: str, text: str, *, whole: bool) -> dict[str, str]:
    """Return an app of several functions, of which the text makes a new revision each."""
    parts = {
        "hello": (HELLO["python"], ""),
        "stateful": ({"handler.py": _STATEFUL}, ""),
        "crashing": ({"handler.py": _CRASHING}, ""),
        "endless": ({"handler.py": _ENDLESS}, 'timeout = "1s"\n'),
        **({name: (source, "") for name, source in _more().items()} if whole else {}),
    }
    return together(
        {
            f"{app}-{name}": ({**sources, "revision.txt": text}, f"cpu = 1.0\n{settings}")
            for name, (sources, settings) in parts.items()
        }
    )


@functools.cache
def _more() -> dict[str, dict[str, str]]:
    """Return the functions that only a long run has: one that gets a snapshot, and one in Node."""
    node = any(each.name == "node" for each in languages())
    return {"slow": SLOW["python"], **({"node": HELLO["node"]} if node else {})}


def _pairs(before: list[Item], after: list[Item]) -> list[tuple[Item, Item]]:
    """Put what is called the same side by side."""
    known = {item.name: item for item in before}
    return [(known[item.name], item) for item in after if item.name in known]


def _figures(run: options.Run, before: list[Item], after: list[Item]) -> list[Figure]:
    return [
        report.figure(
            new.name,
            new.unit,
            [new.value - old.value],
            chance=run.chance,
            parts={"before": old.value, "after": new.value, "allowed more": new.allowed},
        )
        for old, new in _pairs(before, after)
    ]


def _plots(moments: list[float], history: list[list[Item]]) -> list[Plot]:
    def plot(name: str, title: str, prefix: str, unit: str) -> Plot:
        named = [{item.name: item.value for item in items} for items in history]
        return Plot(
            name=f"soak-{name}",
            title=title,
            kind="lines",
            x="minutes",
            y=unit,
            series=[
                Series(each, moments, [values.get(each, 0.0) for values in named])
                for each in named[0]
                if each.startswith(prefix)
            ],
        )

    return [
        plot("memory", "Memory of the services, at rest after each cycle", "memory", "MB"),
        plot("disk", "Disk, at rest after each cycle", "disk", "MB"),
    ]
