"""Where build steps fetch packages: the public indexes, and those that this machine's own pip and npm use."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from builder import host_configuration
from function_service.contract import Mount

_log = logging.getLogger(__name__)

_PUBLIC = ("pypi.org:443", "files.pythonhosted.org:443", "registry.npmjs.org:443")
_PORTS = {"https": 443, "http": 80}
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_TRUST = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_URLS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", host_configuration.NPM_REGISTRY)
_TOOL: Final = "/tools/package-index"
_TRUSTED: Final = "/tools/certificates"


@dataclass(frozen=True)
class PackageIndex:
    """What a build step with network gets: variables, destinations that it may reach, folders it may read.

    `certificates` are variables that name a file, and what is in that file: `store` puts them where steps see
    them. Variables can be credentials, which is why none of them is shown where this is logged.
    """

    env: Mapping[str, str] = field(repr=False)
    egress: tuple[str, ...]
    mounts: tuple[Mount, ...]
    certificates: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def find(cls, environ: Mapping[str, str], root: Path = Path("/")) -> "PackageIndex":
        """Read the configuration of pip and npm, files first, then the environment (which wins).

        `root` is where the machine's files are looked for. Call it as the user whose configuration it is.
        """
        found = host_configuration.read(environ, root)
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
        for name, value in found.items():
            if name in _URLS or host_configuration.is_registry(name):
                urls += value.split()
        egress = dict.fromkeys([*_PUBLIC, *(place for url in urls if (place := _destination(url)))])
        if links:
            found["PIP_FIND_LINKS"] = " ".join(links)
        certificates = {}
        for name in host_configuration.CERTIFICATES:
            if name in found and (content := _certificates(name, Path(found.pop(name)))):
                certificates[name] = content
        trust = dict.fromkeys(_TRUST, _CERTIFICATES)
        env = {**trust, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **found}
        return cls(env, tuple(egress), tuple(mounts), certificates)

    def store(self, folder: Path) -> "PackageIndex":
        """Write the certificates to a new folder, if there are any; return the index that uses it."""
        if not self.certificates:
            return self
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        env = dict(self.env)
        for name, content in self.certificates.items():
            file = folder / f"{name}.pem"
            file.write_bytes(content)
            file.chmod(0o644)
            env[name] = f"{_TOOL}/{file.name}"
        return replace(self, env=env, mounts=(*self.mounts, Mount(str(folder), _TOOL)))

    def brought_along(self) -> "PackageIndex":
        """Return what a step in an image gets, which may have the certificates elsewhere, or none at all."""
        folder, _, name = _CERTIFICATES.rpartition("/")
        env = {
            key: f"{_TRUSTED}/{name}" if value == _CERTIFICATES else value for key, value in self.env.items()
        }
        return replace(self, env=env, mounts=(*self.mounts, Mount(folder, _TRUSTED)))

    @property
    def identity(self) -> list[tuple[str, str]]:
        """What decides which packages a name means: a new password does not change them."""
        return sorted(
            (name, value) for name, value in self.env.items() if not host_configuration.is_credential(name)
        )


def _certificates(name: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        _log.warning("%s names %s, which can't be read (%s); builds do without", name, file, error.strerror)
        return b""


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
