"""Who may do what: the keys that callers present, what these are good for, and the access level of functions.

Nobody is asked: the keys came with the routes.
"""

import base64
import binascii
import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

from function_service.contract import Access, Actor, Key, Route, Scope
from gateway.routing import Routes
from gateway.wrong_keys import WrongKeys
from pilotlight.problems import Problem

_HOW = "Send it as `Authorization: Bearer KEY`. The first key is in the file admin.key of the data folder."


def presented(authorization: str) -> str | None:
    """Return the key within an Authorization header: a bearer token, or the password of HTTP basic."""
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    match scheme.lower():
        case "bearer":
            return value or None
        case "basic":
            try:
                pair = base64.b64decode(value, validate=True).decode()
            except (binascii.Error, ValueError):
                return None
            return pair.partition(":")[2] or None
    return None


def find(authorization: str | None, keys: Mapping[str, Key]) -> Key | None:
    """Return the platform key that an Authorization header holds, be it expired, or None if it holds none.

    `keys` is by hexadecimal SHA-256: looking up a digest tells nothing by its timing.
    """
    if authorization is None:
        return None
    key = presented(authorization)
    return None if key is None else keys.get(sha256(key.encode(errors="surrogateescape")).hexdigest())


class WrongKey(Problem):
    """What was sent is no key of this platform."""

    def __init__(self) -> None:
        super().__init__(
            "forbidden",
            "The Authorization header holds no key of this platform: the key is wrong or was withdrawn. "
            "`pilotlight keys list` shows the names of those that are valid.",
        )


def valid_key(authorization: str | None, keys: Mapping[str, Key]) -> Key:
    """Return the key that was presented. Raises Problem `key-required`, `forbidden` (WrongKey, expired)."""
    if authorization is None:
        raise Problem("key-required", f"This needs a key and none was sent. {_HOW}")
    key = find(authorization, keys)
    if key is None:
        raise WrongKey
    if key.expired(time.time()):
        raise Problem(
            "forbidden",
            f"The key {key.name!r} expired at {_date(key.expires)}. Ask for a new one; whoever has one with "
            "the scope admin makes it: pilotlight keys create NAME",
        )
    return key


def demand(key: Key, scope: Scope, app: str | None) -> None:
    """Raise Problem `forbidden` where a valid key is not good for this, on this app."""
    if key.may(scope, app):
        return
    needed = _good_for((scope,), app if key.app is not None else None)
    flags = f" --app {app}" if app is not None and scope is not Scope.ADMIN else ""
    raise Problem(
        "forbidden",
        f"This needs a key with the scope {needed}. The key {key.name!r} has "
        f"{_good_for(key.scopes, key.app)}. Make another one: "
        f"pilotlight keys create NAME --scope {scope}{flags}",
    )


def admit(route: Route, authorization: str | None, keys: Mapping[str, Key], *, inside: bool) -> None:
    """Raise Problem if this call is not allowed. `inside`: it comes from a function of this platform."""
    if inside or route.access is Access.PUBLIC:
        return
    if route.access is Access.INTERNAL:
        raise Problem(
            "forbidden",
            f"The function {route.function!r} is internal: only other functions can call it. "
            'Set access = "key" or "public" in its manifest to open it.',
        )
    demand(valid_key(authorization, keys), Scope.INVOKE, route.app)


@dataclass(frozen=True)
class Caller:
    """Somebody with a valid key."""

    key: Key
    actor: Actor

    def demand(self, scope: Scope, app: str | None) -> None:
        """Raise Problem `forbidden` where the key is not good for this, on this app."""
        demand(self.key, scope, app)

    def sees(self, app: str | None) -> bool:
        """Tell whether lists show to this caller what belongs to an app."""
        return self.key.app in (None, app)


class Doorkeeper:
    """Lets callers in by the keys of the present table, and slows down who tries wrong ones."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._wrong = WrongKeys()

    def enter(self, authorization: str | None, address: str) -> Key:
        """Return the key of a caller; see `valid_key`. Raises Problem `overloaded`, too."""
        with self._slow(address):
            return valid_key(authorization, self._routes.keys)

    def admit(self, route: Route, authorization: str | None, address: str, *, inside: bool) -> None:
        """Let a call pass; see the function `admit`. Raises Problem `overloaded`, too."""
        with self._slow(address):
            admit(route, authorization, self._routes.keys, inside=inside)

    @contextlib.contextmanager
    def _slow(self, address: str) -> Iterator[None]:
        try:
            yield
        except WrongKey:
            self._wrong.tried(address, time.monotonic())
            raise


def _good_for(scopes: tuple[Scope, ...], app: str | None) -> str:
    return ", ".join(scopes) + (f" for the app {app!r}" if app is not None else "")


def _date(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
