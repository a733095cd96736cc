"""Groups of commands: in the order of their table, imported when asked for, and helpful about typos."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem


class Group(click.Group):
    """Commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  as click calls it
        """Return the names, for the help and the completion."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names. Raises UsageError with what it may mean."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not ctx.resilient_parsing:  # completion asks for what is not there yet
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            if ctx.parent is not None:
                hint += f" There are: {', '.join(known)}."
            raise click.UsageError(f"There is no command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """Commands each in a module of its own. The help needs none of them, so it is quick."""

    def __init__(self, *, table: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        """`table` maps a name to its module and to a description, which begins in lower case."""
        super().__init__(**attributes)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  as click calls it
        """Return the names in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  likewise
        """Import a command; None for a name that is not in the table."""
        if cmd_name not in self._table:
            return None
        module, description = self._table[cmd_name]
        command = self.load(cmd_name, module)
        command.help = f"{description[0].upper()}{description[1:]}."
        return command

    def load(self, name: str, module: str) -> click.Command:  # noqa: ARG002  others need the name
        """Return the object `command` of a module."""
        command: click.Command = importlib.import_module(module).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  likewise
        """Write the table into the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, description) for name, (_, description) in self._table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what the word may become."""
        return [
            *(
                CompletionItem(name, help=description)
                for name, (_, description) in self._table.items()
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]
