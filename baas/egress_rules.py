"""Which hosts a function may reach: the entries of `egress` in its manifest, and what no name may lead to."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_AUTHORITY = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/@\s]+)):(?P<port>[0-9]{1,5})")
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL: Final = ipaddress.IPv6Network("64:ff9b:1::/48")


@dataclass(frozen=True)
class Authority:
    """A host, in lower case, and a port. `address` is set where the host is an IP address."""

    host: str
    port: int
    address: IPAddress | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port` or `[address]:port`. Raises ValueError."""
        match = _AUTHORITY.fullmatch(text)
        if match is None or not 1 <= int(match["port"]) <= 65535:
            raise ValueError(f"{text[:200]!r} is not host:port")
        host = (match["six"] or match["host"]).lower().removesuffix(".")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if match["six"] or not _NAME.fullmatch(host) or len(host) > 253:
                raise ValueError(f"{host[:200]!r} is not the name of a host") from None
            return cls(host, int(match["port"]))
        return cls(str(address), int(match["port"]), address)

    def __str__(self) -> str:
        host = f"[{self.host}]" if isinstance(self.address, ipaddress.IPv6Address) else self.host
        return f"{host}:{self.port}"


class Rules:
    """What one function may reach: `host:port`, or `*.domain:port` for all hosts below a domain.

    `internal` says that the names may lead to addresses that are not the internet's: so it is for builds,
    whose entries come from the operator's own configuration of package indexes.
    """

    def __init__(self, entries: Iterable[str], *, internal: bool = False) -> None:
        """Read the entries. Raises ValueError."""
        self._internal = internal
        self._exact: set[Authority] = set()
        self._below: set[tuple[str, int]] = set()
        for entry in entries:
            authority = Authority.parse(entry.removeprefix("*."))
            if not entry.startswith("*."):
                self._exact.add(authority)
            elif authority.address is None:
                self._below.add((authority.host, authority.port))
            else:
                raise ValueError(f"{entry!r}: there is nothing below an address")

    def allow(self, target: Authority) -> bool:
        """Tell whether an entry names the target."""
        if target in self._exact:
            return True
        if target.address is not None:
            return False
        labels = target.host.split(".")
        return any((".".join(labels[start:]), target.port) in self._below for start in range(1, len(labels)))

    def reachable(self, address: IPAddress, port: int) -> bool:
        """Tell whether a connection to the address may be made: it is public, or an entry is that address."""
        return self._internal or is_public(address) or Authority(str(address), port, address) in self._exact


def is_public(address: IPAddress) -> bool:
    """Tell whether an address is one of the internet's, and not of this machine or of a network around it.

    Refused are loopback, link-local (where clouds keep credentials), private, shared (RFC 6598), multicast,
    unspecified and reserved ones, also where an IPv6 address only wraps one of these.
    """
    if isinstance(address, ipaddress.IPv6Address):
        for wrapped in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
            if wrapped is not None and not is_public(wrapped):
                return False
        if address in _NAT64_LOCAL:
            return False
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped is not None:
            return True
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_loopback)
