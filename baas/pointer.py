"""JSON pointers (RFC 6901): how a patch and an increment name a place within a document."""

import re
from typing import Any

from pilotlight.problems import Problem

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_BAD_ESCAPE = re.compile(r"~(?![01])")


def parse_pointer(text: str) -> list[str]:
    """Return the member names and indices of a pointer. Raises Problem `invalid-request`."""
    if text and not text.startswith("/"):
        raise Problem(
            "invalid-request", f"{text!r} is not a JSON pointer; start it with /, as in /address/city."
        )
    if _BAD_ESCAPE.search(text):
        raise Problem(
            "invalid-request", f"{text!r} is not a JSON pointer; write ~ as ~0 and / within a name as ~1."
        )
    return [token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:]]


def lookup(document: Any, tokens: list[str]) -> Any:
    """Return what stands at the place. Raises Problem `conflict` where there is nothing."""
    for depth, token in enumerate(tokens):
        if isinstance(document, dict) and token in document:
            document = document[token]
        elif isinstance(document, list) and (index := index_of(token)) is not None and index < len(document):
            document = document[index]
        else:
            raise nothing_at(tokens[: depth + 1])
    return document


def index_of(token: str) -> int | None:
    """Return the array index that a token stands for, or None."""
    return int(token) if _INDEX.fullmatch(token) else None


def nothing_at(tokens: list[str]) -> Problem:
    """Return the refusal for a place that is not there."""
    path = "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in tokens)
    return Problem(
        "conflict", f"The document has nothing at {path!r}. Read it again, and patch what is there."
    )
