"""What a language's folder declares: how it is recognised, found, built and booted.

A runtime is a folder here with a `declaration.py` that has `RUNTIME`, a `shim/` that runs inside the
sandbox, and a `template/` that `pilotlight new` copies. A new language is one folder.
"""

import importlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Interpreter:
    """One version of a language that this machine has, or an image."""

    runtime: str  # "python"
    version: str  # "3.11"; empty where there is none to tell apart
    executable: str  # absolute path, the same inside and outside
    folder: str | None = None  # what must be mounted beside the system folders, if it lies elsewhere
    image: str | None = None  # the id of the image that it lies in; None for this machine
    whole: bool = False  # that image brings the program along, and nothing is mounted in it

    @property
    def name(self) -> str:
        """The name by which a manifest pins it, such as `python3.11`."""
        return self.runtime + self.version

    @property
    def key(self) -> str:
        """What tells it from all others; for one of this machine it is the name."""
        if self.image is None:
            return self.name
        return f"{self.name}@{self.image}{' whole' if self.whole else ''}"


@dataclass(frozen=True)
class Tool:
    """A folder of the platform that a build step needs, seen at /tools/NAME."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Step:
    """One command of a build. It runs in a sandbox: /source is read-only, /build is what it makes."""

    title: str
    command: tuple[str, ...]
    network: bool = False  # whether it may reach the package index
    tools: tuple[Tool, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dependencies:
    """What a layer of dependencies is made from: equal `inputs` mean the same layer."""

    inputs: tuple[tuple[str, bytes], ...]  # file name, content
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class CompileCache:
    """How a function's code is compiled ahead, for languages in which only loading it can do that.

    The step runs code of the function, and sees it as instances do, read-only, with its dependencies.
    What it leaves in /build becomes `folder` in the function's own layer. A build goes on without it when it
    fails.
    """

    step: Step
    folder: str


@dataclass(frozen=True)
class ImportedModule:
    """One module that a function imports, in milliseconds; `depth` says what imported it (0: the handler)."""

    name: str
    depth: int
    own: float
    total: float


@dataclass(frozen=True)
class Imports:
    """How to learn what a function's imports cost: a command in its sandbox, and how its output is read."""

    command: Callable[[Interpreter, str], tuple[str, ...]]
    read: Callable[[Iterable[str]], tuple[ImportedModule, ...]]


@dataclass(frozen=True)
class Probe:
    """How to learn which version of a language an image has: a command in it, and how its output is read.

    `command(wanted)` is for what the manifest says, such as "python3.12". `read` raises ValueError, whose
    text is what is wrong with the version that is there.
    """

    command: Callable[[str], tuple[str, ...]]
    read: Callable[[Iterable[str]], Interpreter]


def read_version(lines: Iterable[str], version: str) -> tuple[str, str]:
    """Return the version and the path of an executable, which were printed as JSON in an image.

    Whatever else an image prints raises ValueError, also a version that `version`, a pattern, does not match.
    """
    try:
        told = json.loads("".join(lines))
    except RecursionError:
        told = None
    match told:
        case [str(found), str(executable)] if re.fullmatch(version, found) and executable.startswith("/"):
            return found, executable
        case _:
            raise ValueError("it is no version with a path")


@dataclass(frozen=True)
class Debugger:
    """How an editor gets at functions of a language: the shim listens for it on a port of loopback.

    `configuration(port, folder)` is what VS Code's launch.json says to attach there, where the function's
    files lie in that folder of the developer's. `find` returns what the shim needs at /tools/NAME, None where
    it is not installed; then `remedy` says what to do.
    """

    port: int  # also the one that editors expect
    configuration: Callable[[int, str], dict[str, Any]]
    find: Callable[[], Tool | None] | None = None
    remedy: str = ""


@dataclass(frozen=True)
class Runtime:
    """A language.

    `recognise(folder)` returns the conventional handler of a function in that folder, or None.
    `check(folder, handler)` returns what is wrong with a handler, or None.
    `dependencies(folder, interpreter)` and `assemble(folder, interpreter)` return the build of the two
    parts of the code layer; `assemble` fills /build with the function's own files.
    `compile_cache(interpreter, handler)` is there where code is compiled by loading it.
    `boot(interpreter)` is the command that starts the shim; None where the engine forks it (`forkable`),
    which it can do with one of this machine only, or where the function itself is the program.
    `probe` finds the language's interpreter in an image; without it, builds need none there.
    `image_file` names the file by which an image is built that brings a program of this runtime along. It
    counts where no runtime recognises the folder, and as the handler that a manifest names.
    `imports` is there where the language can tell what each import costs, `debugger` where it has one.
    """

    name: str
    title: str
    forkable: bool
    shim: Path | None
    template: Path
    find: Callable[[], tuple[Interpreter, ...]]
    recognise: Callable[[Path], str | None]
    check: Callable[[Path, str], str | None]
    dependencies: Callable[[Path, Interpreter], Dependencies | None]
    assemble: Callable[[Path, Interpreter], tuple[Step, ...]]
    boot: Callable[[Interpreter], tuple[str, ...] | None]
    compile_cache: Callable[[Interpreter, str], CompileCache | None] | None = None
    imports: Imports | None = None
    debugger: Debugger | None = None
    probe: Probe | None = None
    image_file: str | None = None


def load_all() -> dict[str, Runtime]:
    """Return every runtime there is, by name, in the order in which folders are recognised."""
    found: dict[str, Runtime] = {}
    for folder in sorted(Path(__file__).parent.iterdir()):
        if (folder / "declaration.py").is_file():
            runtime: Runtime = importlib.import_module(f"runtimes.{folder.name}.declaration").RUNTIME
            found[runtime.name] = runtime
    return found


def choose(interpreters: tuple[Interpreter, ...], wanted: str) -> Interpreter | None:
    """Return the interpreter that `wanted` ("python", "python3.12") names.

    If several do, it is the newest of the system's, so that what somebody installs in a home changes nothing.
    """
    fitting = [i for i in interpreters if wanted in (i.name, i.runtime)]
    return max(
        fitting,
        key=lambda i: (i.folder is None, [int(part) for part in i.version.split(".") if part]),
        default=None,
    )
