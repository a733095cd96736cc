"""What a function prints, marked with the request that it was printed for (contract.md, 4)."""

from __future__ import annotations

import io
import sys
from contextvars import ContextVar
from typing import Any

request: ContextVar[str] = ContextVar("pilotlight_request", default="")
"""The request that is being answered; empty outside of one."""


class _Pipe:
    """What was said last on the pipe that standard output and standard error share."""

    request = ""
    line_begins = True


class _Marked(io.TextIOWrapper):
    """Standard output or standard error, line by line as on a terminal."""

    def write(self, text: str) -> int:
        if text:
            present = request.get()
            if present != _Pipe.request and _Pipe.line_begins:
                _Pipe.request = present
                super().write(f"\x1e{present}\n{text}")  # as one, so that no other thread comes between
            else:
                super().write(text)
            _Pipe.line_begins = text.endswith("\n")
        return len(text)


def mark() -> None:
    """Have what is printed from now on marked."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:
            continue  # closed, or somebody else's
        stream.flush()
        marked = _Marked(stream.detach(), stream.encoding, stream.errors, line_buffering=True)
        for each in (name, f"__{name}__"):
            setattr(sys, each, marked)
