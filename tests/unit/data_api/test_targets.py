"""What a path, and the cursor of a listing, lead to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baas.request import Target, decode_cursor, encode_cursor, parse_target
from pilotlight.problems import Problem


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/data/v1/things", Target("things")),
        ("/data/v1/things/k", Target("things", "k")),
        ("/data/v1/things/k/increment", Target("things", "k", increment=True)),
        ("/data/v1/things/increment", Target("things", "increment")),
        ("/data/v1/things/a%2Fb%20%C3%BC", Target("things", "a/b ü")),
        ("/data/v1/things/%2E%2E%2E", Target("things", "...")),
        ("/data/v1/data/v1", Target("data", "v1")),
        ("/data/v1/A.b-c_9/k", Target("A.b-c_9", "k")),
    ],
)
def test_long_paths_lead_to_documents_for_everybody(path: str, target: Target) -> None:
    assert parse_target(path, short=False) == target
    assert parse_target(path, short=True) == target


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/things", Target("things")),
        ("/things/k", Target("things", "k")),
        ("/things/k/increment", Target("things", "k", increment=True)),
    ],
)
def test_short_paths_are_for_functions(path: str, target: Target) -> None:
    assert parse_target(path, short=True) == target
    with pytest.raises(Problem) as refusal:
        parse_target(path, short=False)
    assert refusal.value.kind == "not-found"


@pytest.mark.parametrize("path", ["/", "", "/data/v1/", "/data/v1", "/data", "/data/x/y", "/function", "/data/v1/a/b/c", "/data/v1/a/b/increment/", "/data/v1//k", "x"])  # fmt: skip
def test_other_paths_lead_nowhere(path: str) -> None:
    with pytest.raises(Problem) as refusal:
        parse_target(path, short=True)
    assert refusal.value.kind == "not-found"


@pytest.mark.parametrize("path", [
    "/data/v1/-a/k", "/data/v1/a%2Fb/k", "/data/v1/" + "a" * 65, "/data/v1/%FF", "/data/v1/a/", "/data/v1/a/%2E%2e",
    "/data/v1/a/%00", "/data/v1/a/%0A", "/data/v1/a/" + "k" * 513, "/data/v1/a/" + "%C3%BC" * 257, "/data/v1/a/%E2%80%AE",
])  # fmt: skip
def test_names_that_break_the_rules_are_refused(path: str) -> None:
    with pytest.raises(Problem) as refusal:
        parse_target(path, short=False)
    assert refusal.value.kind == "invalid-request"
    assert len(refusal.value.detail) < 300


@given(st.text(min_size=1))
def test_a_cursor_leads_back_to_its_key(key: str) -> None:
    assert decode_cursor(encode_cursor(key)) == key


@given(st.text())
def test_any_other_cursor_is_read_or_refused(cursor: str) -> None:
    try:
        decode_cursor(cursor)
    except Problem as refusal:
        assert refusal.kind == "invalid-request"  # noqa: PT017  both outcomes are right
