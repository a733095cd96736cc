"""From an HTTP request to what is asked for: a `Listing`, a `Transaction`, a `Feed`, or an `Operation`.

Here (and in transaction.py, where the body tells) is all that is checked without looking at any document:
paths, methods, parameters, media types, sizes.
"""

import asyncio
import base64
import binascii
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from baas.documents import MAX_DOCUMENT, too_large
from baas.preconditions import Condition, Preconditions
from baas.room import Share
from pilotlight.history import Position
from pilotlight.ids import NAME_RULE, is_name, new_id
from pilotlight.problems import Problem

PREFIX: Final = "/data/v1/"
MAX_KEY: Final = 512
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
MAX_TTL: Final = 10 * 365 * 86400.0
MAX_TRANSACTION: Final = 4 << 20
TRANSACTIONS: Final = "transactions"  # is no collection
CHANGES: Final = "changes"  # is no key
MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"

_BODY_WAIT = 60.0  # seconds
_COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TTL = re.compile(r"\d{1,10}(\.\d{1,6})?")
_LIMIT = re.compile(r"[1-9]\d{0,3}")


class Action(StrEnum):
    """What is done with a document; at last, with several of them, and with a collection."""

    GET = "get"
    CREATE = "create"
    PUT = "put"
    PATCH = "patch"
    DELETE = "delete"
    INCREMENT = "increment"
    CHECK = "check"
    TRANSACT = "transact"
    FOLLOW = "follow"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One page of a collection."""

    app: str
    collection: str
    prefix: str = ""
    limit: int = DEFAULT_LIMIT
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The changes of a collection, from a position on, or from now on."""

    app: str
    collection: str
    since: Position | None = None


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """Several operations at once, in their body: see transaction.py."""

    app: str
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One action on one document."""

    app: str
    collection: str
    key: str
    action: Action
    preconditions: Preconditions = Preconditions()
    ttl: float | None = None
    media_type: str = "application/json"
    body: bytes = b""


@dataclass(frozen=True)
class Target:
    """What a path leads to: a collection, a document of it, or a document's counter."""

    collection: str
    key: str | None = None
    increment: bool = False

    @property
    def methods(self) -> dict[str, Action | None]:
        """What can be done there, by method; None is the listing."""
        if self.increment:
            return {hdrs.METH_POST: Action.INCREMENT}
        if self.key is None:
            post = Action.TRANSACT if self.collection == TRANSACTIONS else Action.CREATE
            return {hdrs.METH_GET: None, hdrs.METH_HEAD: None, hdrs.METH_POST: post}
        if self.key == CHANGES:  # one from before that was no key can be deleted
            return {hdrs.METH_GET: Action.FOLLOW, hdrs.METH_DELETE: Action.DELETE}
        if self.collection == TRANSACTIONS:
            return {
                hdrs.METH_GET: Action.GET,
                hdrs.METH_HEAD: Action.GET,
                hdrs.METH_DELETE: Action.DELETE,
            }
        return {
            hdrs.METH_GET: Action.GET,
            hdrs.METH_HEAD: Action.GET,
            hdrs.METH_PUT: Action.PUT,
            hdrs.METH_PATCH: Action.PATCH,
            hdrs.METH_DELETE: Action.DELETE,
        }


_PARAMETERS: Final[dict[Action | None, frozenset[str]]] = {
    None: frozenset({"prefix", "limit", "cursor"}),
    Action.GET: frozenset(),
    Action.DELETE: frozenset(),
    Action.CREATE: frozenset({"ttl"}),
    Action.PUT: frozenset({"ttl"}),
    Action.PATCH: frozenset({"ttl"}),
    Action.INCREMENT: frozenset({"ttl"}),
    Action.TRANSACT: frozenset(),
    Action.FOLLOW: frozenset({"since"}),
}
_BODILESS: Final = frozenset({Action.GET, Action.DELETE, Action.FOLLOW})


def parse_target(path: str, *, short: bool) -> Target:
    """Return what a path (as sent, without query) leads to.

    `short` also takes paths without PREFIX, as functions may send them. Raises Problem `not-found`, or
    `invalid-request` for names that break the rules.
    """
    if path.startswith(PREFIX):
        rest = path.removeprefix(PREFIX)
    elif short and path.startswith("/") and path.split("/")[1] not in ("data", "function"):
        rest = path.removeprefix("/")
    else:
        rest = ""
    segments = [_unquote(segment) for segment in rest.split("/")]
    counter = len(segments) == 3 and segments[2] == "increment"
    reserved = counter and (segments[0] == TRANSACTIONS or segments[1] == CHANGES)
    if not segments[0] or reserved or (len(segments) > 2 and not counter):
        raise Problem(
            "not-found",
            f"There is nothing at {path[:200]}. Documents are at {PREFIX}COLLECTION/KEY; "
            "a / within a key is written %2F.",
        )
    check_collection(segments[0])
    if len(segments) == 1:
        return Target(segments[0])
    check_key(segments[1])
    return Target(segments[0], segments[1], increment=counter)


def _unquote(segment: str) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as error:
        raise Problem("invalid-request", f"{segment[:80]!r} in the path is not UTF-8.") from error


def check_collection(name: str) -> None:
    """Raise Problem `invalid-request` unless it can name a collection."""
    if not _COLLECTION.fullmatch(name):
        raise Problem(
            "invalid-request",
            f"{name[:80]!r} can't name a collection; use up to 64 letters, digits, dots, dashes and "
            "underscores, a letter or digit first.",
        )


def check_key(key: str) -> None:
    """Raise Problem `invalid-request` unless it can be the key of a document."""
    if key in ("", ".", "..") or not key.isprintable() or len(key.encode()) > MAX_KEY:
        raise Problem(
            "invalid-request",
            f"{key[:80]!r} can't be a key; use 1 to {MAX_KEY} printable bytes, not . or .. alone.",
        )


async def read_request(
    http: web.BaseRequest, app: str | None, *, short: bool, share: Share
) -> Listing | Feed | Transaction | Operation:
    """Return what is asked for; `app` is None where the request itself must name it.

    Its body is taken from the `share`.

    Raises Problem.
    """
    path, _, query = http.raw_path.partition("?")
    target = parse_target(path, short=short)
    if http.method not in target.methods:
        allowed = ", ".join(target.methods)
        raise Problem(
            "method-not-allowed", f"{http.method} is not possible here; use {allowed}.", allow=allowed
        )
    action = target.methods[http.method]
    parameters = _parameters(query, _PARAMETERS[action] | ({"app"} if app is None else set()))
    if app is None:
        app = _named_app(parameters.pop("app", None), http.headers.get("Pilotlight-App"))
    if action is None:
        return _listing(app, target.collection, parameters)
    if action is Action.FOLLOW:
        since = http.headers.get("Last-Event-ID") or parameters.get("since")
        return Feed(app=app, collection=target.collection, since=_position(since) if since else None)
    media_type = _media_type(http, action)
    if action is Action.TRANSACT:
        return Transaction(app=app, body=await _read_body(http, MAX_TRANSACTION, app, share))
    return Operation(
        app=app,
        collection=target.collection,
        key=new_id() if target.key is None else target.key,
        action=action,
        preconditions=Preconditions() if action is Action.CREATE else _preconditions(http),
        ttl=_ttl(parameters.get("ttl")),
        media_type=media_type,
        body=b"" if action in _BODILESS else await _read_body(http, MAX_DOCUMENT, app, share),
    )


def _parameters(query: str, known: frozenset[str] | set[str]) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise Problem("invalid-request", f"The query can't be read: {error}.") from error
    parameters = dict(pairs)
    if unknown := parameters.keys() - known:
        raise Problem(
            "invalid-request",
            f"The parameter {min(unknown)[:80]!r} is not known here; "
            f"there {'are ' + ', '.join(sorted(known)) if known else 'is none'}.",
        )
    if len(parameters) < len(pairs):
        raise Problem("invalid-request", "A parameter is given twice; give each once.")
    return parameters


def _named_app(parameter: str | None, header: str | None) -> str:
    if parameter is not None and header is not None and parameter != header:
        raise Problem("invalid-request", f"?app={parameter} and Pilotlight-App: {header} differ; send one.")
    app = parameter if parameter is not None else header
    if not app:
        raise Problem(
            "invalid-request", "Name the app whose data you mean: ?app=NAME, or the header Pilotlight-App."
        )
    if not is_name(app):
        raise Problem("invalid-request", f"{app[:80]!r} can't name an app; use {NAME_RULE}.")
    return app


def _listing(app: str, collection: str, parameters: dict[str, str]) -> Listing:
    limit = parameters.get("limit", str(DEFAULT_LIMIT))
    if not _LIMIT.fullmatch(limit) or int(limit) > MAX_LIMIT:
        raise Problem("invalid-request", f"limit: {limit[:20]!r} is not a number from 1 to {MAX_LIMIT}.")
    return Listing(
        app=app,
        collection=collection,
        prefix=parameters.get("prefix", ""),
        limit=int(limit),
        after=decode_cursor(parameters["cursor"]) if "cursor" in parameters else "",
    )


def encode_cursor(key: str) -> str:
    """Return the cursor of the page that begins after key."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """Return the key that a page begins after. Raises Problem `invalid-request`."""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise Problem(
            "invalid-request", "The cursor is not one that a listing gave. Begin again without one."
        ) from error


def _ttl(text: str | None) -> float | None:
    if text is None:
        return None
    if not _TTL.fullmatch(text):
        raise Problem(
            "invalid-request", f"ttl: {text[:20]!r} is not a number of seconds up to {MAX_TTL:.0f}."
        )
    return check_ttl(float(text))


def check_ttl(seconds: float) -> float:
    """Return what was given, if it can be a document's life. Raises Problem `invalid-request`."""
    if not 0 < seconds <= MAX_TTL:
        raise Problem("invalid-request", f"ttl: {seconds} is not a number of seconds up to {MAX_TTL:.0f}.")
    return seconds


def _position(text: str) -> Position:
    try:
        return Position.parse(text)
    except ValueError as error:
        raise Problem(
            "invalid-request",
            f"{error}. Take the id of an event, or the Pilotlight-Position of a listing; without one, the "
            "changes come from now on.",
        ) from error


def _preconditions(http: web.BaseRequest) -> Preconditions:
    def condition(name: str) -> Condition | None:
        lines = http.headers.getall(name, [])
        return Condition.parse(name, ", ".join(lines) if lines else None)

    return Preconditions(condition("If-Match"), condition("If-None-Match"))


def _media_type(http: web.BaseRequest, action: Action) -> str:
    """Return the media type of the body. Raises Problem `unsupported-media-type`."""
    if action in _BODILESS or (action is Action.INCREMENT and not http.can_read_body):
        return ""
    if http.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem("unsupported-media-type", "Send the body without Content-Encoding.")
    sent = http.headers.get("Content-Type", "")
    name, _, rest = sent.partition(";")
    name = name.strip().lower()
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]+)", rest, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Problem("unsupported-media-type", f"The body must be UTF-8, not {charset[1][:40]}.")
    if action is Action.PATCH:
        if name not in (MERGE_PATCH, JSON_PATCH):
            raise Problem(
                "unsupported-media-type",
                f"A patch has Content-Type {MERGE_PATCH} or {JSON_PATCH}, not {sent[:80]!r}.",
                accept_patch=f"{MERGE_PATCH}, {JSON_PATCH}",
            )
    elif name not in ("", "application/json") and not re.fullmatch(
        r"application/[a-z0-9.!#$&^_-]+\+json", name
    ):
        raise Problem(
            "unsupported-media-type",
            f"Documents are JSON: send Content-Type: application/json, not {sent[:80]!r}.",
        )
    return name


async def _read_body(http: web.BaseRequest, most: int, app: str, share: Share) -> bytes:
    taken = http.content_length or 0
    if taken > most:
        raise too_large("The body", most)
    share.take(app, taken)
    await send_continue(http)
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_WAIT):
            async for chunk in http.content.iter_any():
                body += chunk
                if len(body) > most:
                    raise too_large("The body", most)
                if len(body) > taken:  # it did not say how long it is
                    share.take(app, len(body) - taken)
                    taken = len(body)
    except TimeoutError as error:
        raise Problem(
            "invalid-request", f"The body did not arrive within {_BODY_WAIT:.0f} seconds. Send it again."
        ) from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise Problem("invalid-request", "The body is not framed as its headers say.") from error
    return bytes(body)


async def send_continue(http: web.BaseRequest) -> None:
    """Tell a client that waits for it to send the body (RFC 9110, 10.1.1)."""
    if http.headers.get("Expect", "").lower() == "100-continue" and http.can_read_body:
        await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        http.writer.output_size = 0  # what counts is the answer that follows
