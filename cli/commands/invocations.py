"""`pilotlight invocations NAME`: the latest calls of a function, each with its request, start and end."""

import time
from typing import Any

import click

from cli import client, output
from cli.commands import flags

_HEADS = ("TIME", "REQUEST", "CALL", "STATUS", "START", "WAIT", "TOTAL", "PROBLEM")
_SPARE = ("WAIT", "CALL", "START", "TIME")


@click.command()
@flags.function
@click.option("--tail", type=int, default=20, metavar="N", help="how many of the latest (default 20)")
@click.option("--failed", is_flag=True, help="only calls that were answered with a status of 500 or more")
@flags.as_json
def command(name: str, *, tail: int, failed: bool, as_json: bool) -> None:
    """Print the latest calls, the latest last. Raises Problem."""
    query = f"?tail={max(tail, 0)}&failed={'true' if failed else 'false'}"
    calls = client.find().get(client.path("functions", name, "invocations") + query)["invocations"]
    if as_json:
        output.show_json(calls)
        return
    if not calls:
        output.note(f"No call of {name} {'has failed' if failed else 'has ended'} that is remembered.")
        return
    output.show_table(_HEADS, [_row(each) for each in calls], _SPARE)


def _row(call: dict[str, Any]) -> tuple[str, ...]:
    return (
        time.strftime("%m-%d %H:%M:%S", time.localtime(call["started"])),
        call["request_id"],
        f"{call['method']} {call['path']}",
        str(call["status"]),
        start_of(call),
        output.milliseconds(call["waited"] * 1000),
        output.milliseconds(call["duration"] * 1000),
        call["problem"],
    )


def start_of(call: dict[str, Any]) -> str:
    """Tell how a call was started; one that got no instance was not."""
    return "none" if not call["instance"] else "cold" if call["cold"] else "warm"
