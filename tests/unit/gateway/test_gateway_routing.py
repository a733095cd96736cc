import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_service.contract import RouteTable
from gateway.routing import Routes, origin_form, split
from pilotlight.problems import Problem


@pytest.mark.parametrize(
    ("target", "name", "rest"),
    [
        ("/function/hello", "hello", "/"),
        ("/function/hello/", "hello", "/"),
        ("/function/hello?a=1&a=2", "hello", "/?a=1&a=2"),
        ("/function/hello/a/b?c=/d?", "hello", "/a/b?c=/d?"),
        ("/function/hello//x/../y", "hello", "//x/../y"),
        ("/function/hello/%2e%2E/%2F%20?q=%00", "hello", "/%2e%2E/%2F%20?q=%00"),
        ("/function/hello/ü", "hello", "/ü"),
        ("/function/h%65llo/x", "hello", "/x"),
        ("/function/", "", "/"),
        ("/function//x", "", "/x"),
        ("/function/hello?x=/y", "hello", "/?x=/y"),
        ("/function/hello#f", "hello", "/#f"),
    ],
)
def test_what_follows_the_name_reaches_the_function_as_it_was_sent(target: str, name: str, rest: str) -> None:
    assert split(target) == (name, rest)


@given(st.text("abc/?%#.=&2f", max_size=30))
def test_the_function_always_sees_a_path(suffix: str) -> None:
    name, rest = split("/function/f/" + suffix)
    assert (name, rest) == ("f", "/" + suffix)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/function/x", "/function/x"),
        ("http://host:80/function/x?y", "/function/x?y"),
        ("http://host", "/"),
        ("*", "*"),
        ("host:443", "host:443"),
    ],
)
def test_an_absolute_target_loses_its_authority(target: str, expected: str) -> None:
    assert origin_form(target) == expected


def test_before_the_first_table_calls_are_unavailable_and_not_unknown() -> None:
    with pytest.raises(Problem) as refusal:
        Routes().find("hello")
    assert refusal.value.kind == "unavailable"
    assert refusal.value.retry_after


def test_a_name_that_is_not_in_the_table_is_unknown() -> None:
    routes = Routes()
    routes.table = RouteTable({}, {})
    with pytest.raises(Problem) as refusal:
        routes.find("nope")
    assert refusal.value.kind == "unknown-function"
    assert "'nope'" in refusal.value.detail
