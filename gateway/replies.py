"""From a problem to a response: the only place where the gateway writes problem documents."""

from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus

import msgspec
from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time

from pilotlight.problems import Problem
from pilotlight.server_name import SERVER


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return the response for a problem, with further headers."""
    return web.Response(
        status=problem.status,
        body=msgspec.json.encode(problem.document()) + b"\n",
        headers={"Server": SERVER, **problem.headers(), **(headers or {})},
    )


def problem_message(problem: Problem, request_id: str) -> bytes:
    """Return a problem without further members as a whole answer, for a connection that stays."""
    head, body = _framed(problem.kind, problem.detail, problem.retry_after, rfc822_formatted_time())
    return b"%bX-Request-Id: %b\r\n\r\n%b" % (head, request_id.encode(), body)


@lru_cache(64)  # in a flood, thousands of calls a second get the same
def _framed(kind: str, detail: str, retry_after: int | None, date: str) -> tuple[bytes, bytes]:
    problem = Problem(kind, detail, retry_after=retry_after)
    body = msgspec.json.encode(problem.document()) + b"\n"
    fields = {"Server": SERVER, **problem.headers(), "Content-Length": str(len(body)), "Date": date}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n{lines}".encode(), body


def malformed(message: str) -> Problem:
    """Return the problem for a request that the HTTP parser refused; message is the parser's."""
    reason = message.strip().partition("\n")[0].strip().rstrip(":.") or "it can't be parsed"
    return Problem("invalid-request", f"This is not a valid HTTP/1.1 request: {reason}.")


def fault() -> Problem:
    """Return the problem for a mistake of ours; the details are in the log."""
    return Problem(
        "internal",
        "The gateway failed to answer this request. Its log says why; please report it with the request id.",
    )
