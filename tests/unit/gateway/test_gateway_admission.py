import base64
from hashlib import sha256

import pytest

from function_service.contract import Access, Route
from gateway.admission import admit, key_id, presented
from pilotlight.problems import Problem

KEYS = {sha256(b"right").hexdigest(): "k1"}


def basic(pair: bytes) -> str:
    return "Basic " + base64.b64encode(pair).decode()


def route(access: Access) -> Route:
    return Route(
        function="f", app="a", revision="r", access=access, timeout=1, concurrency=1, max_instances=1
    )


@pytest.mark.parametrize(
    ("authorization", "key"),
    [
        ("Bearer right", "right"),
        ("bearer  right ", "right"),
        (basic(b"git:right"), "right"),
        (basic(b":right"), "right"),
        (basic(b"user:with:colons"), "with:colons"),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic !!!", None),
        (basic(b"\xff\xfe:x"), None),
        (basic(b"nocolon"), None),
        ("Digest right", None),
        ("", None),
        ("right", None),
    ],
)
def test_a_key_is_a_bearer_token_or_the_password_of_basic(authorization: str, key: str | None) -> None:
    assert presented(authorization) == key


def test_only_keys_of_the_table_are_known() -> None:
    assert key_id("Bearer right", KEYS) == "k1"
    assert key_id("Bearer wrong", KEYS) is None
    assert key_id("Bearer \udcff", KEYS) is None
    assert key_id(None, KEYS) is None


@pytest.mark.parametrize(
    ("access", "authorization", "inside", "kind"),
    [
        (Access.PUBLIC, None, False, None),
        (Access.PUBLIC, "Bearer wrong", False, None),
        (Access.KEY, None, False, "key-required"),
        (Access.KEY, "Bearer wrong", False, "forbidden"),
        (Access.KEY, "Bearer right", False, None),
        (Access.KEY, None, True, None),
        (Access.INTERNAL, None, False, "forbidden"),
        (Access.INTERNAL, "Bearer right", False, "forbidden"),
        (Access.INTERNAL, None, True, None),
    ],
)
def test_access_levels(access: Access, authorization: str | None, inside: bool, kind: str | None) -> None:
    if kind is None:
        admit(route(access), authorization, KEYS, inside=inside)
    else:
        with pytest.raises(Problem) as refusal:
            admit(route(access), authorization, KEYS, inside=inside)
        assert refusal.value.kind == kind


def test_a_refusal_never_repeats_the_key() -> None:
    with pytest.raises(Problem) as refusal:
        admit(route(Access.KEY), "Bearer secret-value", KEYS, inside=False)
    assert "secret-value" not in str(refusal.value.document())
