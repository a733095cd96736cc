"""`pilotlight logs NAME`: what a function printed, and what it prints from now on."""

import json
import time
from typing import Any

import click

from cli import client, output
from cli.commands import flags
from pilotlight.problems import Problem


@click.command()
@flags.function
@click.option("-f", "--follow", is_flag=True, help="go on with each new line, until Ctrl-C")
@click.option("--tail", type=int, default=100, metavar="N", help="how many former lines (default 100)")
@click.option("--json", "as_json", is_flag=True, help="print JSON for machines, an object a line")
def command(name: str, *, follow: bool, tail: int, as_json: bool) -> None:
    """Print one line for each that was printed: time, instance, request if known, text. Raises Problem."""
    query = f"?tail={max(tail, 0)}&follow={'true' if follow else 'false'}"
    where = client.path("functions", name, "logs") + query
    with client.find().request("GET", where, timeout=None if follow else 60.0) as response:
        if response.status != 200:
            raise client.refusal(response, response.read())
        while line := response.readline():
            said = json.loads(line)
            print(json.dumps(said) if as_json else _text(said), flush=follow)
    if follow:
        raise Problem("unavailable", "The platform ended the log: it was stopped, or the function deleted.")


def _text(line: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"]))
    tied = f" {line['request']}" if line.get("request") else ""
    text = f"{when} {line['instance']}{tied} {line['line']}{' […]' if line.get('truncated') else ''}"
    return output.harmless(text)
