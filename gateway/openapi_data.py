"""The part of the OpenAPI document about the data API, which the baas process serves (docs/DATA.md)."""

from collections.abc import Callable
from typing import Any

_COLLECTION = {
    "name": "collection",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
}
_KEY = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "1 to 512 bytes of printable characters, not only ASCII; not . or .. alone.",
    "schema": {"type": "string", "pattern": "^[ -~]{1,512}$"},
}
_APP = {
    "name": "app",
    "in": "query",
    "required": True,
    "description": "The app whose data is meant. A key that is for one app may leave it out.",
    "schema": {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"},
}
_TTL = {
    "name": "ttl",
    "in": "query",
    "description": "Seconds after which the document vanishes, up to ten years.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 315360000},
}
_CONDITIONS = [
    {
        "name": "If-Match",
        "in": "header",
        "description": "Only if the document has one of these ETags; * for any.",
        "schema": {"type": "string"},
    },
    {
        "name": "If-None-Match",
        "in": "header",
        "description": "Only if it has none of these ETags; * where there must be none.",
        "schema": {"type": "string"},
    },
]
_LISTING = [
    {
        "name": "prefix",
        "in": "query",
        "description": "Only keys that begin so.",
        "schema": {"type": "string"},
    },
    {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    },
    {
        "name": "cursor",
        "in": "query",
        "description": "Where the former page ended.",
        "schema": {"type": "string"},
    },
]
_POSITION = r"^[0-9a-z]{10}-(0|[1-9][0-9]{0,17})$"
_ANY: dict[str, Any] = {"description": "Any JSON value."}
_PAGE = {
    "type": "object",
    "properties": {
        "documents": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "key": {"type": "string"},
                    "etag": {"type": "string"},
                    "value": _ANY,
                    "expires": {"type": "number", "description": "Seconds since the epoch."},
                },
                "required": ["key", "etag", "value"],
            },
        },
        "cursor": {"type": ["string", "null"]},
    },
    "required": ["documents", "cursor"],
}
_MEMBER_KEY = {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]}
_MEMBER_VALUE = {"type": "object", "properties": {"value": {"type": "number"}}, "required": ["value"]}
_BY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "by": {"type": "number", "default": 1},
        "field": {"type": "string", "description": "A JSON pointer to the number.", "default": ""},
    },
    "additionalProperties": False,
}
_ON = {
    "collection": _COLLECTION["schema"],
    "key": _KEY["schema"],
    "if_match": {"type": "string", "description": "As the header If-Match."},
    "if_none_match": {"type": "string", "description": "As the header If-None-Match."},
}
_LIFE = {"ttl": _TTL["schema"]}
_RESULTS = {
    "type": "object",
    "properties": {
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "key": {"type": "string"},
                    "status": {"type": "integer", "description": "Of a request for this operation alone."},
                    "etag": {"type": "string", "description": "Of the document, where it stands after all."},
                    "value": {"type": "number", "description": "Of an increment: the new number."},
                },
                "required": ["key", "status"],
            },
        }
    },
    "required": ["results"],
}
_FOLLOWING = [
    {
        "name": "since",
        "in": "query",
        "description": "The id of the last event, or the Pilotlight-Position of a listing; else from now on.",
        "schema": {"type": "string", "pattern": _POSITION},
    },
    {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "As since, and goes before it.",
        "schema": {"type": "string", "pattern": _POSITION},
    },
]
_REFUSALS = (
    "invalid-request",
    "key-required",
    "forbidden",
    "not-found",
    "overloaded",
    "unavailable",
    "internal",
)
_WRITES = (*_REFUSALS, "conflict", "precondition-failed", "too-large", "unsupported-media-type")


def paths(problems: Callable[[tuple[str, ...]], dict[str, Any]]) -> dict[str, Any]:
    """Return the paths; `problems` makes the answers for kinds of problems."""

    def operation(
        name: str,
        summary: str,
        answers: dict[str, Any],
        parameters: list[dict[str, Any]],
        body: dict[str, Any] | None = None,
        *,
        refusals: tuple[str, ...] = _WRITES,
    ) -> dict[str, Any]:
        made: dict[str, Any] = {
            "operationId": name,
            "summary": summary,
            "tags": ["data"],
            "security": [{"bearer": ["data"]}, {"basic": ["data"]}],
            "parameters": [_APP, *parameters],
            "responses": {**answers, **problems(refusals)},
        }
        if body is not None:
            made["requestBody"] = body
        return made

    created = {"201": _answer("It was made.", etag=True)}
    listed = _answer("One page.", _PAGE)
    listed["headers"] = {
        "Pilotlight-Position": {
            "schema": {"type": "string", "pattern": _POSITION},
            "description": "Of a first page: where to follow the changes from, so that none is missing.",
        }
    }
    unchanged = {"304": _answer("It is the same as what If-None-Match names.", etag=True)}
    return {
        "/data/v1/{collection}": {
            "parameters": [_COLLECTION],
            "get": operation(
                "list_documents",
                "List the documents of a collection, by their keys.",
                {"200": listed},
                _LISTING,
                refusals=_REFUSALS,
            ),
            "post": operation(
                "create_document",
                "Make a document under a new key, which grows with time.",
                {"201": _answer("It was made.", _MEMBER_KEY, etag=True)},
                [_TTL],
                _body(_ANY),
            ),
        },
        "/data/v1/{collection}/{key}": {
            "parameters": [_COLLECTION, _KEY],
            "get": operation(
                "read_document",
                "Read a document.",
                {"200": _answer("The document.", _ANY, etag=True), **unchanged},
                _CONDITIONS,
                refusals=(*_REFUSALS, "precondition-failed"),
            ),
            "put": operation(
                "write_document",
                "Write a document, whether it is there or not.",
                {**created, "204": _answer("It took the place of the former one.", etag=True)},
                [_TTL, *_CONDITIONS],
                _body(_ANY),
            ),
            "patch": operation(
                "change_document",
                "Change a document by a merge patch (RFC 7396) or a JSON patch (RFC 6902).",
                {"200": _answer("The new document.", _ANY, etag=True)},
                [_TTL, *_CONDITIONS],
                _body(_ANY, "application/merge-patch+json", "application/json-patch+json"),
            ),
            "delete": operation(
                "delete_document",
                "Delete a document.",
                {"204": {"description": "It is gone."}},
                _CONDITIONS,
            ),
        },
        "/data/v1/transactions": {
            "post": operation(
                "change_documents",
                "Change several documents, all or none.",
                {"200": _answer("What became of each operation.", _RESULTS)},
                [],
                _body(_transaction()),
            ),
        },
        "/data/v1/{collection}/changes": {
            "parameters": [_COLLECTION],
            "get": operation(
                "follow_documents",
                "Follow the changes of a collection, as server-sent events.",
                {
                    "200": {
                        "description": "Events: a document as in a listing, or its key and deleted.",
                        "content": {"text/event-stream": {"schema": {"type": "string"}}},
                    }
                },
                _FOLLOWING,
                refusals=(*_REFUSALS, "gone"),
            ),
        },
        "/data/v1/{collection}/{key}/increment": {
            "parameters": [_COLLECTION, _KEY],
            "post": operation(
                "increment_document",
                "Add to a number in a document; no increment is lost.",
                {"200": _answer("The new number.", _MEMBER_VALUE, etag=True)},
                [_TTL, *_CONDITIONS],
                _body(_BY, required=False),
            ),
        },
    }


def _transaction() -> dict[str, Any]:
    """Return what a transaction is."""

    def kind(op: str, own: dict[str, Any], *required: str, on: dict[str, Any] = _ON) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"op": {"const": op}, **on, **own},
            "required": ["op", *(name for name in ("collection", "key") if name in on), *required],
            "additionalProperties": False,
        }

    value = {"value": _ANY, **_LIFE}
    patches = {"merge": {"description": "RFC 7396."}, "patch": {"type": "array", "description": "RFC 6902."}}
    kinds = [
        kind("put", value, "value"),
        kind("create", value, "value", on={"collection": _COLLECTION["schema"]}),
        kind("patch", {**patches, **_LIFE}),
        kind("increment", {**_BY["properties"], **_LIFE}),
        kind("delete", {}),
        kind("check", {}),
    ]
    operations = {"type": "array", "minItems": 1, "maxItems": 100, "items": {"oneOf": kinds}}
    return {
        "type": "object",
        "properties": {"operations": operations},
        "required": ["operations"],
        "additionalProperties": False,
    }


def _answer(description: str, schema: dict[str, Any] | None = None, *, etag: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {"description": description}
    if schema is not None:
        made["content"] = {"application/json": {"schema": schema}}
    if etag:
        made["headers"] = {
            "ETag": {"schema": {"type": "string"}, "description": "Another one after each change."}
        }
    return made


def _body(schema: dict[str, Any], *media_types: str, required: bool = True) -> dict[str, Any]:
    kinds = media_types or ("application/json",)
    return {"required": required, "content": {kind: {"schema": schema} for kind in kinds}}
