"""Which headers pass, both ways: hop-by-hop ones don't (RFC 9110 §7.6.1), ours are set. Pure.

Names and values stay the bytes that came in, so that nothing is lost by decoding them.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from aiohttp.helpers import rfc822_formatted_time
from multidict import CIMultiDictProxy

from function_service.contract import Stages
from pilotlight.problems import Problem

Fields = Sequence[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",  # we drop trailers, so none may be announced
        b"transfer-encoding",
        b"upgrade",
    }
)
# what the gateway itself says to a function; nobody outside can say it in its place
_SET_ON_REQUESTS = frozenset(
    {
        b"expect",  # answered here
        b"pilotlight-caller",
        b"traceparent",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-request-id",
    }
)
_SET_ON_ANSWERS = frozenset(
    {
        b"pilotlight-elsewhere",
        b"pilotlight-error",
        b"pilotlight-instance",
        b"pilotlight-revision",
        b"pilotlight-start",
        b"server-timing",
        b"x-request-id",
    }
)
_DROPPED_FOR_RECEIPT = _HOP_BY_HOP | _SET_ON_ANSWERS
_TO_FUNCTION = _HOP_BY_HOP | _SET_ON_REQUESTS
_PLAIN_CONNECTION = frozenset({"keep-alive", "close", ""})


def _listed(connection: Iterable[str]) -> frozenset[bytes]:
    """Return the names that Connection headers list as hop-by-hop."""
    tokens = ",".join(connection).lower().split(",")
    return frozenset(token.strip().encode(errors="surrogateescape") for token in tokens)


def refuse_what_cannot_pass(headers: CIMultiDictProxy[str], method: str) -> None:
    """Raise Problem for requests that ask for another protocol or a coding that we don't undo.

    An offer of h2c is no demand (Java's client makes it with every request): it is declined by
    answering in HTTP/1.1, as RFC 9110 §7.8 lets a server do.
    """
    upgrade = headers.get("Upgrade")
    if method == "CONNECT" or (upgrade is not None and upgrade.strip().lower() != "h2c"):
        wanted = "CONNECT tunnels" if method == "CONNECT" else f"The upgrade to {upgrade!r}"
        raise Problem(
            "upgrade-refused",
            f"{wanted} can't pass here: a function answers single requests. Use plain ones; an answer may be "
            "streamed for as long as the function's timeout lasts (server-sent events, for one).",
        )
    coding = headers.get("Transfer-Encoding")
    if coding is not None and coding.strip().lower() != "chunked":
        raise Problem(
            "invalid-request",
            f"The transfer coding {coding!r} is not understood here. "
            "Send the body chunked or with a Content-Length.",
        )


def request_head(
    method: str,
    target: str,
    fields: Fields,
    headers: CIMultiDictProxy[str],
    added: bytes,
    *,
    without: frozenset[bytes] = frozenset(),
) -> bytes:
    """Return the head of the request for the other side.

    `fields` and `headers` are the same headers, raw and decoded. `added` are whole header lines.
    `without` names more headers, in lower case, that must not pass.
    """
    line = f"{method} {target} HTTP/1.1\r\n".encode(errors="surrogateescape")
    return b"".join((line, passing(fields, headers, without=without), added, b"\r\n"))


def passing(
    fields: Fields, headers: CIMultiDictProxy[str], *, without: frozenset[bytes] = frozenset()
) -> bytes:
    """Return the header lines of a request that reach the other side; arguments as of `request_head`."""
    dropped = _TO_FUNCTION | without if without else _TO_FUNCTION
    connection = headers.getall("Connection", ())
    if any(value.lower() not in _PLAIN_CONNECTION for value in connection):
        dropped |= _listed(connection) - {b"host", b"content-length"}
    parts: list[bytes] = []
    for name, value in fields:
        if name.lower() not in dropped:
            parts += (name, b": ", value, b"\r\n")
    if "Host" not in headers:  # HTTP/1.0
        parts.append(b"Host: localhost\r\n")
    if "Transfer-Encoding" in headers:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    return b"".join(parts)


class Receipt(NamedTuple):
    """What the gateway adds to the head of a function's answer."""

    timing: bytes  # the value of Server-Timing
    lines: bytes  # whole header lines


def receipt(waited: float, handler: float, stages: Stages | None, lines: bytes) -> Receipt:
    """Return the receipt of a call. Durations are in seconds, `stages` is None for a warm call.

    A call that came while its instance was being started waited only for the end of that, so the
    stages are counted from the last one backwards, up to what it waited.
    """
    waited *= 1000
    handler *= 1000
    if stages is None:
        return Receipt(
            b"wait;dur=%.3f, container;dur=0, runtime;dur=0, code;dur=0, handler;dur=%.3f"
            % (waited, handler),
            lines,
        )
    code = min(stages.code, waited)
    runtime = min(stages.runtime, waited - code)
    container = min(stages.container, waited - code - runtime)
    timing = (
        f"wait;dur={max(0.0, waited - code - runtime - container):.3f}, container;dur={container:.3f}, "
        f"runtime;dur={runtime:.3f}, code;dur={code:.3f}, handler;dur={handler:.3f}"
    )
    return Receipt(timing.encode(), lines)


class Form(NamedTuple):
    """What of the head of an answer does not change from one call to the next."""

    start: bytes  # the status line, and the function's headers that pass
    timing: bytes  # what the function itself says as Server-Timing, each led by a comma
    sized: bool
    dated: bool


class AnswerHead(NamedTuple):
    """The head of an answer as it goes to the caller, and how its body is framed."""

    data: bytes
    chunked: bool
    keep_alive: bool


def form(status: int, reason: bytes, fields: Fields, *, receipted: bool) -> Form:
    """Return what becomes of an answer's headers; `receipted` where a receipt takes the place of some."""
    dropped = _DROPPED_FOR_RECEIPT if receipted else _HOP_BY_HOP
    sized = dated = False
    timing = b""
    parts = [b"HTTP/1.1 %d %b\r\n" % (status, reason)]
    for name, value in fields:
        key = name.lower()
        if key == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            lists = [value.decode("latin-1") for name, value in fields if name.lower() == b"connection"]
            listed = _listed(lists) - {b"content-length", b"date", b"server-timing"}
            left = [field for field in fields if field[0].lower() not in listed | {b"connection"}]
            return form(status, reason, left, receipted=receipted)
        if key in dropped:
            if key == b"server-timing":
                timing += b", " + value
            continue
        if key == b"content-length":
            sized = True
            if status == 204:  # RFC 9110 §8.6 forbids it
                continue
        elif key == b"date":
            dated = True
        parts += (name, b": ", value, b"\r\n")
    return Form(b"".join(parts), timing, sized, dated)


def answer_head(
    status: int,
    reason: bytes,
    fields: Fields,
    *,
    bodiless: bool,
    http11: bool,
    keep_alive: bool,
    receipt: Receipt | None = None,
) -> AnswerHead:
    """Return the head of the answer for the caller; see `fill`."""
    made = form(status, reason, fields, receipted=receipt is not None)
    return fill(made, bodiless=bodiless, http11=http11, keep_alive=keep_alive, receipt=receipt)


def fill(
    made: Form, *, bodiless: bool, http11: bool, keep_alive: bool, receipt: Receipt | None
) -> AnswerHead:
    """Return the head of the answer for the caller.

    A body of known length keeps its Content-Length. Any other is chunked, or, for a caller that speaks
    HTTP/1.0, ended by the end of the connection. `bodiless`: no body follows (HEAD, 204, 304).
    """
    parts = [made.start]
    if receipt is not None:
        parts += (b"Server-Timing: ", receipt.timing, made.timing, b"\r\n", receipt.lines)
    if not made.dated:
        parts += (b"Date: ", rfc822_formatted_time().encode(), b"\r\n")
    chunked = not (bodiless or made.sized) and http11
    if chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    elif not (bodiless or made.sized):
        keep_alive = False
    if not keep_alive:
        parts.append(b"Connection: close\r\n")
    elif not http11:
        parts.append(b"Connection: keep-alive\r\n")
    parts.append(b"\r\n")
    return AnswerHead(b"".join(parts), chunked, keep_alive)
