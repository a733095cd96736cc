"""Where a Redis is, as `--store` says it: one server, the sentinels of a service, or nodes of a Cluster.

What is wrong with an address is told without quoting it: it may hold a password.
"""

import re
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import parse_qsl, urlsplit

from msgspec import Struct

Kind = Literal["server", "sentinel", "cluster"]

_KINDS: Final[Mapping[str, Kind]] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_PATHS: Final[Mapping[Kind, str]] = {
    "server": r"/?(?P<database>\d*)",
    "sentinel": r"/(?P<service>[\w.-]+)(?:/(?P<database>\d*))?",
    "cluster": r"/?(?P<database>\d*)",
}
_OPTIONS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "server": ("db",),
    "sentinel": ("sentinel_username", "sentinel_password"),
    "cluster": (),
}
_PORTS: Final[Mapping[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_URL: Final = re.compile(
    r"(?P<scheme>[a-z+]+)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?"
)


class Address(Struct, frozen=True):
    """Where a Redis is.

    `kind` is how the server that takes writes is found, and `nodes` are the hosts and ports to begin with:
    of the server (none for a Unix socket), of sentinels, or of nodes of the Cluster. `server` is a URL of
    the first one as if it were the server, with user, password, database and the options of TLS. `service`
    is whose master the sentinels are asked for, and `sentinels` the username and password that they want,
    if any. `shown` names it all without what is secret.
    """

    kind: Kind
    nodes: tuple[tuple[str, int], ...]
    server: str
    shown: str
    service: str = ""
    sentinels: Mapping[str, str] = {}


def parse(text: str) -> Address:
    """Return the address that a URL stands for. Raises ValueError."""
    url = _URL.fullmatch(text)
    kind = _KINDS.get(url["scheme"]) if url else None
    if url is None or kind is None:
        raise ValueError("that is no such address")
    who, at, hosts = url["authority"].rpartition("@")
    first = hosts.split(",")[0]
    try:
        query = url["query"] or ""
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        urlsplit(f"//{who}{at}{first}")
        nodes = () if url["scheme"] == "unix" else tuple(_node(host, kind) for host in hosts.split(","))
    except ValueError:
        raise ValueError("a host, a port or a password is odd") from None
    if not all(name in _OPTIONS[kind] or name.startswith("ssl_") for name in options):
        raise ValueError("it has an option that there is not")
    if url["scheme"] == "unix":
        if not url["path"]:
            raise ValueError("the path is missing")
        return Address(kind, nodes, text, url["path"])
    path = re.fullmatch(_PATHS[kind], url["path"], re.ASCII)
    if path is None or (kind == "server" and len(nodes) > 1):
        raise ValueError("what stands behind the first host is odd")
    if kind == "cluster" and path["database"].strip("0"):
        raise ValueError("a Cluster has database 0 only")
    shown = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in nodes)
    if kind == "server":
        return Address(kind, nodes, text, shown + url["path"])
    tls = url["scheme"].partition("+")[0]
    theirs = "&".join(part for part in query.split("&") if not part.startswith("sentinel_"))
    return Address(
        kind,
        nodes,
        f"{tls}://{who}{at}{first}/{path['database'] or 0}?{theirs}",
        shown + url["path"],
        path.groupdict().get("service", ""),
        {name.removeprefix("sentinel_"): value for name, value in options.items() if "sentinel_" in name},
    )


def _node(text: str, kind: Kind) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.netloc != text or parts.port == 0:
        raise ValueError(text)
    return parts.hostname, parts.port or _PORTS[kind]
