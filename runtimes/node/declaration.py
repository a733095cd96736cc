"""Node, as declared to the platform."""

import functools
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runtimes import places
from runtimes.declaration import (
    CompileCache,
    Debugger,
    Dependencies,
    Interpreter,
    Probe,
    Runtime,
    Step,
    Tool,
    read_version,
)

_FOLDER = Path(__file__).parent
_PLACES = (Path("/usr/bin/node"), Path("/usr/local/bin/node"))
_OTHER_PLACES = ("~/.nvm/versions/node/*/bin", "/opt/node*/bin")
_EXECUTABLE = re.compile("node")
_VERSION = re.compile(r"#define\s+NODE_MAJOR_VERSION\s+(\d+)")
_OLDEST = 18  # the first with web-standard Request and Response
_CACHING = 22  # the first that keeps compiled code, from 22.1 on
_PROBE_SECONDS = 10.0
_CONVENTIONS = ("handler.mjs", "handler.js", "handler.cjs")
_LOCKS = ("package-lock.json", "npm-shrinkwrap.json")
_INPUTS = ("package.json", *_LOCKS, ".npmrc")
_HANDLER = re.compile(r"([^:]+\.[cm]?js)(?::([\w$]+))?")
_BUILD = Tool("node-build", _FOLDER / "build")


@functools.cache
def find() -> tuple[Interpreter, ...]:
    """Return the interpreters of this machine, one for each major version, the system's first."""
    found: dict[str, Interpreter] = {}
    for path in _PLACES:
        version = _major(path) if path.exists() else None
        if version is not None and version >= _OLDEST:
            found.setdefault(str(version), Interpreter("node", str(version), str(path)))
    for path, prefix in places.installed(_EXECUTABLE, _OTHER_PLACES):
        header = prefix / "include/node/node_version.h"
        if places.usable(path, prefix, header):
            match = _VERSION.search(header.read_text(errors="replace"))
            if match and int(match.group(1)) >= _OLDEST:
                folder = places.folder_of(prefix)
                found.setdefault(match.group(1), Interpreter("node", match.group(1), str(path), folder))
    return tuple(found.values())


def _major(executable: Path) -> int | None:
    try:
        answer = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"v(\d+)\.", answer.stdout)
    return int(match.group(1)) if match else None


def _npm(interpreter: Interpreter) -> Path | None:
    """Return npm's program, which distributions put beside node, or in a package of its own."""
    path = Path(interpreter.executable).with_name("npm")
    return path.resolve() if path.exists() else None


def recognise(folder: Path) -> str | None:
    """Return the conventional handler: handler.mjs, handler.js or handler.cjs."""
    return next((name for name in _CONVENTIONS if (folder / name).is_file()), None)


def check(folder: Path, handler: str) -> str | None:
    """Return what is wrong with a handler ("file.mjs" or "file.mjs:export"), or None."""
    match = _HANDLER.fullmatch(handler)
    if match is None:
        return (
            f'the handler "{handler}" is not of the form FILE or FILE:EXPORT, such as "handler.mjs:handle".'
        )
    file = Path(match.group(1))
    if file.is_absolute() or ".." in file.parts or not (folder / file).is_file():
        return f'the handler "{handler}" needs the file {file}, which is not in the function\'s folder.'
    try:
        wanted = _wanted(folder)
    except ValueError as error:
        return f"its package.json can't be read: {error}."
    if wanted and not any(_npm(interpreter) for interpreter in find()):
        return "it needs npm for the packages in package.json, and this machine has none. Install npm."
    return None


def _wanted(folder: Path) -> dict[str, Any]:
    """Return the packages that package.json asks for. Raises ValueError where it is no package.json."""
    try:
        package = json.loads((folder / "package.json").read_bytes())
    except FileNotFoundError:
        return {}
    if not isinstance(package, dict):
        raise ValueError("it is not an object")  # noqa: TRY004
    return {**package.get("optionalDependencies", {}), **package.get("dependencies", {})}


def dependencies(folder: Path, interpreter: Interpreter) -> Dependencies | None:
    """Return how npm makes the layer that package.json asks for, by its lock file where there is one."""
    if not _wanted(folder):
        return None
    if interpreter.image is None:
        # Any npm serves an installation without one of its own, and `check` has seen that there is one
        npm = next(filter(None, map(_npm, (interpreter, *find()))), None)
        if npm is None:
            return None
    else:
        npm = Path(interpreter.executable).with_name("npm")
    inputs = tuple((name, (folder / name).read_bytes()) for name in _INPUTS if (folder / name).is_file())
    locked = any(name in _LOCKS for name, _ in inputs)
    install = Step(
        "Install Node packages" + ("" if locked else " (there is no lock file: versions may change)"),
        (
            interpreter.executable,
            "/tools/node-build/install.mjs",
            str(npm),
            "ci" if locked else "install",
            *(name for name, _ in inputs),
        ),
        network=True,
        tools=(_BUILD,),
    )
    return Dependencies(inputs, (install,))


def assemble(folder: Path, interpreter: Interpreter) -> tuple[Step, ...]:
    """Return the step that copies the function's files, and checks the conventional handler's syntax."""
    handler = recognise(folder)
    command = (interpreter.executable, "/tools/node-build/assemble.mjs", *([handler] if handler else []))
    return (Step("Copy and check", command, tools=(_BUILD,)),)


def compile_cache(interpreter: Interpreter, handler: str) -> CompileCache | None:
    """Return how the cache is made that shim/compiling.mjs uses; None where this Node has none."""
    if int(interpreter.version) < _CACHING:
        return None
    command = (interpreter.executable, "/tools/node-build/compile.mjs", handler.partition(":")[0])
    return CompileCache(Step("Compile ahead", command, tools=(_BUILD,)), ".compile-cache")


def boot(interpreter: Interpreter) -> tuple[str, ...] | None:
    """Return the command that starts the shim, which sandboxes have at /runtime/node."""
    return (interpreter.executable, "/runtime/node/shim.mjs")


def probe(wanted: str) -> tuple[str, ...]:  # noqa: ARG001
    """Return the command that tells which Node an image has."""
    return ("node", "-p", "JSON.stringify([process.versions.node.split('.')[0], process.execPath])")


def read_probe(lines: Iterable[str]) -> Interpreter:
    """Read what it printed (see Probe)."""
    try:
        version, executable = read_version(lines, "[0-9]{1,4}")
    except ValueError:
        raise ValueError("its `node` is no Node") from None
    if int(version) < _OLDEST:
        raise ValueError(f"its Node is {version}, and {_OLDEST} is the oldest that functions can have")
    return Interpreter("node", version, executable)


def configuration(port: int, folder: str) -> dict[str, Any]:
    """Return what VS Code needs to attach (see Debugger)."""
    return {
        "type": "node",
        "address": "127.0.0.1",
        "port": port,
        "localRoot": folder,
        "remoteRoot": "/function",
        "restart": True,
    }


RUNTIME = Runtime(
    name="node",
    title="Node",
    forkable=False,
    shim=_FOLDER / "shim",
    template=_FOLDER / "template",
    find=find,
    recognise=recognise,
    check=check,
    dependencies=dependencies,
    assemble=assemble,
    boot=boot,
    compile_cache=compile_cache,
    debugger=Debugger(9229, configuration),
    probe=Probe(probe, read_probe),
)
