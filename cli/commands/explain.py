"""`pilotlight explain REQUEST-ID`: the story of one request, call by call."""

import time
from typing import Any

import click

from cli import client, output
from cli.commands import flags
from pilotlight.problems import Problem

_REPORTED = 2.0  # seconds within which a call that has just ended is reported
_PAUSE = 0.2  # seconds between two looks


@click.command()
@click.argument("request", metavar="REQUEST-ID")
@flags.as_json
def command(request: str, *, as_json: bool) -> None:
    """Print what each call of the request waited for, how it started, ran and ended. Raises Problem."""
    stories = _stories(request)
    if as_json:
        output.show_json(stories)
        return
    print(output.harmless("\n\n".join(tell(story) for story in stories)))


def _stories(request: str) -> list[dict[str, Any]]:
    """Ask for the request; again for a moment, since calls are reported once a second."""
    platform = client.find()
    deadline = time.monotonic() + _REPORTED
    while True:
        try:
            stories: list[dict[str, Any]] = platform.get(client.path("requests", request))["stories"]
        except Problem as problem:
            if problem.kind != "not-found" or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return stories


def tell(story: dict[str, Any]) -> str:
    """Write one call's story in lines."""
    call = story["call"]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(call["started"]))
    by = f" for the function {call['caller']}" if call["caller"] else ""
    lines = [f"{call['method']} {call['path']} of {call['function']}, at {when}{by}"]
    lines += [f"  {line}" for line in (_start(call), _run(call), _end(call, story)) if line]
    if story["lines"]:
        lines.append("  It printed meanwhile:")
        lines += [f"    {each['line']}{' […]' if each.get('truncated') else ''}" for each in story["lines"]]
    return "\n".join(lines)


def _start(call: dict[str, Any]) -> str:
    waited = output.milliseconds(call["waited"] * 1000)
    if not call["instance"]:
        return f"Waited {waited}, and got no instance."
    if not call["cold"]:
        return f"Warm: {waited} for a free slot of instance {call['instance']}, which was there."
    stages = ", ".join(f"{name} {output.milliseconds(took)}" for name, took in (call["stages"] or {}).items())
    return f"Cold: waited {waited} for instance {call['instance']}, which was started for it ({stages})."


def _run(call: dict[str, Any]) -> str:
    if not call["instance"]:
        return ""
    ran = output.milliseconds((call["duration"] - call["waited"]) * 1000)
    return f"Ran {ran} in revision {call['revision']}."


def _end(call: dict[str, Any], story: dict[str, Any]) -> str:
    total = f"after {output.milliseconds(call['duration'] * 1000)} in all"
    ended = f" Its instance has ended since: {story['instance_end']}." if story["instance_end"] else ""
    if call["problem"]:
        return f"Ended {total} with {call['status']} {call['problem']}: {call['detail']}{ended}"
    if call["status"] == 499:
        return f"Ended {total}, because the caller hung up.{ended}"
    return f"Answered {call['status']} {total}.{ended}"
