"""The build steps of Python: `assemble` a function's own files, `install` what it depends on.

Runs inside of a build's sandbox, under the function's interpreter; standard library only. Compiled files are
marked as unchecked, so that an import neither reads nor compares the source.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import sys
from pathlib import Path

_SOURCE, _BUILD, _TOOLS = Path("/source"), Path("/build"), Path("/tools")
_SCRATCH = _BUILD / ".scratch"  # on the same disk as the result, so that pip moves in place of copying


def assemble() -> int:
    """Copy the function's files and compile them. Return the exit code."""
    ignored = shutil.ignore_patterns(".git", "__pycache__", "*.pyc")
    shutil.copytree(_SOURCE, _BUILD, symlinks=True, dirs_exist_ok=True, ignore=ignored)
    errors = _compile(_BUILD, "/function")
    for error in errors:
        print(error)
    return 1 if errors else 0


def install(arguments: list[str]) -> int:
    """Install packages with the platform's pip, and compile them. Return the exit code."""
    _SCRATCH.mkdir()
    os.environ["TMPDIR"] = str(_SCRATCH)
    sys.path.insert(0, str(_TOOLS))
    from pip._internal.cli.main import main as pip

    options = ["--target", str(_BUILD), "--no-input", "--no-cache-dir", "--no-compile"]
    options += ["--progress-bar", "off", "--root-user-action", "ignore"]
    code = pip(["--disable-pip-version-check", "install", *options, *arguments])
    shutil.rmtree(_SCRATCH)
    if not code:
        _compile(_BUILD, "/dependencies")  # packages may hold what is no Python, such as templates
    return code


def _compile(folder: Path, seen_at: str) -> list[str]:
    """Compile what is Python below folder, as if it lay at `seen_at`. Return the errors."""
    errors = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in files if name.endswith(".py")):
            if path.is_symlink():
                continue
            try:
                py_compile.compile(
                    str(path),
                    dfile=f"{seen_at}/{path.relative_to(folder)}",
                    doraise=True,
                    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
                )
            except py_compile.PyCompileError as error:
                errors.append(error.msg.strip().replace(seen_at + "/", ""))
    return errors


if __name__ == "__main__":
    sys.exit(assemble() if sys.argv[1] == "assemble" else install(sys.argv[2:]))
