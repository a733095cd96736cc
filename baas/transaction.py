"""From the body of a transaction to its operations, as `request.py` makes one of a request."""

from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from baas.documents import parse
from baas.preconditions import Condition, Preconditions
from baas.request import (
    CHANGES,
    JSON_PATCH,
    MERGE_PATCH,
    TRANSACTIONS,
    Action,
    Operation,
    check_collection,
    check_key,
    check_ttl,
)
from pilotlight.ids import new_id
from pilotlight.problems import Problem

MAX_OPERATIONS: Final = 100
"""The most operations of one transaction."""


class _Create(Struct, tag_field="op", tag="create", forbid_unknown_fields=True, kw_only=True):
    collection: str
    value: Raw
    ttl: float | None = None


class _On(Struct, tag_field="op", forbid_unknown_fields=True, kw_only=True):
    collection: str
    key: str
    if_match: str | None = None
    if_none_match: str | None = None


class _Put(_On, tag="put", kw_only=True):
    value: Raw
    ttl: float | None = None


class _Patch(_On, tag="patch", kw_only=True):
    merge: Raw = Raw()
    patch: Raw = Raw()
    ttl: float | None = None


class _Increment(_On, tag="increment", kw_only=True):
    by: Raw = Raw(b"1")
    field: Raw = Raw(b'""')
    ttl: float | None = None


class _Delete(_On, tag="delete", kw_only=True):
    pass


class _Check(_On, tag="check", kw_only=True):
    pass


class _Body(Struct, forbid_unknown_fields=True):
    operations: list[_Create | _Put | _Patch | _Increment | _Delete | _Check]


_DECODER: Final = msgspec.json.Decoder(_Body)
_ACTIONS: Final[dict[type[Struct], Action]] = {
    _Create: Action.CREATE,
    _Put: Action.PUT,
    _Patch: Action.PATCH,
    _Increment: Action.INCREMENT,
    _Delete: Action.DELETE,
    _Check: Action.CHECK,
}


def read_operations(app: str, body: bytes) -> list[Operation]:
    """Return the operations of a transaction. Raises Problem, which names the one that is not right."""
    try:
        asked = _DECODER.decode(body).operations
    except msgspec.ValidationError as error:
        raise Problem("invalid-request", f"The transaction: {error}.") from error
    except msgspec.DecodeError as error:
        parse(body)  # says it in the same words as everywhere
        raise Problem("invalid-request", f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise Problem("invalid-request", "The transaction is nested too deeply. Flatten it.") from error
    if not 0 < len(asked) <= MAX_OPERATIONS:
        kind = "too-large" if asked else "invalid-request"
        raise Problem(
            kind, f"The transaction has {len(asked)} operations. Send 1 to {MAX_OPERATIONS} at once."
        )
    operations = []
    for index, each in enumerate(asked):
        try:
            operations.append(_operation(app, each))
        except Problem as problem:
            raise at(index, problem) from problem
    return operations


def at(index: int, problem: Problem) -> Problem:
    """Return the refusal of a transaction for one of its operations, counted from 0."""
    detail = f"Operation {index}: {problem.detail}"
    extra: dict[str, Any] = {"operation": index, **problem.extra}
    return Problem(problem.kind, detail, retry_after=problem.retry_after, **extra)


def _operation(app: str, asked: Any) -> Operation:
    action = _ACTIONS[type(asked)]
    key = new_id() if isinstance(asked, _Create) else asked.key
    check_collection(asked.collection)
    check_key(key)
    if action not in (Action.DELETE, Action.CHECK) and (asked.collection == TRANSACTIONS or key == CHANGES):
        raise Problem(
            "invalid-request",
            f"No collection can be called {TRANSACTIONS!r}, and no document {CHANGES!r}. Take another name.",
        )
    media_type, body = _change(asked)
    ttl = getattr(asked, "ttl", None)
    return Operation(
        app=app,
        collection=asked.collection,
        key=key,
        action=action,
        preconditions=_preconditions(asked),
        ttl=None if ttl is None else check_ttl(ttl),
        media_type=media_type,
        body=body,
    )


def _change(asked: Any) -> tuple[str, bytes]:
    """Return the media type and the body that a request would have for this."""
    match asked:
        case _Create(value=value) | _Put(value=value):
            return "application/json", bytes(value)
        case _Patch(merge=merge, patch=patch):
            if bool(bytes(merge)) is bool(bytes(patch)):
                raise Problem(
                    "invalid-request", "A patch has merge (RFC 7396) or patch (RFC 6902), one of both."
                )
            return (MERGE_PATCH, bytes(merge)) if bytes(merge) else (JSON_PATCH, bytes(patch))
        case _Increment(by=by, field=field):
            return "application/json", b'{"by":%b,"field":%b}' % (bytes(by), bytes(field))
        case _:
            return "", b""


def _preconditions(asked: Any) -> Preconditions:
    if isinstance(asked, _Create):
        return Preconditions()
    if isinstance(asked, _Check) and asked.if_match is None and asked.if_none_match is None:
        raise Problem("invalid-request", "A check has if_match or if_none_match, an ETag or *, or both.")
    return Preconditions(
        Condition.parse("if_match", asked.if_match), Condition.parse("if_none_match", asked.if_none_match)
    )
