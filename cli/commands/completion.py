"""`pilotlight completion SHELL`: what makes a shell complete commands, flags and the names of functions."""

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_PILOTLIGHT_COMPLETE"  # by which click is asked for completions

_EPILOG = """\
\b
bash, in ~/.bashrc:                  source <(pilotlight completion bash)
zsh, in ~/.zshrc after compinit:     source <(pilotlight completion zsh)
fish, once:                          pilotlight completion fish > ~/.config/fish/completions/pilotlight.fish
"""


@click.command(epilog=_EPILOG)
@click.argument("shell", metavar="|".join(_SHELLS), type=click.Choice(_SHELLS), help="your shell")
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  click has all of _SHELLS
    program = context.find_root()
    click.echo(kind(program.command, {}, program.info_name or "", _VARIABLE).source(), nl=False)
