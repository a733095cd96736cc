"""`pilotlight bench function NAME`: what the cold start of one's own function is made of.

It measures on the platform that runs, and ends the function's instances again and again for it.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks import baselines, options, report, rounds
from benchmarks.functions import Language, languages
from benchmarks.load import Caller
from benchmarks.report import Plot, Series
from benchmarks.rounds import Case, Measured
from cli import client, receipts
from cli.client import Platform
from pilotlight.problems import Problem

_ROUNDS = 20
_BEFORE = 4
_PAUSE = 0.1  # seconds in which the pool is refilled
_TRACES = 5
_SHOWN = 15  # imports


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the function, how to call it, and the flags that all benches have."""
    parser.add_argument("name", metavar="NAME", help="the function")
    parser.add_argument("--path", default="/", help="what is called below /function/NAME (default /)")
    parser.add_argument("--method", default="GET", help="the method (default GET)")
    parser.add_argument("--data", default="", metavar="TEXT", help="the body")
    options.add(parser, rounds=_ROUNDS)


def run(arguments: argparse.Namespace) -> int:
    """Measure cold starts beside the bare interpreter, then trace the imports. Raises Problem."""
    found = client.find()
    status = found.get(client.path("functions", arguments.name))
    run = options.Run(f"function {arguments.name}", arguments)
    parts = urlsplit(found.url)
    if parts.scheme != "http":
        raise Problem("invalid-request", f"{found.url}: cold starts are measured over plain HTTP only.")
    caller = Caller((parts.hostname or "", parts.port or 80), key=found.key)
    runtime = status["config"]["runtime"]
    language = next(iter(languages([runtime])), None)
    try:
        for _ in range(_BEFORE):  # after which the platform has taken a snapshot, if it means to
            _cold(found, caller, arguments)
        _starts(run, found, caller, arguments, language)
    finally:
        caller.close()
    status = found.get(client.path("functions", arguments.name))
    if status["snapshot"]:
        run.notes.append(
            "The platform has taken a snapshot after its imports, so these are no part of the starts above. "
            "They are while there is none: at the first starts of a revision, and after a long idle time."
        )
    elif status["snapshot_refusal"]:
        run.notes.append(f"It can't have a snapshot: {status['snapshot_refusal']}")
    if language is not None and language.name == "python":
        _imports(run, found, arguments)
    else:
        run.notes.append(f"{runtime} can't tell what single imports cost; `code` is all of them together.")
    return run.finish()


def _starts(
    run: options.Run,
    found: Platform,
    caller: Caller,
    arguments: argparse.Namespace,
    language: Language | None,
) -> None:
    name = arguments.name
    title = f"{name}, a cold start"
    cases = [Case(title, lambda: _cold(found, caller, arguments))]
    if language is not None and language.name != "native":
        cases.append(baselines.bare(baselines.program(language, Path())))
    measured = rounds.interleave(name, cases, options.rounds(arguments))
    beside = (cases[1].name, rounds.values(measured[cases[1].name])) if len(cases) > 1 else None
    figures = [
        report.figure(
            title,
            "ms",
            rounds.values(measured[title]),
            chance=run.chance,
            baseline=beside,
            parts=rounds.parts(measured[title]),
        )
    ]
    if beside:
        figures.append(report.figure(beside[0], "ms", beside[1], chance=run.chance))
    run.show(f"Cold starts of {name}, as the client sees them; stages are medians", figures)
    stages = list(figures[0].parts)
    run.plots.append(
        Plot(
            name=f"function-{name}",
            title=f"The cold start of {name}: medians of its stages",
            kind="bars",
            x="ms",
            y="",
            series=[Series(stage, [name], [figures[0].parts[stage]]) for stage in stages],
        )
    )


def _cold(found: Platform, caller: Caller, arguments: argparse.Namespace) -> Measured:
    found.call("DELETE", client.path("functions", arguments.name, "instances"))
    time.sleep(_PAUSE)
    path = f"/function/{arguments.name}{arguments.path}"
    took, headers, status = caller.call(path, method=arguments.method, body=arguments.data.encode())
    if "pilotlight-error" in headers:
        kind = headers["pilotlight-error"]
        raise Problem("invalid-request", f"{arguments.name} could not be called: {status} {kind}.")
    if headers.get("Pilotlight-Start") != "cold":
        raise Problem("conflict", f"{arguments.name} is called by others meanwhile; no start was cold.")
    stages = receipts.read(headers).stages
    return Measured(took * 1000, {**stages, "rest": max(0.0, took * 1000 - sum(stages.values()))})


def _imports(run: options.Run, found: Platform, arguments: argparse.Namespace) -> None:
    """Trace the imports several times, and show those that cost most."""
    own: dict[str, list[float]] = defaultdict(list)
    total: dict[str, list[float]] = defaultdict(list)
    for _ in range(2 if arguments.quick else _TRACES):
        traced: list[dict[str, Any]] = found.call(
            "POST", client.path("functions", arguments.name, "imports")
        )["imports"]
        for each in traced:
            own[each["name"]].append(each["own"])
            total[each["name"]].append(each["total"])
    if not own:
        run.notes.append("It imports nothing that is not loaded already.")
        return
    costly = sorted(own, key=lambda module: median(total[module]), reverse=True)[:_SHOWN]
    figures = []
    for module in costly:
        itself, whole = median(own[module]), median(total[module])
        parts = {"itself": itself, "what it imports": whole - itself}
        figures.append(report.figure(f"import {module}", "ms", total[module], chance=run.chance, parts=parts))
    run.show("What its imports cost, with what they import themselves; the costliest first", figures)
    run.plots.append(
        Plot(
            name=f"function-{arguments.name}-imports",
            title=f"The imports of {arguments.name}",
            kind="bars",
            x="ms",
            y="",
            series=[
                Series(part, costly, [each.parts[part] for each in figures])
                for part in ("itself", "what it imports")
            ],
        )
    )
    first = max(own, key=lambda module: median(own[module]))
    run.notes.append(
        f"Of all modules, {first} takes longest itself: {median(own[first]):.1f} ms. The imports were traced "
        "in a sandbox of their own, after what every Python sandbox has loaded already; tracing slows them."
    )
