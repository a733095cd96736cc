import base64
from hashlib import sha256

import pytest

from function_service.contract import Access, Key, Route, RouteTable, Scope
from gateway.admission import Doorkeeper, WrongKey, admit, demand, find, presented, valid_key
from gateway.routing import Routes
from pilotlight.problems import Problem


def key(*scopes: Scope, text: str = "right", app: str | None = None, expires: float | None = None) -> Key:
    digest = sha256(text.encode()).hexdigest()
    return Key(id="k1", name="laptop", sha256=digest, created=1.0, scopes=scopes, app=app, expires=expires)


RIGHT = key(Scope.ADMIN)
KEYS = {RIGHT.sha256: RIGHT}


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
    assert find("Bearer right", KEYS) == RIGHT
    assert find("Bearer wrong", KEYS) is None
    assert find("Bearer \udcff", KEYS) is None
    assert find(None, KEYS) is None


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


@pytest.mark.parametrize(
    ("made", "scope", "app", "good"),
    [
        (key(Scope.ADMIN), Scope.ADMIN, None, True),
        (key(Scope.ADMIN), Scope.DATA, "a", True),
        (key(Scope.INVOKE), Scope.INVOKE, "a", True),
        (key(Scope.INVOKE), Scope.DEPLOY, "a", False),
        (key(Scope.DEPLOY), Scope.ADMIN, None, False),
        (key(Scope.DEPLOY, Scope.DATA), Scope.DATA, "b", True),
        (key(Scope.DEPLOY, Scope.DATA), Scope.INVOKE, "b", False),
        (key(Scope.INVOKE, app="a"), Scope.INVOKE, "a", True),
        (key(Scope.INVOKE, app="a"), Scope.INVOKE, "b", False),
        (key(Scope.DEPLOY, app="a"), Scope.DEPLOY, None, False),
        (key(Scope.DATA), Scope.DATA, None, True),
        (key(), Scope.INVOKE, "a", False),
    ],
)
def test_what_a_key_is_good_for(made: Key, scope: Scope, app: str | None, good: bool) -> None:
    if good:
        demand(made, scope, app)
        return
    with pytest.raises(Problem, match=f"needs a key with the scope {scope}") as refusal:
        demand(made, scope, app)
    assert refusal.value.kind == "forbidden"


def test_an_expired_key_says_so_and_is_still_known_as_a_key() -> None:
    old = key(Scope.ADMIN, expires=86400.0)
    keys = {old.sha256: old}
    with pytest.raises(Problem, match="'laptop' expired at 1970-01-02 00:00:00 UTC") as refusal:
        valid_key("Bearer right", keys)
    assert refusal.value.kind == "forbidden"
    assert not isinstance(refusal.value, WrongKey)
    assert find("Bearer right", keys) == old
    with pytest.raises(Problem, match="expired"):
        admit(route(Access.KEY), "Bearer right", keys, inside=False)


def test_a_key_calls_the_functions_of_its_app_only() -> None:
    for app, good in (("a", True), ("b", False)):
        made = key(Scope.INVOKE, app=app)
        call = (route(Access.KEY), "Bearer right", {made.sha256: made})
        if good:
            admit(*call, inside=False)
        else:
            with pytest.raises(Problem, match="scope invoke for the app 'a'"):
                admit(*call, inside=False)


def test_only_wrong_keys_are_slowed_down() -> None:
    routes = Routes()
    routes.table = RouteTable({}, {**KEYS})
    doorkeeper = Doorkeeper(routes)
    refused = []
    for _ in range(12):
        with pytest.raises(Problem) as refusal:
            doorkeeper.enter("Bearer wrong", "192.0.2.1")
        refused.append(refusal.value.kind)
    assert refused == ["forbidden"] * 10 + ["overloaded"] * 2
    assert doorkeeper.enter("Bearer right", "192.0.2.1") == RIGHT
    with pytest.raises(Problem, match="none was sent"):
        doorkeeper.enter(None, "192.0.2.1")
    with pytest.raises(WrongKey):
        doorkeeper.enter("Bearer wrong", "192.0.2.2")
