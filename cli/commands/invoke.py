"""`pilotlight invoke NAME`: call a function, with the key of the platform."""

import base64
import contextlib
import sys
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from cli import client, output, receipts
from cli.commands import flags
from pilotlight.problems import Problem


def _header(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """Read what -H was given. Raises click.BadParameter."""
    found = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{text!r} is no header; write it like 'Name: value'.")
        found[name.strip()] = value.strip()
    return found


@click.command()
@flags.function
@click.option("-X", "--method", metavar="METHOD", help="the method (default: GET, with a body POST)")
@click.option("-d", "--data", metavar="TEXT", help="the body; @FILE reads a file, @- reads standard input")
@click.option(
    "-H", "--header", "headers", multiple=True, callback=_header, metavar="'NAME: VALUE'", help="a header"
)
@click.option("--path", default="", help="what follows the function's name, such as /users?limit=3")
@click.option("--json", "as_json", is_flag=True, help="print status, headers and body as JSON for machines")
def command(
    name: str, *, method: str | None, data: str | None, headers: dict[str, str], path: str, as_json: bool
) -> int:
    """Print the answer's body to stdout, its status and receipt to stderr; 1 for a status from 400 on."""
    body = _body(data)
    if body is not None and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = "application/json"
    rest = path if path[:1] in ("", "/", "?") else f"/{path}"
    method = method or ("GET" if body is None else "POST")
    where = f"/function/{quote(name, safe='')}{rest}"
    with contextlib.ExitStack() as stack:
        with output.working(f"Waiting for {name}"):
            request = client.find().request(method, where, body, headers, timeout=None)
            response = stack.enter_context(request)
        (_show_json if as_json else _show)(response)
        return 0 if response.status < 400 else 1


def _show(response: HTTPResponse) -> None:
    """Pass the body on as it comes."""
    last = b"\n"
    while piece := response.read1(65536):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        last = piece[-1:]
    if last != b"\n" and sys.stdout.isatty():
        print()  # so that the prompt stands on a line of its own
    receipt = receipts.read(response.headers)
    output.note(f"{response.status} {response.reason}{f' · {receipt}' if receipt.start else ''}")


def _show_json(response: HTTPResponse) -> None:
    """Print all of the answer; a header's values are joined by commas, a body that is no text is base64."""
    names = dict.fromkeys(name.lower() for name in response.headers)
    answer: dict[str, Any] = {
        "status": response.status,
        "headers": {name: ", ".join(response.headers.get_all(name, [])) for name in names},
    }
    body = response.read()
    try:
        answer["body"] = body.decode()
    except UnicodeDecodeError:
        answer["body_base64"] = base64.b64encode(body).decode()
    output.show_json(answer)


def _body(data: str | None) -> bytes | None:
    if data is None:
        return None
    if data == "@-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise Problem("invalid-request", f"{data[1:]} can't be read: {error.strerror}.") from error
    return data.encode()
