"""`pilotlight secrets …` and `pilotlight keys …`."""

import argparse
import getpass
import sys

from cli import client, output


def configure(parser: argparse.ArgumentParser) -> None:
    """Take what to do, and with what."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list them")
    listing.add_argument("--json", action="store_true", help="print JSON for machines")
    if parser.get_default("command") == "secrets":
        setting = actions.add_parser(
            "set", help="set one; functions name it under `secrets` in pilotlight.toml"
        )
        setting.add_argument("name", metavar="NAME")
        setting.add_argument(
            "value", nargs="?", metavar="VALUE", help="read from standard input where it is left out (safer)"
        )
    else:
        creating = actions.add_parser("create", help="create one and print it; it is told only once")
        creating.add_argument("name", metavar="NAME", help="what it is for")
    deleting = actions.add_parser("delete", help="delete one")
    deleting.add_argument("name", metavar="NAME" if parser.get_default("command") == "secrets" else "ID")


def run(arguments: argparse.Namespace) -> int:
    """Do it. Raises Problem."""
    platform = client.find()
    if arguments.action == "delete":
        platform.call("DELETE", client.path(arguments.command, arguments.name))
        print(f"{arguments.name} is deleted")
    elif arguments.action == "list":
        _list(platform, arguments.command, as_json=arguments.json)
    elif arguments.action == "set":
        value = _value(arguments.name) if arguments.value is None else arguments.value
        platform.call("PUT", client.path("secrets", arguments.name), {"value": value})
        print(f"{arguments.name} is set; instances that start from now on see it")
    else:
        made = platform.call("POST", client.path("keys"), {"name": arguments.name})
        output.note(f"The key {made['name']!r} has the id {made['id']}. It is shown only now:")
        print(made["key"])
    return 0


def _list(platform: client.Platform, kind: str, *, as_json: bool) -> None:
    found = platform.get(client.path(kind))[kind]
    if as_json:
        output.show_json(found)
    elif kind == "keys":
        rows = [(each["id"], each["name"], f"{output.ago(each['created'])} ago") for each in found]
        print(output.table(("ID", "NAME", "CREATED"), rows))
    elif found:
        print("\n".join(found))
    else:
        output.note("There is no secret yet. Set one with: pilotlight secrets set NAME")


def _value(name: str) -> str:
    """Read a value that nobody else shall see; one line end at its end belongs to the terminal, not to it."""
    if sys.stdin.isatty():
        return getpass.getpass(f"Value of {name}: ")
    return sys.stdin.read().removesuffix("\n")
