"""The manifest, `pilotlight.toml`: what its keys mean, and everything that is wrong with one, at once.

`KEYS` is the only table of the keys; docs/MANIFEST.md describes each of them, and a test holds it to that.
"""

import ipaddress
import re
import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any, Final

from function_service.contract import Access, FunctionConfig
from pilotlight import image_names
from pilotlight.ids import NAME_RULE, is_name
from pilotlight.problems import Problem
from pilotlight.settings import parse_duration, parse_size

MANIFEST: Final = "pilotlight.toml"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")
_RESERVED = frozenset({"PORT", "HTTPS_PROXY", "https_proxy"})
_MAX_ENV_VALUE = 32 << 10
_MAX_LIST = 100


class _Unexpected(Exception):  # noqa: N818  an answer, not a fault
    """A value is not right; the text says what was expected."""


@dataclass(frozen=True)
class FunctionManifest:
    """What the manifest says of one function: only the keys that it has.

    `path`, `runtime` and `handler` are None where they are to be found out, `image` where the function runs
    in the system of the host. `values` are further members of FunctionConfig.
    """

    name: str
    path: str | None
    runtime: str | None
    handler: str | None
    values: dict[str, Any]
    image: str | None = None


def _size(value: Any) -> int:
    expected = "a size from 16MB to 16GB, in quotes"
    if not isinstance(value, str):
        raise _Unexpected(expected)
    try:
        size = parse_size(value)
    except ValueError:
        raise _Unexpected(expected) from None
    if not 16 << 20 <= size <= 16 << 30:
        raise _Unexpected(expected)
    return size


def _duration(low: float, high: float, expected: str) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        if not isinstance(value, str):
            raise _Unexpected(expected)
        try:
            seconds = parse_duration(value)
        except ValueError:
            raise _Unexpected(expected) from None
        if not low <= seconds <= high:
            raise _Unexpected(expected)
        return seconds

    return parse


def _keep_alive(value: Any) -> float | None:
    return None if value == "auto" else _fixed_keep_alive(value)


def _cpu(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.05 <= value <= 64:
        raise _Unexpected("a number of cores from 0.05 to 64")
    return float(value)


def _count(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _Unexpected(f"a whole number from {low} to {high}")
        return value

    return parse


def _access(value: Any) -> Access:
    if not isinstance(value, str) or value not in set(Access):
        raise _Unexpected('"key", "public" or "internal"')
    return Access(value)


def _path(value: Any) -> str:
    expected = 'a folder of this repository, relative to its root and without ".."'
    if not isinstance(value, str) or not value.strip() or "\\" in value or "\0" in value:
        raise _Unexpected(expected)
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise _Unexpected(expected)
    return str(path)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 1000:
        raise _Unexpected('a text such as "handler:handle"')
    return value


def _runtime(value: Any) -> str:
    if not isinstance(value, str) or re.fullmatch(r"[a-z]+[0-9.]*", value) is None:
        raise _Unexpected('a runtime such as "python", "python3.12" or "node"')
    return value


def _image(value: Any) -> str:
    try:
        image_names.read(value if isinstance(value, str) else "")
    except ValueError:
        raise _Unexpected(image_names.EXPECTED) from None
    return str(value)


def is_destination(text: str) -> bool:
    """Tell whether text is `host:port`, with a DNS name or an IP address (IPv6 in brackets)."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 1 <= int(port) <= 65535:
        return False
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return True
    return _HOST.fullmatch(host) is not None


def _strings(value: Any, expected: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Unexpected(expected)
    if len(value) > _MAX_LIST or len(set(value)) != len(value):
        raise _Unexpected(f"{expected}, each once, at most {_MAX_LIST}")
    return value


def _egress(value: Any) -> tuple[str, ...]:
    expected = 'a list of destinations such as ["api.github.com:443"]'
    destinations = tuple(item.lower() for item in _strings(value, expected))
    if wrong := [item for item in destinations if not is_destination(item)]:
        raise _Unexpected(f"{expected}; {wrong[0]!r} is not host:port")
    return destinations


def _variable(name: str) -> str | None:
    """Return what is wrong with the name of an environment variable, or None."""
    if _VARIABLE.fullmatch(name) is None:
        return f"{name!r} can't name an environment variable (letters, digits and _, no digit first)"
    if name.startswith("PILOTLIGHT_") or name in _RESERVED:
        return f"{name!r} is set by the platform"
    return None


def _env(value: Any) -> dict[str, str]:
    expected = 'a table of texts such as { LEVEL = "info" }'
    if not isinstance(value, dict) or len(value) > _MAX_LIST:
        raise _Unexpected(f"{expected}, at most {_MAX_LIST}")
    for name, text in value.items():
        if wrong := _variable(name):
            raise _Unexpected(f"{expected}; {wrong}")
        if not isinstance(text, str):
            raise _Unexpected(f"{expected}; the value of {name} is not a text, write it in quotes")
        if "\0" in text or len(text.encode()) > _MAX_ENV_VALUE:
            raise _Unexpected(f"{expected}; the value of {name} is longer than 32KB or holds a NUL")
    return dict(value)


def _secrets(value: Any) -> tuple[str, ...]:
    expected = 'a list of names such as ["GITHUB_TOKEN"]'
    names = tuple(_strings(value, expected))
    for name in names:
        if wrong := _variable(name):
            raise _Unexpected(f"{expected}; {wrong}")
    return names


_fixed_keep_alive = _duration(0, 86_400, '"auto" or a duration from 0s to 24h, such as "5m"')

KEYS: Final[dict[str, Callable[[Any], Any]]] = {
    "path": _path,
    "runtime": _runtime,
    "handler": _text,
    "image": _image,
    "memory": _size,
    "cpu": _cpu,
    "timeout": _duration(0.1, 3600, 'a duration from 100ms to 1h, such as "10s"'),
    "concurrency": _count(1, 1000),
    "min_instances": _count(0, 100),
    "max_instances": _count(1, 1000),
    "keep_alive": _keep_alive,
    "access": _access,
    "egress": _egress,
    "env": _env,
    "secrets": _secrets,
}
"""Every key of a function: what makes its value out of TOML's; it raises _Unexpected."""

_DEFAULTS = FunctionConfig(name="", runtime="", handler="")


def suggestion(word: str, known: Collection[str]) -> str:
    """Return ` Did you mean …?` where a known word is close, else nothing."""
    close = get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _unknown(where: str, key: str, known: Collection[str], expected: str) -> str:
    return f"{shown(where)[1:-1]}: there is no such key.{suggestion(key, known)} Expected {expected}."


def _function(name: str, table: Any, errors: list[str]) -> FunctionManifest | None:
    where = f"functions.{name}"
    if not is_name(name):
        errors.append(f"{where}: {name!r} can't name a function. Expected {NAME_RULE}.")
        return None
    if not isinstance(table, dict):
        errors.append(f"{where} = {shown(table)}: expected a table; write [functions.{name}].")
        return None
    values: dict[str, Any] = {}
    before = len(errors)
    for key, value in table.items():
        if key not in KEYS:
            known = ", ".join(KEYS)
            errors.append(
                f"{where}.{key}: there is no such key.{suggestion(key, KEYS)} Expected one of {known}."
            )
            continue
        try:
            values[key] = KEYS[key](value)
        except _Unexpected as error:
            errors.append(f"{where}.{key} = {shown(value)}: expected {error}.")
    least = values.get("min_instances", _DEFAULTS.min_instances)
    most = values.get("max_instances", _DEFAULTS.max_instances)
    if least > most:
        errors.append(f"{where}.min_instances = {least}: expected at most max_instances, which is {most}.")
    if twice := sorted(set(values.get("env", {})) & set(values.get("secrets", ()))):
        errors.append(f"{where}.secrets: {twice[0]!r} stands in env too; expected it in one of them.")
    if len(errors) > before:
        return None
    path, runtime, handler = (values.pop(key, None) for key in ("path", "runtime", "handler"))
    return FunctionManifest(name, path, runtime, handler, values, image=values.pop("image", None))


def shown(value: Any) -> str:
    """Return a TOML value as a person would write it, cut where it is long."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else None
    if text is None:
        text = '"' + value.replace('"', '\\"') + '"' if isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= 80 else text[:79] + "…"


def parse(content: bytes) -> dict[str, FunctionManifest]:
    """Return the functions that a manifest names.

    Raises Problem `build-failed`, whose detail lists everything that is wrong, one thing a line.
    """
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise Problem("build-failed", f"{MANIFEST} is not UTF-8; save it as that.") from None
    except tomllib.TOMLDecodeError as error:
        raise Problem("build-failed", _syntax(str(error))) from error
    errors: list[str] = []
    functions: dict[str, FunctionManifest] = {}
    for key, value in document.items():
        if key != "functions":
            errors.append(_unknown(key, key, ["functions"], "[functions.NAME] tables"))
        elif not isinstance(value, dict):
            errors.append(f"functions = {shown(value)}: expected [functions.NAME] tables.")
        else:
            for name, table in value.items():
                if function := _function(name, table, errors):
                    functions[name] = function
    if errors:
        raise Problem("build-failed", "\n".join([f"{MANIFEST} is not right:", *(f"  {e}" for e in errors)]))
    return functions


def _syntax(message: str) -> str:
    twice = re.match(r"Cannot declare \('functions', '([^']*)'\) twice \((.*)\)", message)
    if twice:
        return (
            f"{MANIFEST}: the function {twice[1]!r} is declared twice (the second time {twice[2]}). "
            "Give one of them another name, or join them."
        )
    return f"{MANIFEST} is not TOML: {message}."
