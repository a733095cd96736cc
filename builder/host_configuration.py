"""What pip and npm of this machine are configured to, as variables that pip and npm in builds understand."""

import configparser
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

NPM_REGISTRY: Final = "NPM_CONFIG_REGISTRY"
CERTIFICATES: Final = ("PIP_CERT", "NPM_CONFIG_CAFILE")
"""The variables that name a file with certificates."""

_PIP_OPTIONS = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "find-links": "PIP_FIND_LINKS",
    "trusted-host": "PIP_TRUSTED_HOST",
    "no-index": "PIP_NO_INDEX",
    "cert": "PIP_CERT",
}
_NPM_OPTIONS = {
    "registry": NPM_REGISTRY,
    "cafile": "NPM_CONFIG_CAFILE",
    "strict-ssl": "NPM_CONFIG_STRICT_SSL",
}
_VARIABLES = frozenset({*_PIP_OPTIONS.values(), *_NPM_OPTIONS.values(), "PIP_DEFAULT_TIMEOUT"})
# npm reads options for one registry or one scope from variables too, by their very names
_NPM_PREFIX = "npm_config_"
_CREDENTIAL = re.compile(r"//.+:(?:_authToken|_auth|_password|username)")
_SCOPE = re.compile(r"@[^:/]+:registry")
_REFERENCE = re.compile(r"\$\{([^}]+)\}")


def read(environ: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return the variables: those of the files, then those of the environment, which win."""
    home = Path(environ["HOME"]) if environ.get("HOME") else None
    found: dict[str, str] = {}
    for file in (
        root / "etc/pip.conf",
        *([home / ".pip/pip.conf", home / ".config/pip/pip.conf"] if home else []),
    ):
        found |= _pip_options(_text(file))
    for file in (root / "etc/npmrc", *([home / ".npmrc"] if home else [])):
        found |= _npm_options(_text(file), environ)
    for name, value in environ.items():
        common = name.upper() if name.lower().startswith(_NPM_PREFIX) else name  # npm takes either case
        if common in _VARIABLES:
            found[common] = value
        elif name.startswith(_NPM_PREFIX) and _is_own(name.removeprefix(_NPM_PREFIX)):
            found[name] = value
    return found


def is_registry(variable: str) -> bool:
    """Tell whether a variable names the registry of a scope."""
    return _SCOPE.fullmatch(variable.removeprefix(_NPM_PREFIX)) is not None


def is_credential(variable: str) -> bool:
    """Tell whether a variable is there to log in with."""
    return _CREDENTIAL.fullmatch(variable.removeprefix(_NPM_PREFIX)) is not None


def _is_own(option: str) -> bool:
    return is_registry(option) or is_credential(option)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError as error:
        # most machines have none of these files
        _log.debug("%s is not read: %s", file, error.strerror)
        return ""


def _pip_options(text: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # the error itself quotes the line, which may hold a password
        _log.warning("pip's configuration is not understood and is left out (%s)", type(error).__name__)
        return {}
    found: dict[str, str] = {}
    for section in ("global", "install"):
        for option, value in parser.items(section) if parser.has_section(section) else ():
            if variable := _PIP_OPTIONS.get(option.replace("_", "-")):
                found[variable] = " ".join(value.split())
    return found


def _npm_options(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or key.startswith((";", "#")):
            continue
        variable = _NPM_PREFIX + key if _is_own(key) else _NPM_OPTIONS.get(key)
        if variable:
            value = _unquoted(value)
            found[variable] = _REFERENCE.sub(lambda match: environ.get(match[1], match[0]), value)
    return found


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
