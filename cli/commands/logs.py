"""`pilotlight logs NAME`: what a function printed, and what it prints from now on."""

import argparse
import json
import time
from typing import Any

from cli import client
from pilotlight.problems import Problem


def configure(parser: argparse.ArgumentParser) -> None:
    """Take the function's name, and how much to show."""
    parser.add_argument("name", metavar="NAME", help="the function")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with each new line, until Ctrl-C")
    parser.add_argument(
        "--tail", type=int, default=100, metavar="N", help="how many former lines (default 100)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print one line for each that was printed: time, instance, text. Raises Problem."""
    query = f"?tail={max(arguments.tail, 0)}&follow={'true' if arguments.follow else 'false'}"
    where = client.path("functions", arguments.name, "logs") + query
    with client.find().request("GET", where, timeout=None if arguments.follow else 60.0) as response:
        if response.status != 200:
            raise client.refusal(response, response.read())
        while line := response.readline():
            print(_text(json.loads(line)), flush=arguments.follow)
    if arguments.follow:
        raise Problem("unavailable", "The platform ended the log: it was stopped, or the function deleted.")
    return 0


def _text(line: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"]))
    return f"{when} {line['instance']} {line['line']}{' […]' if line.get('truncated') else ''}"
