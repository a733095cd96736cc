"""Where build steps fetch packages: the public indexes, and those that this machine's own pip and npm use."""

import configparser
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from function_service.contract import Mount

_log = logging.getLogger(__name__)

VARIABLES: Final = (
    "HOME",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_TRUSTED_HOST",
    "PIP_NO_INDEX",
    "PIP_DEFAULT_TIMEOUT",
    "NPM_CONFIG_REGISTRY",
    "npm_config_registry",
)
"""What of the environment matters here."""

_PUBLIC = ("pypi.org:443", "files.pythonhosted.org:443", "registry.npmjs.org:443")
_PORTS = {"https": 443, "http": 80}
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_TRUST = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_PIP_OPTIONS = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "find-links": "PIP_FIND_LINKS",
    "trusted-host": "PIP_TRUSTED_HOST",
    "no-index": "PIP_NO_INDEX",
}


@dataclass(frozen=True)
class PackageIndex:
    """What a build step with network gets: variables, destinations that it may reach, folders it may read."""

    env: Mapping[str, str]
    egress: tuple[str, ...]
    mounts: tuple[Mount, ...]

    @classmethod
    def find(cls, environ: Mapping[str, str], root: Path = Path("/")) -> "PackageIndex":
        """Read the configuration of pip and npm, files first, then the environment (which wins).

        `root` is where the machine's files are looked for.
        """
        home = Path(environ["HOME"]) if environ.get("HOME") else None
        found: dict[str, str] = {}
        for file in (
            root / "etc/pip.conf",
            *([home / ".pip/pip.conf", home / ".config/pip/pip.conf"] if home else []),
        ):
            found |= _pip_options(_read(file))
        for file in (root / "etc/npmrc", *([home / ".npmrc"] if home else [])):
            found |= _npm_options(_read(file))
        found |= {name: value for name, value in environ.items() if name in VARIABLES and name != "HOME"}
        if "npm_config_registry" in found:
            found["NPM_CONFIG_REGISTRY"] = found.pop("npm_config_registry")
        mounts: list[Mount] = []
        links: list[str] = []
        for link in found.pop("PIP_FIND_LINKS", "").split():
            if "://" in link and not link.startswith("file://"):
                links.append(link)
            elif (folder := Path(link.removeprefix("file://"))).is_dir():
                mounts.append(Mount(str(folder), f"/tools/find-links-{len(mounts)}"))
                links.append(mounts[-1].target)
            else:
                _log.info("PIP_FIND_LINKS names %s, which is no folder here; builds do without", link)
        urls = [*links]
        for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "NPM_CONFIG_REGISTRY"):
            urls += found.get(name, "").split()
        egress = dict.fromkeys([*_PUBLIC, *(place for url in urls if (place := _destination(url)))])
        if links:
            found["PIP_FIND_LINKS"] = " ".join(links)
        trust = dict.fromkeys(_TRUST, _CERTIFICATES)
        return cls({**trust, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **found}, tuple(egress), tuple(mounts))


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError as error:
        # most machines have none of these files, and the builder's own user may not read root's
        _log.debug("%s is not read: %s", file, error.strerror)
        return ""


def _pip_options(text: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        _log.warning("pip's configuration is not understood and is left out: %s", error)
        return {}
    found: dict[str, str] = {}
    for section in ("global", "install"):
        for option, value in parser.items(section) if parser.has_section(section) else ():
            if variable := _PIP_OPTIONS.get(option.replace("_", "-")):
                found[variable] = " ".join(value.split())
    return found


def _npm_options(text: str) -> dict[str, str]:
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == "registry":
            return {"NPM_CONFIG_REGISTRY": "".join(shlex.split(value))}
    return {}


def _destination(url: str) -> str | None:
    """Return host:port of an URL; None for what is none, or has no host."""
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    if parts.hostname is None or port is None:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}"
