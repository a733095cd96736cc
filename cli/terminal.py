"""How things look at a terminal. It imports rich, which is worth its time only where somebody looks."""

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from cli.output import at_right

_GAP: Final = 2
_BOLD, _DIM, _GOOD, _BAD = "bold", "dim", "green", "bold red"


def show_table(heads: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> None:
    """Print a table that fits the window: without some of `spare` where it must, at last in folded lines."""
    console = Console(highlight=False)
    columns = [[head, *(row[i] for row in rows)] for i, head in enumerate(heads)]
    left_out = []
    for head in spare:
        if sum(max(map(cell_len, column)) + _GAP for column in columns) - _GAP <= console.width:
            break
        columns = [column for column in columns if column[0] != head]
        left_out.append(head)
    grid = _grid()
    for head, *cells in columns:
        grid.add_column(head, justify="right" if at_right(cells) else "left", overflow="fold")
    for row in zip(*(cells for _, *cells in columns), strict=True):
        grid.add_row(*map(Text, row))
    console.print(grid)
    if left_out:
        names = ", ".join(reversed(left_out))
        Console(stderr=True, highlight=False).print(Text(f"In a wider window also: {names}", _DIM))


def show_checks(heads: tuple[str, str], checks: Sequence[tuple[bool, str, str, str]]) -> None:
    """Print for each check whether it is kept and what it is, and below that the reason and the remedy."""
    grid = _grid()
    for head in heads:
        grid.add_column(head, overflow="fold")
    for kept, name, reason, remedy in checks:
        text = Text(name, _BOLD)
        if reason:
            text.append(f"\n{reason}", "not bold")
        if remedy:
            text.append(f"\n→ {remedy}", "not bold")
        grid.add_row(Text("yes", _GOOD) if kept else Text("NO", _BAD), text)
    Console(highlight=False).print(grid)


def _grid() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style=_BOLD)


class Doing(Status):
    """What shows, while it is entered, that something is being done."""

    def __init__(self, text: str) -> None:
        super().__init__(Text(text), console=Console(stderr=True))

    def tell(self, text: str) -> None:
        """Show another text."""
        self.update(Text(text))
