"""Merge patches (the examples of RFC 7396, appendix A) and JSON patches (RFC 6902, appendix A, and its edges)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baas.documents import MAX_DOCUMENT
from baas.patch import MAX_OPERATIONS, json_patch, merge_patch, same
from baas.pointer import parse_pointer
from pilotlight.problems import Problem

MERGES = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("document", "patch", "result"), MERGES)
def test_merge_patches_of_the_rfc(document: Any, patch: Any, result: Any) -> None:
    before = json.dumps(document)
    assert merge_patch(document, patch) == result
    assert json.dumps(document) == before


PATCHES = {
    "A.1 adding a member": (
        {"foo": "bar"},
        [{"op": "add", "path": "/baz", "value": "qux"}],
        {"foo": "bar", "baz": "qux"},
    ),
    "A.2 adding an element": (
        {"foo": ["bar", "baz"]},
        [{"op": "add", "path": "/foo/1", "value": "qux"}],
        {"foo": ["bar", "qux", "baz"]},
    ),
    "A.3 removing a member": (
        {"baz": "qux", "foo": "bar"},
        [{"op": "remove", "path": "/baz"}],
        {"foo": "bar"},
    ),
    "A.4 removing an element": (
        {"foo": ["bar", "qux", "baz"]},
        [{"op": "remove", "path": "/foo/1"}],
        {"foo": ["bar", "baz"]},
    ),
    "A.5 replacing": ({"a": 1}, [{"op": "replace", "path": "/a", "value": 2}], {"a": 2}),
    "A.6 moving a value": (
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    "A.7 moving an element": (
        {"foo": ["all", "grass", "cows", "eat"]},
        [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    "A.8 a test that holds": (
        {"baz": "qux", "foo": ["a", 2, "c"]},
        [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
        {"baz": "qux", "foo": ["a", 2, "c"]},
    ),
    "A.10 adding a nested object": (
        {"foo": "bar"},
        [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
        {"foo": "bar", "child": {"grandchild": {}}},
    ),
    "A.11 unknown members are ignored": (
        {"foo": "bar"},
        [{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}],
        {"foo": "bar", "baz": "qux"},
    ),
    "A.14 escapes": ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    "A.16 adding an array": (
        {"foo": ["bar"]},
        [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}],
        {"foo": ["bar", ["abc", "def"]]},
    ),
    "the whole document is replaced": ([1], [{"op": "replace", "path": "", "value": {"a": 1}}], {"a": 1}),
    "the whole document is added over": ([1], [{"op": "add", "path": "", "value": 2}], 2),
    "adding replaces a member": ({"a": 1}, [{"op": "add", "path": "/a", "value": [2]}], {"a": [2]}),
    "the empty name is a name": ({"": 1}, [{"op": "replace", "path": "/", "value": 2}], {"": 2}),
    "null is a value": ({"a": None}, [{"op": "test", "path": "/a", "value": None}], {"a": None}),
    "digits name members of objects": ({"0": 1}, [{"op": "replace", "path": "/0", "value": 2}], {"0": 2}),
    "a copy is not the original": (
        {"a": {"x": 1}},
        [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "replace", "path": "/b/x", "value": 2}],
        {"a": {"x": 1}, "b": {"x": 2}},
    ),
    "the document becomes one of its values": (
        {"a": {"b": 1}},
        [{"op": "move", "from": "/a", "path": ""}],
        {"b": 1},
    ),
    "moving to where it is": ({"a": 1}, [{"op": "move", "from": "/a", "path": "/a"}], {"a": 1}),
}


@pytest.mark.parametrize("name", PATCHES)
def test_json_patches_that_apply(name: str) -> None:
    document, operations, result = PATCHES[name]
    assert json_patch(document, operations) == result


REFUSED: dict[str, tuple[Any, Any, str, str]] = {
    "A.9 a test that fails": (
        {"baz": "qux"},
        [{"op": "test", "path": "/baz", "value": "bar"}],
        "conflict",
        "test",
    ),
    "A.12 a parent that is not there": (
        {"foo": "bar"},
        [{"op": "add", "path": "/baz/bat", "value": "qux"}],
        "conflict",
        "nothing at '/baz'",
    ),
    "A.15 a string is no number": (
        {"~1": 10},
        [{"op": "test", "path": "/~01", "value": "10"}],
        "conflict",
        "test",
    ),
    "true is not 1": ({"a": 1}, [{"op": "test", "path": "/a", "value": True}], "conflict", "test"),
    "removing what is not there": ({"a": 1}, [{"op": "remove", "path": "/b"}], "conflict", "nothing at '/b'"),
    "replacing what is not there": (
        {},
        [{"op": "replace", "path": "/b", "value": 1}],
        "conflict",
        "nothing at '/b'",
    ),
    "an index beyond the end": (
        [1],
        [{"op": "add", "path": "/2", "value": 1}],
        "conflict",
        "nothing at '/2'",
    ),
    "a leading zero": ([1, 2], [{"op": "remove", "path": "/01"}], "conflict", "nothing"),
    "a negative index": ([1, 2], [{"op": "remove", "path": "/-1"}], "conflict", "nothing"),
    "an index of digits that are none of ASCII": (
        [1, 2],
        [{"op": "remove", "path": "/\u0661"}],
        "conflict",
        "nothing",
    ),
    "a huge index": ([1, 2], [{"op": "remove", "path": "/" + "9" * 5000}], "conflict", "nothing"),
    "removing - of an array": ([1], [{"op": "remove", "path": "/-"}], "conflict", "nothing"),
    "a member of a string": ({"a": "b"}, [{"op": "add", "path": "/a/0", "value": 1}], "conflict", "nothing"),
    "removing everything": ({}, [{"op": "remove", "path": ""}], "invalid-request", "DELETE"),
    "into itself": (
        {"a": {}},
        [{"op": "move", "from": "/a", "path": "/a/b"}],
        "invalid-request",
        "into itself",
    ),
    "no array": ({}, {"op": "add"}, "invalid-request", "array of operations"),
    "no object": ({}, [1], "invalid-request", "not an object"),
    "no op": ({}, [{"path": ""}], "invalid-request", "op None"),
    "an unknown op": ({}, [{"op": "merge", "path": ""}], "invalid-request", "'merge'"),
    "an op that is no string": ({}, [{"op": [], "path": ""}], "invalid-request", "op"),
    "no path": ({}, [{"op": "remove"}], "invalid-request", "path"),
    "no value": ({}, [{"op": "add", "path": "/a"}], "invalid-request", "value"),
    "no from": ({}, [{"op": "copy", "path": "/a"}], "invalid-request", "from"),
    "no pointer": ({}, [{"op": "remove", "path": "a"}], "invalid-request", "JSON pointer"),
    "a bad escape": ({}, [{"op": "remove", "path": "/~2"}], "invalid-request", "~0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_json_patches_that_are_refused(name: str) -> None:
    document, operations, kind, words = REFUSED[name]
    with pytest.raises(Problem) as refusal:
        json_patch(document, operations)
    assert refusal.value.kind == kind
    assert words in refusal.value.detail


def test_a_refusal_names_the_operation() -> None:
    with pytest.raises(Problem, match="Operation 1"):
        json_patch({}, [{"op": "add", "path": "/a", "value": 1}, {"op": "remove", "path": "/b"}])


def test_copies_that_double_are_stopped_before_they_fill_the_memory() -> None:
    document = {"a": "x" * 1000}
    doubling = [{"op": "copy", "from": "", "path": f"/{i}"} for i in range(100)]
    with pytest.raises(Problem) as refusal:
        json_patch(document, doubling)
    assert refusal.value.kind == "too-large"
    assert len(json.dumps(document)) < 3 * MAX_DOCUMENT


def test_a_patch_has_a_bounded_number_of_operations() -> None:
    with pytest.raises(Problem) as refusal:
        json_patch([], [{"op": "add", "path": "/-", "value": 1}] * (MAX_OPERATIONS + 1))
    assert refusal.value.kind == "too-large"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_every_value_is_the_same_as_itself(value: Any) -> None:
    assert same(value, value)
    assert json_patch(value, [{"op": "test", "path": "", "value": value}]) == value


@given(VALUES, VALUES)
def test_a_merge_patch_applied_twice_changes_nothing_more(document: Any, patch: Any) -> None:
    once = merge_patch(document, patch)
    assert merge_patch(once, patch) == once


@given(st.lists(st.text(max_size=4), max_size=4))
def test_a_pointer_is_read_as_it_was_written(names: list[str]) -> None:
    text = "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)
    assert parse_pointer(text) == names
