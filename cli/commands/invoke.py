"""`pilotlight invoke NAME`: call a function, with the key of the platform."""

import argparse
import sys
from pathlib import Path
from urllib.parse import quote

from cli import client, output, receipts
from pilotlight.problems import Problem


def configure(parser: argparse.ArgumentParser) -> None:
    """Take what makes up a request, with curl's letters."""
    parser.add_argument("name", metavar="NAME", help="the function")
    parser.add_argument("-X", "--method", help="the method (default: GET, with a body POST)")
    parser.add_argument("-d", "--data", help="the body; @FILE reads a file, @- reads standard input")
    parser.add_argument(
        "-H", "--header", action="append", default=[], type=_header, metavar="'NAME: VALUE'", help="a header"
    )
    parser.add_argument("--path", default="", help="what follows the function's name, such as /users?limit=3")


def run(arguments: argparse.Namespace) -> int:
    """Print the answer's body to stdout, its status and receipt to stderr; 1 for a status from 400 on."""
    body = _body(arguments.data)
    headers = dict(arguments.header)
    if body is not None and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = "application/json"
    rest = arguments.path if arguments.path[:1] in ("", "/", "?") else f"/{arguments.path}"
    method = arguments.method or ("GET" if body is None else "POST")
    where = f"/function/{quote(arguments.name, safe='')}{rest}"
    with client.find().request(method, where, body, headers, timeout=None) as response:
        last = b"\n"
        while piece := response.read1(65536):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            last = piece[-1:]
        if last != b"\n" and sys.stdout.isatty():
            print()  # so that the prompt stands on a line of its own
        receipt = receipts.read(response.headers)
        output.note(f"{response.status} {response.reason}{f' · {receipt}' if receipt.start else ''}")
        return 0 if response.status < 400 else 1


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no header; write it like 'Name: value'")
    return name.strip(), value.strip()


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
