"""The OpenAPI 3.1 document of the gateway, made from the table of operations and the types they use."""

import inspect
import re
from typing import Any

import msgspec

from gateway import openapi_data
from gateway.operations import BASE, OPERATIONS, Operation
from pilotlight.problems import KINDS

_REFERENCE = "#/components/schemas/{name}"
_EVERYWHERE = ("invalid-request", "key-required", "forbidden", "overloaded", "unavailable", "internal")
_CALL = (
    *_EVERYWHERE,
    "unknown-function",
    "too-large",
    "upgrade-refused",
    "crashed",
    "out-of-memory",
    "init-failed",
    "no-capacity",
    "timeout",
)
_METHODS = ("get", "head", "post", "put", "patch", "delete", "options")


def document() -> dict[str, Any]:
    """Return the document."""
    types = {kind for each in OPERATIONS for kind in (each.answers, each.takes) if kind is not None}
    ordered = sorted(types, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    schemas["Problem"] = _problem_schema()
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        path = paths.setdefault(BASE + operation.path, {})
        path[operation.method.lower()] = _operation(operation)
    paths[f"{BASE}/openapi.json"] = {
        "get": {
            "operationId": "get_openapi",
            "summary": "This document.",
            "tags": ["control"],
            "responses": {"200": _content("The document.", {"type": "object"}), **_problems(_EVERYWHERE)},
        }
    }
    paths.update(_calls())
    paths.update(openapi_data.paths(_problems))
    paths.update(_platform())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pilotlight",
            "version": "1",
            "summary": "A FaaS platform that you host yourself.",
            "description": "Each refusal is a problem document (RFC 9457) with the header Pilotlight-Error.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"basic": []}],
        "tags": [
            {"name": "control", "description": "Apps, functions, keys and what else an operator handles."},
            {"name": "calls", "description": "Functions."},
            {"name": "data", "description": "Documents, in which functions keep their state."},
            {"name": "platform", "description": "Whether the platform lives, and what it counts."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key of this platform."},
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "Any user, a key as the password.",
                },
            },
            "headers": _headers(),
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": ["control"],
        "security": [{kind: [str(operation.scope)]} for kind in ("bearer", "basic")],
        "responses": {
            str(operation.status): {"description": "Done."}
            if operation.answers is None
            else _content(
                inspect.getdoc(operation.answers) or "", _reference(operation.answers), operation.media_type
            ),
            **_problems((*operation.problems, *_EVERYWHERE)),
        },
    }
    if operation.description:
        described["description"] = operation.description
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    for query in operation.query:
        schema: dict[str, Any] = {"type": query.type, "default": query.default}
        if query.maximum is not None:
            schema |= {"minimum": 0, "maximum": query.maximum}
        parameters.append({"name": query.name, "in": "query", "description": query.summary, "schema": schema})
    if parameters:
        described["parameters"] = parameters
    if operation.takes is not None:
        described["requestBody"] = {
            "required": not operation.optional_body,
            "content": {"application/json": {"schema": _reference(operation.takes)}},
        }
    return described


def _calls() -> dict[str, Any]:
    """Describe calls of functions: any method, with or without a path behind the name."""
    receipt = {
        name: {"$ref": f"#/components/headers/{name}"}
        for name in (
            "Server-Timing",
            "Pilotlight-Start",
            "Pilotlight-Instance",
            "Pilotlight-Revision",
            "X-Request-Id",
        )
    }
    paths: dict[str, Any] = {}
    for suffix, parameters in (("", ["name"]), ("/{rest}", ["name", "rest"])):
        paths[f"/function/{{name}}{suffix}"] = {
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in parameters
            ],
            **{
                method: {
                    "operationId": f"call_{method}{'_path' if suffix else ''}",
                    "summary": "Call a function. Method, path, query, headers and body reach it.",
                    "description": "Public functions need no key.",
                    "tags": ["calls"],
                    "security": [{}, {"bearer": ["invoke"]}, {"basic": ["invoke"]}],
                    "responses": {
                        "default": {"description": "What the function answered.", "headers": receipt},
                        **_problems(_CALL),
                    },
                }
                for method in _METHODS
            },
        }
    return paths


def _platform() -> dict[str, Any]:
    def get(name: str, summary: str, answers: dict[str, Any]) -> dict[str, Any]:
        return {
            "get": {
                "operationId": name,
                "summary": summary,
                "tags": ["platform"],
                "security": [],
                "responses": answers,
            }
        }

    text = {"type": "string"}
    return {
        "/healthz": get(
            "healthz", "Whether the gateway lives.", {"200": _content("It does.", text, "text/plain")}
        ),
        "/readyz": get(
            "readyz",
            "Whether all parts of the platform can be reached.",
            {"200": _content("They can.", text, "text/plain"), **_problems(("unavailable",))},
        ),
        "/metrics": get(
            "metrics", "What is counted, for Prometheus.", {"200": _content("Metrics.", text, "text/plain")}
        ),
    }


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}


def _content(
    description: str, schema: dict[str, Any], media_type: str = "application/json"
) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _problems(kinds: tuple[str, ...]) -> dict[str, Any]:
    """Return the responses for problem kinds; several may share a status."""
    by_status: dict[int, list[str]] = {}
    for kind in dict.fromkeys(kinds):
        by_status.setdefault(KINDS[kind][0], []).append(kind)
    return {
        str(status): {
            "description": "; ".join(f"`{kind}`: {KINDS[kind][1]}" for kind in found) + ".",
            "headers": {"Pilotlight-Error": {"$ref": "#/components/headers/Pilotlight-Error"}},
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, found in sorted(by_status.items())
    }


def _problem_schema() -> dict[str, Any]:
    return {
        "title": "Problem",
        "description": "Why something was refused (RFC 9457).",
        "type": "object",
        "properties": {
            "type": {"type": "string", "description": "urn:pilotlight:problem:KIND"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "The cause and the remedy."},
            "logs": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The last lines that the function printed.",
            },
        },
        "required": ["type", "title", "status", "detail"],
    }


def _headers() -> dict[str, Any]:
    def header(description: str, **schema: Any) -> dict[str, Any]:
        return {"description": description, "schema": {"type": "string", **schema}}

    return {
        "Server-Timing": header(
            "In ms: wait (for a free instance), container, runtime and code (the stages of a cold start), "
            "handler; then what the function itself says."
        ),
        "Pilotlight-Start": header(
            "Whether the call waited for an instance to be made.", enum=["cold", "warm"]
        ),
        "Pilotlight-Instance": header("The instance that answered."),
        "Pilotlight-Revision": header("The revision that answered."),
        "Pilotlight-Error": header("The kind of the problem.", enum=sorted(KINDS)),
        "X-Request-Id": header("The id of the call: the caller's own if it sent one."),
    }
