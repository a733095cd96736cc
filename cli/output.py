"""How the commands show things: tables, ages, sizes, JSON, and that something takes long.

What a person reads at a terminal is left to terminal.py, which takes a while to import; what a program reads
through a pipe is plain, and nothing of it is cut.
"""

import contextlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cli import terminal

_NUMBER: Final = re.compile(r"(\d[^A-Za-z]*( .*)?|-|)")
_LONG: Final = 0.5  # seconds after which somebody wonders what is going on


def show_table(heads: Sequence[str], rows: Iterable[Sequence[str]], spare: Sequence[str] = ()) -> None:
    """Print a table.

    A terminal that is too narrow for it is not given the columns that `spare` names, the first one first.
    """
    if sys.stdout.isatty():
        from cli import terminal

        terminal.show_table(heads, list(rows), spare)
    else:
        print(table(heads, rows))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay rows out under heads in aligned columns; what looks like a number stands at the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (heads, *cells)) for i in range(len(heads))]
    right = [at_right([row[i] for row in cells]) for i in range(len(heads))]
    lines = (
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (heads, *cells)
    )
    return "\n".join(lines)


def at_right(cells: Sequence[str]) -> bool:
    """Tell whether a column looks like numbers, with or without units; ids that begin with a digit don't."""
    return bool(cells) and all(map(_NUMBER.fullmatch, cells))


def harmless(text: str) -> str:
    """Return what a stranger's program said, in lines that do nothing to a terminal but to be read.

    Control characters, which could clear the screen or rewrite what stands on it, become spaces.
    """
    lines = (line.expandtabs(4).rstrip("\r") for line in text.split("\n"))
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)


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


def with_remedy(reason: str, remedy: str) -> str:
    """Join what is the matter and what to do about it to one line."""
    return f"{reason.removesuffix('.')}. {remedy}" if reason and remedy else reason or remedy


def show_json(value: Any) -> None:
    """Print a value for machines."""
    json.dump(value, sys.stdout, indent=2)
    print()


@contextlib.contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """Yield what shows, from its first call on, what is being done: on stderr, and only at a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with contextlib.ExitStack() as stack:
        shown: list[terminal.Doing] = []

        def tell(text: str) -> None:
            from cli.terminal import Doing

            if shown:
                shown[0].tell(text)
            else:
                shown.append(Doing(text))
                stack.enter_context(shown[0])

        yield tell


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show what is being done while it takes long."""
    with telling() as tell:
        timer = threading.Timer(_LONG, tell, [text])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # where it is just showing it, that has to come first


@contextlib.contextmanager
def ending_tidily() -> Iterator[None]:
    """Let SIGTERM undo what has been done by halves, as Ctrl-C does."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def note(text: str) -> None:
    """Print something that is not the result of the command: to stderr."""
    print(text, file=sys.stderr, flush=True)
