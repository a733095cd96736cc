"""The document is made from the same table as the routes; these tests hold it to the specification's shape."""

import json

from gateway.control import ControlApi
from gateway.openapi import document
from gateway.operations import BASE, OPERATIONS
from pilotlight.problems import KINDS


def references(node) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


def test_every_reference_leads_somewhere() -> None:
    whole = document()
    for reference in references(whole):
        node = whole
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_every_operation_is_described_and_has_a_handler() -> None:
    paths = document()["paths"]
    for operation in OPERATIONS:
        described = paths[BASE + operation.path][operation.method.lower()]
        assert str(operation.status) in described["responses"]
        assert callable(getattr(ControlApi, operation.name))


def test_operation_ids_are_unique_and_path_parameters_declared() -> None:
    found = []
    for path, item in document()["paths"].items():
        shared = item.get("parameters", [])
        for method, operation in item.items():
            if method == "parameters":
                continue
            found.append(operation["operationId"])
            named = {p["name"] for p in [*shared, *operation.get("parameters", [])] if p["in"] == "path"}
            assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            assert operation["responses"]
    assert len(found) == len(set(found))


def test_every_kind_of_problem_of_a_call_is_described() -> None:
    responses = document()["paths"]["/function/{name}"]["post"]["responses"]
    text = json.dumps(responses)
    for kind in KINDS:
        if kind in ("crashed", "timeout", "overloaded", "key-required", "unknown-function", "no-capacity"):
            assert f"`{kind}`" in text
            assert str(KINDS[kind][0]) in responses


def test_the_document_says_which_version_it_is() -> None:
    whole = document()
    assert whole["openapi"] == "3.1.0"
    assert set(whole["components"]["securitySchemes"]) == {"bearer", "basic"}
    assert json.loads(json.dumps(whole))["info"] == whole["info"]
