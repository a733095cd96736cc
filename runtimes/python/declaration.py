"""Python, as declared to the platform."""

import functools
import hashlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pip

from runtimes import places
from runtimes.declaration import (
    Debugger,
    Dependencies,
    Imports,
    Interpreter,
    Probe,
    Runtime,
    Step,
    Tool,
    read_version,
)
from runtimes.python import importing
from runtimes.python.recognition import check, recognise

_FOLDER = Path(__file__).parent
_PLACES = (Path("/usr/bin"), Path("/usr/local/bin"))
_OTHER_PLACES = ("~/.pyenv/versions/*/bin", "~/.local/share/uv/python/*/bin", "/opt/*/bin")
_EXECUTABLE = re.compile(r"python3\.(\d+)")
_OLDEST = 9
_PROBE = (
    "import os, sys; library = os.path.dirname(os.__file__); "
    "whole = os.path.isdir(os.path.join(library, 'asyncio')); "  # Debian's python3-minimal has no asyncio
    "print('%d.%d' % sys.version_info[:2] if whole else '')"
)
_PROBE_SECONDS = 10.0
_IMAGE_PROBE = (
    "import asyncio, json, ssl, sys; print(json.dumps(['%d.%d' % sys.version_info[:2], sys.executable]))"
)
_BUILD = Tool("python-build", _FOLDER / "build")
_PIP = Tool("pip", Path(pip.__file__).parent)
_INCLUDES = re.compile(r"\s*(?:-r|-c|--requirement|--constraint)[\s=]*(\S+)")
_LOCAL = re.compile(
    r"\s*(?:-e\b|--editable\b|-f\b|--find-links\b|[./]|file:)|.*@\s*file:|.*\.(?:whl|tar\.gz)\s*$"
)


@functools.cache
def find() -> tuple[Interpreter, ...]:
    """Return the interpreters of this machine, one for each minor version, the system's first.

    Only where there are none, the platform's own.
    """
    candidates: dict[str, Path] = {}
    for place in _PLACES:
        for path in sorted(place.glob("python3.*")):
            match = _EXECUTABLE.fullmatch(path.name)
            if match and int(match.group(1)) >= _OLDEST:
                candidates.setdefault(path.name, path)
    found: dict[str, Interpreter] = {}
    for path, version in zip(candidates.values(), _versions(list(candidates.values())), strict=True):
        if version:
            found.setdefault(version, Interpreter("python", version, str(path)))
    for path, prefix in places.installed(_EXECUTABLE, _OTHER_PLACES):
        version = path.name.removeprefix("python")
        fits = int(version.partition(".")[2]) >= _OLDEST and version not in found
        if fits and places.usable(path, prefix, prefix / f"lib/{path.name}/asyncio/__init__.py"):
            found[version] = Interpreter("python", version, str(path), places.folder_of(prefix))
    if found:
        return tuple(found.values())
    own = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (Interpreter("python", version, str(own), str(Path(sys.base_prefix).resolve())),)


def _versions(executables: list[Path]) -> list[str]:
    """Return what version each really is, all asked at once; empty for those that don't work."""
    running = [
        subprocess.Popen(
            [executable, "-I", "-S", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for executable in executables
    ]
    versions = []
    for process in running:
        try:
            output, _ = process.communicate(timeout=_PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            output = ""
        versions.append(output.strip() if process.returncode == 0 else "")
    return versions


def dependencies(folder: Path, interpreter: Interpreter) -> Dependencies | None:
    """Return how pip makes the layer that requirements.txt and pyproject.toml ask for."""
    inputs: dict[str, bytes] = {}
    arguments: list[str] = []
    local = False
    if (folder / "requirements.txt").is_file():
        local = _read_requirements(folder, "requirements.txt", inputs)
        if _says_something(inputs):
            arguments += ["-r", "/source/requirements.txt"]
    declared = _declared(folder)
    if declared:
        inputs["pyproject.toml"] = "\n".join(declared).encode()
        arguments += ["--", *declared]
    if not arguments:
        return None
    if local:
        inputs["the function's own files"] = _digest(folder)
    install = Step(
        "Install Python packages",
        (interpreter.executable, "-I", "/tools/python-build/build.py", "install", *arguments),
        network=True,
        tools=(_BUILD, _PIP),
    )
    return Dependencies(tuple(inputs.items()), (install,))


def _declared(folder: Path) -> list[str]:
    """Return the dependencies that pyproject.toml names; none where it can't be read (see `check`)."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text()).get("project", {})
    except (FileNotFoundError, tomllib.TOMLDecodeError):
        return []
    return [str(each) for each in project.get("dependencies", [])]


def _read_requirements(folder: Path, name: str, inputs: dict[str, bytes]) -> bool:
    """Collect a requirements file and those that it includes. Return whether one names files beside it."""
    path = (folder / name).resolve()
    if name in inputs or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return False  # pip itself tells about an included file that is not there
    inputs[name] = path.read_bytes()
    local = False
    for line in inputs[name].decode(errors="replace").splitlines():
        if match := _INCLUDES.match(line):
            included = (Path(name).parent / match.group(1)).as_posix()
            local |= _read_requirements(folder, included, inputs)
        else:
            local |= _LOCAL.match(line) is not None
    return local


def _says_something(inputs: dict[str, bytes]) -> bool:
    lines = b"\n".join(inputs.values()).splitlines()
    return any(line.strip() and not line.strip().startswith(b"#") for line in lines)


def _digest(folder: Path) -> bytes:
    """Return a digest of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            total.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return total.digest()


def assemble(folder: Path, interpreter: Interpreter) -> tuple[Step, ...]:  # noqa: ARG001
    """Return the step that copies and compiles the function's files."""
    command = (interpreter.executable, "-I", "-S", "/tools/python-build/build.py", "assemble")
    return (Step("Copy and compile", command, tools=(_BUILD,)),)


def boot(interpreter: Interpreter) -> tuple[str, ...] | None:
    """Return None, since engines fork Python; where it is an image's, the command that starts the shim."""
    if interpreter.image is None:
        return None
    return (interpreter.executable, "-I", "-S", "-B", "/runtime/python/pilotlight_shim.py")


def probe(wanted: str) -> tuple[str, ...]:
    """Return the command that tells which Python an image has."""
    program = "python3" if wanted == "python" else wanted
    return (program, "-I", "-S", "-B", "-c", _IMAGE_PROBE)


def read_probe(lines: Iterable[str]) -> Interpreter:
    """Read what it printed (see Probe)."""
    try:
        version, executable = read_version(lines, r"[0-9]{1,4}\.[0-9]{1,4}")
    except ValueError:
        raise ValueError("its Python lacks a part of the standard library, such as asyncio or ssl") from None
    major, minor = map(int, version.split("."))
    if major != 3 or minor < _OLDEST:
        raise ValueError(f"its Python is {version}, and 3.{_OLDEST} is the oldest that functions can have")
    return Interpreter("python", version, executable)


def find_debugger() -> Tool | None:
    """Return debugpy of the platform's own environment; it has what any version of Python needs."""
    found = importlib.util.find_spec("debugpy")
    places = found.submodule_search_locations if found is not None else None
    return Tool("debugpy", Path(places[0])) if places else None


def configuration(port: int, folder: str) -> dict[str, Any]:
    """Return what VS Code needs to attach (see Debugger)."""
    return {
        "type": "debugpy",
        "connect": {"host": "127.0.0.1", "port": port},
        "pathMappings": [{"localRoot": folder, "remoteRoot": "/function"}],
    }


RUNTIME = Runtime(
    name="python",
    title="Python",
    forkable=True,
    shim=_FOLDER / "shim",
    template=_FOLDER / "template",
    find=find,
    recognise=recognise,
    check=check,
    dependencies=dependencies,
    assemble=assemble,
    boot=boot,
    probe=Probe(probe, read_probe),
    imports=Imports(importing.command, importing.read),
    debugger=Debugger(
        5678,
        configuration,
        find_debugger,
        "debugpy is not installed beside Pilotlight. Install it there: pip install 'pilotlight[debug]'",
    ),
)
