"""Patches of documents: merge patches (RFC 7396) and JSON patches (RFC 6902)."""

from typing import Any, Final

from baas.documents import MAX_DOCUMENT, encode, parse
from baas.pointer import index_of, lookup, nothing_at, parse_pointer
from pilotlight.problems import Problem

MAX_OPERATIONS: Final = 1000
"""The most operations of one JSON patch: each may move all of a large array."""

_NEEDS_VALUE: Final = ("add", "replace", "test")
_NEEDS_FROM: Final = ("move", "copy")


def merge_patch(document: Any, patch: Any) -> Any:
    """Return the document with a merge patch applied: members replace, null removes."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def json_patch(document: Any, operations: Any) -> Any:
    """Return the document with all operations of a JSON patch applied; it may be changed in place.

    Raises Problem: `invalid-request` for what is no JSON patch, `conflict` where a place is not there or a
    test fails, `too-large` for more than MAX_OPERATIONS or more than a document's worth of copies.
    """
    if not isinstance(operations, list):
        raise Problem(
            "invalid-request",
            'A JSON patch is an array of operations, as in [{"op": "add", "path": "/a", "value": 1}].',
        )
    if len(operations) > MAX_OPERATIONS:
        raise Problem(
            "too-large",
            f"The patch has {len(operations)} operations, of {MAX_OPERATIONS} allowed. Send several patches.",
        )
    copied = 0
    for index, operation in enumerate(operations):
        try:
            _check(operation)
            if operation["op"] == "copy":
                # Copies of copies double: a patch of 1 kB could fill the memory
                text = encode(lookup(document, parse_pointer(operation["from"])))
                copied += len(text)
                if copied > MAX_DOCUMENT:
                    raise Problem("too-large", f"the patch copies more than {MAX_DOCUMENT} bytes.")
                document = _add(document, parse_pointer(operation["path"]), parse(text))
            else:
                document = _apply(document, operation)
        except Problem as problem:
            raise Problem(problem.kind, f"Operation {index} of the patch: {problem.detail}") from problem
    return document


def _check(operation: Any) -> None:
    """Raise Problem unless it has the members that its kind needs."""
    if not isinstance(operation, dict):
        raise Problem("invalid-request", "it is not an object.")
    kind = operation.get("op")
    if kind not in ("remove", *_NEEDS_VALUE, *_NEEDS_FROM):
        raise Problem("invalid-request", f"op {kind!r} is not add, remove, replace, move, copy or test.")
    if not isinstance(operation.get("path"), str):
        raise Problem("invalid-request", "it needs a path, a JSON pointer in a string.")
    if kind in _NEEDS_VALUE and "value" not in operation:
        raise Problem("invalid-request", f"{kind} needs a value.")
    if kind in _NEEDS_FROM and not isinstance(operation.get("from"), str):
        raise Problem("invalid-request", f"{kind} needs from, a JSON pointer in a string.")


def _apply(document: Any, operation: dict[str, Any]) -> Any:
    tokens = parse_pointer(operation["path"])
    match operation["op"]:
        case "add":
            return _add(document, tokens, operation["value"])
        case "replace":
            lookup(document, tokens)
            return _set(document, tokens, operation["value"])
        case "remove":
            return _remove(document, tokens)
        case "move":
            source = parse_pointer(operation["from"])
            if tokens[: len(source)] == source and len(tokens) > len(source):
                raise Problem("invalid-request", "it moves a value into itself.")
            value = lookup(document, source)
            if tokens == source:
                return document
            return _add(_remove(document, source), tokens, value)
        case _:
            if not same(lookup(document, tokens), operation["value"]):
                raise Problem("conflict", f"the test of {operation['path']!r} failed.")
            return document


def _add(document: Any, tokens: list[str], value: Any) -> Any:
    if tokens and isinstance(parent := lookup(document, tokens[:-1]), list):
        index = len(parent) if tokens[-1] == "-" else index_of(tokens[-1])
        if index is None or index > len(parent):
            raise nothing_at(tokens)
        parent.insert(index, value)
        return document
    return _set(document, tokens, value)


def _set(document: Any, tokens: list[str], value: Any) -> Any:
    """Put a value in place of what is there, or as a new member of an object."""
    if not tokens:
        return value
    parent = lookup(document, tokens[:-1])
    if isinstance(parent, dict):
        parent[tokens[-1]] = value
    elif isinstance(parent, list) and (index := index_of(tokens[-1])) is not None and index < len(parent):
        parent[index] = value
    else:
        raise nothing_at(tokens)
    return document


def _remove(document: Any, tokens: list[str]) -> Any:
    if not tokens:
        raise Problem("invalid-request", "it removes the whole document; use DELETE for that.")
    lookup(document, tokens)
    parent = lookup(document, tokens[:-1])
    del parent[int(tokens[-1]) if isinstance(parent, list) else tokens[-1]]
    return document


def same(left: Any, right: Any) -> bool:
    """Tell whether two JSON values are equal: 1 and 1.0 are, 1 and true are not (RFC 6902, 4.6)."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[name]) for name, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)
