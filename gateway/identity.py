"""The two identifiers that follow a call through all systems: X-Request-Id and traceparent."""

import os
import re
from collections.abc import Iterator

from aiohttp.web import RequestKey

REQUEST_ID = RequestKey("request_id", str)
"""The request id of a request that is not a call."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# W3C Trace Context, level 1: version 00 has exactly these parts, and all zeros mean "invalid"
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}",
)


def _chances() -> Iterator[str]:
    """Yield 48 random hexadecimal digits for ever. The kernel is asked for many of them at a time."""
    while True:
        digits = os.urandom(24 * 256).hex()
        for start in range(0, len(digits), 48):
            yield digits[start : start + 48]


_chance = _chances()


def lines(request_id: str, traceparent: str) -> bytes:
    """Return the header lines that carry them on."""
    return f"X-Request-Id: {request_id}\r\ntraceparent: {traceparent}\r\n".encode()


def identify(request_id: str | None, traceparent: str | None) -> tuple[str, str, bool]:
    """Return the request id and the traceparent to use, and whether the caller's traceparent was valid.

    What the caller sent is taken over where it is well-formed, else both are made.
    """
    taken = traceparent is not None and _TRACEPARENT.fullmatch(traceparent) is not None
    if taken and request_id is not None and _REQUEST_ID.fullmatch(request_id):
        return request_id, traceparent or "", True
    chance = next(_chance)
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = chance[:32]
    return request_id, (traceparent or "") if taken else f"00-{chance[:32]}-{chance[32:]}-01", taken
