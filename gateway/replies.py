"""From a problem to a response: the only place where the gateway writes problem documents."""

from collections.abc import Mapping

import msgspec
from aiohttp import web

from pilotlight.problems import Problem
from pilotlight.server_name import SERVER


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return the response for a problem, with further headers."""
    return web.Response(
        status=problem.status,
        body=msgspec.json.encode(problem.document()) + b"\n",
        headers={"Server": SERVER, **problem.headers(), **(headers or {})},
    )


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
