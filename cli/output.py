"""How the commands show things: tables, ages, sizes, JSON."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay rows out under heads in aligned columns; what looks like a number stands at the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (heads, *cells)) for i in range(len(heads))]
    right = [
        bool(cells) and all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells)
        for i in range(len(heads))
    ]
    lines = (
        "  ".join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (heads, *cells)
    )
    return "\n".join(lines)


def ago(then: float, now: float | None = None) -> str:
    """Tell how long ago a time was, such as `3 min`."""
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Write a number of bytes, such as `12.3 MB` (powers of 1024, as in the manifest)."""
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def milliseconds(duration: float) -> str:
    """Write a duration given in milliseconds, such as `1.2 ms`."""
    return f"{duration:.1f} ms"


def show_json(value: Any) -> None:
    """Print a value for machines."""
    json.dump(value, sys.stdout, indent=2)
    print()


def note(text: str) -> None:
    """Print something that is not the result of the command: to stderr."""
    print(text, file=sys.stderr, flush=True)
