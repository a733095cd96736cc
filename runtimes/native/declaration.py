"""Native programs, as declared to the platform."""

import os
import shlex
from pathlib import Path

from runtimes.declaration import Dependencies, Interpreter, Runtime, Step

_FOLDER = Path(__file__).parent
_CONVENTIONS = ("handler", "server", "bootstrap")
_COPY = "cp -dR --preserve=mode /source/. /build && rm -rf /build/.git"


def find() -> tuple[Interpreter, ...]:
    """Return the one that is always there: the machine itself."""
    return (Interpreter("native", "", "/bin/sh"),)


def recognise(folder: Path) -> str | None:
    """Return the conventional handler: an executable file `handler`, `server` or `bootstrap`."""
    for name in _CONVENTIONS:
        path = folder / name
        if path.is_file() and os.access(path, os.X_OK):
            return name
    return None


def check(folder: Path, handler: str) -> str | None:
    """Return what is wrong with a handler (a program's path in the folder, and arguments), or None."""
    try:
        words = shlex.split(handler)
    except ValueError as error:
        return f'the handler "{handler}" can\'t be read as a command: {error}.'
    program = Path(words[0]) if words else Path()
    if not words or program.is_absolute() or ".." in program.parts:
        return f'the handler "{handler}" must begin with the path of a program in the function\'s folder.'
    if not (folder / program).is_file():
        return f'the handler "{handler}" needs the file {program}, which is not there.'
    if not os.access(folder / program, os.X_OK):
        return f"its handler {program} is not executable. Run `git update-index --chmod=+x {program}`."
    return None


def dependencies(folder: Path, interpreter: Interpreter) -> Dependencies | None:  # noqa: ARG001
    """Return None: a native program brings everything along."""
    return None


def assemble(folder: Path, interpreter: Interpreter) -> tuple[Step, ...]:  # noqa: ARG001
    """Return the step that copies the function's files."""
    return (Step("Copy", ("/bin/sh", "-c", _COPY)),)


def boot(interpreter: Interpreter) -> tuple[str, ...] | None:  # noqa: ARG001
    """Return None: the function itself is the program."""
    return None


RUNTIME = Runtime(
    name="native",
    title="Native",
    forkable=False,
    shim=None,
    template=_FOLDER / "template",
    find=find,
    recognise=recognise,
    check=check,
    dependencies=dependencies,
    assemble=assemble,
    boot=boot,
    image_file="Dockerfile",
)
