"""What happens when a handler fails: the trace goes to standard error, a problem document to the caller."""

from __future__ import annotations

import json
import os
import sys
import traceback
from types import TracebackType

from .messages import Unencodable
from .wire import LengthMismatch

_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  pathlib costs time here
_PROBLEM = (("content-type", "application/problem+json"),)


def own_trace(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a trace that begins in the function's code, without the shim's frames before it."""
    first = trace
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
        first = first.tb_next
    return first or trace


def report(error: BaseException) -> None:
    """Print an error with its trace to standard error."""
    traceback.print_exception(type(error), error, own_trace(error.__traceback__))
    sys.stderr.flush()


def problem(status: int, title: str, detail: str) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    """Return an answer that holds a problem document (RFC 9457)."""
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return status, _PROBLEM, json.dumps(document).encode()


def made_of(error: BaseException) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    """Return the answer for a handler that failed: it names the type alone, for messages may hold secrets."""
    if isinstance(error, (Unencodable, LengthMismatch)):
        return problem(500, "The function returned what can't be sent", str(error))
    return problem(
        500,
        "The function raised an error",
        f"The function raised {type(error).__name__}. The trace is in the function's log.",
    )


def malformed(error: BaseException) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    """Return the answer for a malformed request."""
    return problem(400, "The request is malformed", str(error))
