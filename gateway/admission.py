"""Who may do what: the keys that callers present, and the access level of functions. Pure."""

import base64
import binascii
from collections.abc import Mapping
from hashlib import sha256

from function_service.contract import Access, Route
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


def key_id(authorization: str | None, keys: Mapping[str, str]) -> str | None:
    """Return the id of the platform key that an Authorization header holds, or None if it holds none.

    `keys` has ids by hexadecimal SHA-256: looking up a digest tells nothing by its timing.
    """
    if authorization is None:
        return None
    key = presented(authorization)
    return None if key is None else keys.get(sha256(key.encode(errors="surrogateescape")).hexdigest())


def require_key(authorization: str | None, keys: Mapping[str, str]) -> str:
    """Return the id of the key. Raises Problem `key-required` or `forbidden`."""
    if authorization is None:
        raise Problem("key-required", f"This needs a key and none was sent. {_HOW}")
    found = key_id(authorization, keys)
    if found is None:
        raise Problem(
            "forbidden",
            "The Authorization header holds no key of this platform: the key is wrong or was withdrawn. "
            "`pilotlight keys list` shows the names of those that are valid.",
        )
    return found


def admit(route: Route, authorization: str | None, keys: Mapping[str, str], *, inside: bool) -> None:
    """Raise Problem if this call is not allowed. `inside`: it comes from a function of this platform."""
    if inside or route.access is Access.PUBLIC:
        return
    if route.access is Access.INTERNAL:
        raise Problem(
            "forbidden",
            f"The function {route.function!r} is internal: only other functions can call it. "
            'Set access = "key" or "public" in its manifest to open it.',
        )
    require_key(authorization, keys)
