"""`make demo`: the platform with the samples on it, from `git push` to answered calls and back to zero.

Everything happens as a user would do it: a platform in a process of its own, git repositories made of
samples/, real pushes, HTTP calls. What is made lies in .data/demo and goes when the demo ends.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from cli import client, git, output, own_platform, receipts
from cli.client import Platform
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem
from runtimes.declaration import load_all
from samples.expected import Exchange, read

_ROOT: Final = Path(__file__).resolve().parent.parent
_SAMPLES: Final = _ROOT / "samples"
_FOLDER: Final = _ROOT / ".data" / "demo"
_AUTHOR: Final = ("-c", "user.name=Demo", "-c", "user.email=demo@localhost")
_SHOWN: Final = "hello-python"  # goes to zero and wakes


@dataclass(frozen=True)
class Call:
    """One call that was made, and what of its answer is not as expected."""

    function: str
    receipt: receipts.Receipt
    total: float  # milliseconds
    differences: list[str]


def main() -> int:
    """Run the demo; with --once it ends by itself, with 0 only if every call answered what it should."""
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--once", action="store_true", help="end by itself")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _exit)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # in step with what git prints
    data = DataFolder(_FOLDER / "platform")
    try:
        _make_room(data)
        began = time.monotonic()
        with own_platform.running(_FOLDER, own_platform.free_port("the demo")) as started:
            print(f"{started.line} ({time.monotonic() - began:.1f} s after it was started)")
            print("\n".join(started.notes), end="\n" if started.notes else "")
            return _show(started.platform, data, once=arguments.once)
    except Problem as problem:
        output.note(f"demo: {problem.detail}")
        return 1
    except KeyboardInterrupt:
        print()
        return 0 if not arguments.once else 130


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _make_room(data: DataFolder) -> None:
    """Remove what a demo that was killed has left. Raises Problem where one is running."""
    data.prepare()
    os.close(data.lock())
    shutil.rmtree(_FOLDER)


def _show(platform: Platform, data: DataFolder, *, once: bool) -> int:
    samples = _usable()
    deployed = {name: runtime for name, runtime in samples.items() if _push(platform, name)}
    calls = [call for name in deployed for call in _replay_twice(platform, name)]
    print("\nEach sample was called twice; milliseconds, as the receipt of the answer tells:\n")
    print(_table(calls, deployed))
    if _SHOWN in deployed:
        calls += _to_zero_and_back(platform)
    wrong = [f"{call.function}: {text}" for call in calls for text in call.differences]
    wrong += [f"{name}: its push was rejected" for name in samples if name not in deployed]
    for text in wrong:
        output.note(f"WRONG  {text}")
    if not once:
        _say_what_is_next(platform, data)
        signal.pause()
    if not wrong:
        print(f"\nAll {len(deployed)} samples answered what they should.")
    return 1 if wrong else 0


def _usable() -> dict[str, str]:
    """Return the samples whose language this machine has, and that language; name the others."""
    usable = {}
    for folder in sorted(entry for entry in _SAMPLES.iterdir() if (entry / "expected.http").is_file()):
        runtime = next((each for each in load_all().values() if each.recognise(folder) is not None), None)
        if runtime is None:
            raise Problem("internal", f"No runtime recognises {folder}.")
        if runtime.find():
            usable[folder.name] = runtime.title
        else:
            print(f"Left out: {folder.name}, since this machine has no {runtime.title}.")
    return usable


def _push(platform: Platform, name: str) -> bool:
    """Make a git repository of a sample and push it; git shows the build as it goes."""
    repository = _FOLDER / "samples" / name
    shutil.copytree(_SAMPLES / name, repository, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    git.run(repository, "init", "--quiet", "--initial-branch=main")
    git.run(repository, "add", ".")
    git.run(repository, *_AUTHOR, "commit", "--quiet", "--message", f"Add {name}")
    git.run(repository, "remote", "add", git.REMOTE, git.address(platform.url, name))
    git.keep_key(repository, platform.url, platform.key or "")
    print(f"\n{name}$ git push {git.REMOTE} main")
    pushed = subprocess.run(["git", "push", "--quiet", git.REMOTE, "main"], cwd=repository, check=False)
    return pushed.returncode == 0


def _replay_twice(platform: Platform, function: str) -> Iterator[Call]:
    """Replay a sample's calls two times: the first finds no instance, the second a warm one."""
    platform.call("DELETE", client.path("functions", function, "instances"))
    for _ in range(2):
        for exchange in read(_SAMPLES / function):
            yield _call(platform, function, exchange)


def _call(platform: Platform, function: str, exchange: Exchange) -> Call:
    started = time.perf_counter()
    where = f"/function/{function}{exchange.target}"
    with platform.request(exchange.method, where, exchange.body or None, exchange.headers) as response:
        body = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        status = response.status
    total = (time.perf_counter() - started) * 1000
    return Call(
        function,
        receipts.read(response.headers),
        total,
        [f"{exchange.title}: {text}" for text in exchange.differences(status, headers, body)],
    )


def _table(calls: list[Call], runtimes: dict[str, str]) -> str:
    """Lay out the first call of each replay."""
    heads = ("FUNCTION", "RUNTIME", "START", *(stage.upper() for stage in receipts.STAGES), "TOTAL")
    rows = []
    for function, runtime in runtimes.items():
        own = [call for call in calls if call.function == function]
        for call in (own[0], own[len(own) // 2]):
            stages = [f"{call.receipt.stages.get(stage, 0.0):.1f}" for stage in receipts.STAGES]
            rows.append((function, runtime, call.receipt.start, *stages, f"{call.total:.1f}"))
    return output.table(heads, rows)


def _to_zero_and_back(platform: Platform) -> Iterator[Call]:
    """Show one function that goes to zero and wakes."""
    instances = client.path("functions", _SHOWN, "instances")
    ended = platform.call("DELETE", instances)["ended"]
    left = len(platform.get(instances)["instances"])
    print(f"\n{_SHOWN} to zero: {ended} instance(s) ended, {left} left. The next call wakes it:")
    call = _call(platform, _SHOWN, read(_SAMPLES / _SHOWN)[0])
    print(f"{_SHOWN} answered after {call.total:.1f} ms ({call.receipt})")
    if left or call.receipt.start != "cold":
        call.differences.append(f"it was not at zero: {left} instances, a {call.receipt.start} start")
    yield call


def _say_what_is_next(platform: Platform, data: DataFolder) -> None:
    here = Path.cwd()
    program = Path(sys.executable).parent / "pilotlight"
    shown = program.relative_to(here) if program.is_relative_to(here) else program
    print(
        f"""
The platform stays up until Ctrl-C. In another terminal:

  export PILOTLIGHT_DATA={data.root}
  curl -i {platform.url}/function/{_SHOWN}
  {shown} list
  {shown} ps
  {shown} logs -f {_SHOWN}
  cd {_FOLDER / "samples" / _SHOWN}   # change handler.py, git commit, git push {git.REMOTE} main
""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
