"""Documents as bytes and as values: JSON in (RFC 8259, UTF-8), compact JSON out, within the limits."""

import json
from typing import Any, Final, NoReturn

from pilotlight.problems import Problem

MAX_DOCUMENT: Final = 1 << 20
"""The largest document, and the largest body of a request about one, in bytes."""

_TOO_DEEP = "The JSON is nested too deeply. Flatten it, or split it into several documents."


def parse(body: bytes) -> Any:
    """Return the value of a JSON text. Raises Problem `invalid-request`."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Problem("invalid-request", f"The body is not UTF-8 (byte {error.start}). Send JSON.") from error
    except RecursionError as error:
        raise Problem("invalid-request", _TOO_DEEP) from error
    except ValueError as error:
        detail = "it is empty" if not body.strip() else str(error)
        raise Problem("invalid-request", f"The body is not JSON: {detail}.") from error


def encode(value: Any) -> bytes:
    """Return the compact JSON text of a document. Raises Problem `invalid-request` or `too-large`."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Problem(
            "invalid-request", r"A string holds half of a surrogate pair (such as \ud83d alone)."
        ) from error
    except RecursionError as error:
        raise Problem("invalid-request", _TOO_DEEP) from error
    except ValueError as error:
        raise Problem("invalid-request", "A number is too large for JSON's readers.") from error
    if len(text) > MAX_DOCUMENT:
        raise too_large("The document")
    return text


def too_large(what: str, most: int = MAX_DOCUMENT) -> Problem:
    """Return the refusal of something that has more bytes than it may."""
    remedy = "documents" if most == MAX_DOCUMENT else "transactions"
    return Problem("too-large", f"{what} is larger than {most} bytes. Split it into several {remedy}.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
