"""What to do about an operation, given what stands in the store. Nothing here waits or writes.

`plan` returns an `Answer`, or a `Change` with the answer for when it has been made. draft.py makes a whole of
several, query.py carries it out.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from baas.documents import encode, parse
from baas.patch import json_patch, merge_patch
from baas.pointer import lookup, nothing_at, parse_pointer
from baas.request import JSON_PATCH, Action, Operation
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Entry, Write

_LARGEST: Final = (1 << 63) - 1


@dataclass(frozen=True)
class Answer:
    """What the caller is told. `version` is that of the document, None where there is none."""

    status: int
    body: bytes = b""
    version: int | None = None
    created: str | None = None  # the key of a document that was given one


@dataclass(frozen=True)
class Change:
    """A write, which expects what the plan was made from, and the answer once it has been made."""

    write: Write
    answer: Answer = field(default_factory=lambda: Answer(204))


def space_of(app: str, collection: str) -> str:
    """Return the store's space of a collection."""
    return f"data/{app}/{collection}"


def log_of(space: str) -> str:
    """Return in which log the history of a collection is kept: there is one for each app."""
    return space.rpartition("/")[0]


def plan(operation: Operation, entry: Entry | None) -> Answer | Change:
    """Decide. Raises Problem."""
    version = entry.version if entry else None
    if not operation.preconditions.check(version, reading=operation.action is Action.GET):
        return Answer(304, version=version)
    try:
        match operation.action:
            case Action.GET:
                entry = _existing(operation, entry)
                return Answer(200, entry.value, entry.version)
            case Action.CHECK:
                return Answer(204, version=version)
            case Action.DELETE:
                _existing(operation, entry)
                return Change(_write(operation, entry, None))
            case Action.CREATE:
                value = encode(parse(operation.body))
                answer = Answer(201, encode({"key": operation.key}), created=operation.key)
                return Change(_write(operation, None, value), answer)
            case Action.PUT:
                value = encode(parse(operation.body))
                return Change(_write(operation, entry, value), Answer(204 if entry else 201))
            case Action.PATCH:
                value = _patched(operation, _existing(operation, entry))
                return Change(_write_part(operation, entry, value), Answer(200, value))
            case Action.INCREMENT:
                value, number = _incremented(operation, entry)
                answer = Answer(200, encode({"value": number}))
                return Change(_write_part(operation, entry, value), answer)
            case _:
                raise AssertionError(f"{operation.action} is not about one document")
    except RecursionError as error:
        raise Problem("invalid-request", "The document is nested too deeply for this. Flatten it.") from error


def _existing(operation: Operation, entry: Entry | None) -> Entry:
    if entry is None:
        remedy = " PUT it first." if operation.action is Action.PATCH else ""
        raise Problem(
            "not-found", f"There is no document {operation.key!r} in {operation.collection!r}.{remedy}"
        )
    return entry


def _write(operation: Operation, entry: Entry | None, value: bytes | None) -> Write:
    return Write(
        space=space_of(operation.app, operation.collection),
        key=operation.key,
        value=value,
        expect=entry.version if entry else ABSENT,
        ttl=None if value is None else operation.ttl,
    )


def _write_part(operation: Operation, entry: Entry | None, value: bytes) -> Write:
    """Write a document that is changed in part: it ends when it would have, unless a life is asked for.

    That moment is passed on as it is. What is left until then would be less by the time that it is written:
    a counter that is added to all the time would outlive its end.
    """
    return replace(_write(operation, entry, value), expires=None if entry is None else entry.expires)


def _patched(operation: Operation, entry: Entry) -> bytes:
    apply = json_patch if operation.media_type == JSON_PATCH else merge_patch
    return encode(apply(parse(entry.value), parse(operation.body)))


def _incremented(operation: Operation, entry: Entry | None) -> tuple[bytes, float]:
    """Return the new document, and the number in it that was added to."""
    by, tokens = _increment_request(operation.body)
    if not tokens:
        number = _sum(parse(entry.value) if entry else 0, by)
        return encode(number), number
    document = parse(entry.value) if entry else {}
    parent = lookup(document, tokens[:-1])
    place: Any = tokens[-1]
    if isinstance(parent, list):
        lookup(document, tokens)
        place = int(place)
    elif not isinstance(parent, dict):
        raise nothing_at(tokens)
    number = _sum(parent[place] if isinstance(parent, list) else parent.get(place, 0), by)
    parent[place] = number
    return encode(document), number


def _increment_request(body: bytes) -> tuple[float, list[str]]:
    request = parse(body) if body.strip() else {}
    if not isinstance(request, dict) or request.keys() - {"by", "field"}:
        raise Problem(
            "invalid-request", 'An increment is {"by": 1, "field": "/count"}, of which each may be left out.'
        )
    by, pointer = request.get("by", 1), request.get("field", "")
    if not _is_number(by):
        raise Problem("invalid-request", f"by: {str(by)[:80]!r} is not a number.")
    if not isinstance(pointer, str):
        raise Problem("invalid-request", "field is not a JSON pointer in a string, as in /count.")
    return by, parse_pointer(pointer)


def _sum(current: Any, by: float) -> float:
    if not _is_number(current):
        raise Problem("conflict", "What stands there is not a number, so nothing can be added to it.")
    total: float = current + by
    if isinstance(total, int) and abs(total) > _LARGEST:
        raise Problem("conflict", f"The sum would be beyond {_LARGEST}.")
    if not math.isfinite(total):
        raise Problem("conflict", "The sum would be larger than any number.")
    return total


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= _LARGEST
