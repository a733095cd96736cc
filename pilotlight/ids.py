"""Names and identifiers: how they are made, and which ones are allowed."""

import os
import re

from pilotlight.clock import steady

_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, as in ULIDs: no i, l, o, u
NAME_RULE = "lower-case letters, digits and inner dashes, a letter first, at most 63 characters"


def is_name(text: str) -> bool:
    """Tell whether text can name an app or a function (a DNS label, RFC 1035)."""
    return _NAME.fullmatch(text) is not None


def _base32(number: int, digits: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(digits)))


def new_id(now: float | None = None) -> str:
    """Make a time-ordered identifier of 26 characters, as the ULID specification lays them out."""
    milliseconds = int((steady() if now is None else now) * 1000)
    return _base32(milliseconds, 10) + _base32(int.from_bytes(os.urandom(10), "big"), 16)


def short_id() -> str:
    """Make a random identifier of 10 characters (50 bits), for what lives shortly."""
    return _base32(int.from_bytes(os.urandom(7), "big"), 10)
