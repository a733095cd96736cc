"""What each module costs that a function imports, told by CPython itself (`-X importtime`)."""

import re
from collections.abc import Iterable

from runtimes.declaration import ImportedModule, Interpreter

_BEGIN = "-- the function's own imports --"
_LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|( +)(\S+)")
_PROGRAM = f"""
import os, sys
sys.path.insert(0, "/runtime/python")
import pilotlight_shim
sys.path.remove("/runtime/python")
pilotlight_shim.preload()
sys.path[:0] = ["/function", "/dependencies"]
print({_BEGIN!r}, file=sys.stderr, flush=True)
try:
    pilotlight_shim.load(sys.argv[1])
except pilotlight_shim.LoadError as error:
    print(error, file=sys.stderr, flush=True)
    os._exit(1)
os._exit(0)
"""


def command(interpreter: Interpreter, handler: str) -> tuple[str, ...]:
    """Return the command that imports a handler as a booted shim would, where its code is mounted."""
    return (interpreter.executable, "-I", "-S", "-X", "importtime", "-c", _PROGRAM, handler)


def read(lines: Iterable[str]) -> tuple[ImportedModule, ...]:
    """Read what that command printed; what the runtime has loaded ahead is left out."""
    found: list[ImportedModule] = []
    begun = False
    for line in lines:
        if line == _BEGIN:
            begun = True
        elif begun and (match := _LINE.fullmatch(line.rstrip())) is not None:
            own, total = int(match[1]) / 1000, int(match[2]) / 1000
            found.append(ImportedModule(match[4], (len(match[3]) - 1) // 2, own, total))
    return tuple(found)
