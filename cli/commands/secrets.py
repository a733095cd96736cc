"""`pilotlight secrets list|set|delete|discard`: what functions must know and nobody else."""

import asyncio
import getpass
import os
import sys

import click

from cli import client, complete, output
from cli.commands import flags
from cli.group import Group
from pilotlight import stores
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem
from pilotlight.settings import current

_name = click.argument("name", metavar="NAME", help="the secret", shell_complete=complete.secrets)


@click.group(cls=Group, no_args_is_help=False)
def command() -> None:
    """Secrets."""


@command.command("list", help="List them.")
@flags.as_json
def list_(*, as_json: bool) -> None:
    """Print the names; nothing tells the values. Raises Problem."""
    found = client.find().get(client.path("secrets"))["secrets"]
    if as_json:
        output.show_json(found)
    elif found:
        print("\n".join(found))
    else:
        output.note("There is no secret yet. Set one with: pilotlight secrets set NAME")


@command.command("set", help="Set one; functions name it under `secrets` in pilotlight.toml.")
@_name
@click.argument(
    "value",
    required=False,
    metavar="[VALUE]",
    help="read from standard input where it is left out (safer)",
)
def set_(name: str, value: str | None) -> None:
    """Set a secret for the instances to come. Raises Problem."""
    platform = client.find()
    value = _read(name) if value is None else value
    platform.call("PUT", client.path("secrets", name), {"value": value})
    print(f"{name} is set; instances that start from now on see it")


@command.command(help="Delete one.")
@_name
def delete(name: str) -> None:
    """Delete a secret, which no function may name any more. Raises Problem."""
    client.find().call("DELETE", client.path("secrets", name))
    print(f"{name} is deleted")


@command.command(help="Forget all, where their key is lost and the platform does not start.")
def discard() -> None:
    """Delete what nobody can read any more from the data folder, on which nothing runs. Raises Problem."""
    data = DataFolder(current().data)
    if current().store == "sqlite" and not data.registry.exists():
        raise Problem(
            "not-found", f"There is no platform in {data.root}. Name its data folder: PILOTLIGHT_DATA"
        )
    claim = data.lock()
    try:
        names = asyncio.run(_discard(data))
    finally:
        os.close(claim)
    print(f"Forgotten: {', '.join(names)}" if names else "There was no secret.")


async def _discard(data: DataFolder) -> list[str]:
    from function_service.registry import discard_secrets

    store = await stores.registry(current().store, data)
    try:
        return await discard_secrets(store)
    finally:
        await store.close()


def _read(name: str) -> str:
    """Read a value that nobody else shall see; one line end at its end belongs to the terminal, not to it."""
    if not sys.stdin.isatty():
        return sys.stdin.read().removesuffix("\n")
    try:
        return getpass.getpass(f"Value of {name}: ")
    except EOFError as error:
        raise Problem("invalid-request", f"No value was given, so {name} is as it was.") from error
