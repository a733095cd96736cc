"""Connections to the outside: names are resolved here, and what is connected to is what was checked.

A name is looked up once, its addresses are checked, and the connection goes to one of these very addresses,
so an answer that changes between the check and the connection (DNS rebinding) gains nothing.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from baas.egress_rules import Authority, IPAddress, Rules
from pilotlight.problems import Problem
from pilotlight.settings import OutsideProxy

Resolve = Callable[[str, int], Awaitable[list[IPAddress]]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_DEADLINE: Final = 15.0  # seconds, for all of it
_ATTEMPT: Final = 5.0  # seconds for one address
_LONGEST_HEAD: Final = 1 << 16


async def resolve(host: str, port: int) -> list[IPAddress]:
    """Return the addresses of a name, as the system finds them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = (ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found)
    return list(dict.fromkeys(addresses))


class Dialer:
    """Opens connections, directly or through the proxy that this machine has to use."""

    def __init__(self, proxy: OutsideProxy | None = None, resolve: Resolve = resolve) -> None:
        self._proxy = proxy
        self._resolve = resolve

    async def open(self, target: Authority, rules: Rules) -> Streams:
        """Connect to a target. Raises Problem `forbidden` or `unreachable`."""
        if not rules.allow(target):
            raise Problem(
                "forbidden",
                f"This function may not reach {target}. Add '{target}' to its egress in pilotlight.toml.",
                entry=str(target),
            )
        try:
            async with asyncio.timeout(_DEADLINE):
                if self._proxy is not None and self._proxy.serves(target.host):
                    return await self._through(self._proxy, target, rules)
                addresses = await self._addresses(target, rules)
                return await self._directly(target, addresses)
        except TimeoutError as error:
            raise Problem(
                "unreachable", f"{target} could not be reached within {_DEADLINE:.0f} seconds."
            ) from error

    async def _addresses(self, target: Authority, rules: Rules) -> list[IPAddress]:
        """Return the addresses of the target that may be connected to. Raises Problem."""
        try:
            found = [target.address] if target.address else await self._resolve(target.host, target.port)
        except (OSError, UnicodeError) as error:
            raise Problem("unreachable", f"The name {target.host} can't be resolved: {error}.") from error
        addresses = [address for address in found if rules.reachable(address, target.port)]
        if not addresses:
            entry = str(Authority(str(found[0]), target.port, found[0])) if found else str(target)
            raise Problem(
                "forbidden",
                f"{target} is at {found[0] if found else 'no address'}, which is not on the internet. "
                f"If that is meant, add {entry!r} to the function's egress in pilotlight.toml as well.",
                entry=entry,
            )
        return addresses

    async def _directly(self, target: Authority, addresses: list[IPAddress]) -> Streams:
        failures: list[str] = []
        for address in addresses:
            try:
                async with asyncio.timeout(_ATTEMPT):
                    return await asyncio.open_connection(str(address), target.port, limit=_LONGEST_HEAD)
            except OSError as error:  # TimeoutError is one
                failures.append(f"{address}: {error.strerror or 'no answer'}")
        raise Problem("unreachable", f"{target} can't be reached ({'; '.join(failures)}).")

    async def _through(self, proxy: OutsideProxy, target: Authority, rules: Rules) -> Streams:
        """Ask the machine's own proxy for the connection; it resolves the name again, for its network."""
        try:
            await self._addresses(target, rules)
        except Problem as problem:
            if problem.kind == "forbidden":
                raise
            # Behind such a proxy, names of the outside often can't be resolved at all
        try:
            reader, writer = await asyncio.open_connection(
                proxy.host, proxy.port, ssl=proxy.tls or None, limit=_LONGEST_HEAD
            )
        except OSError as error:
            raise Problem(
                "unreachable",
                f"The proxy of this machine, {proxy.host}:{proxy.port}, does not answer: {error}.",
            ) from error
        try:
            head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
            if proxy.authorization:
                head += f"Proxy-Authorization: {proxy.authorization}\r\n"
            writer.write(f"{head}\r\n".encode())
            answer = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0].decode("latin-1")
            if answer.split(" ")[1:2] != ["200"]:
                raise Problem("unreachable", f"The proxy of this machine refused {target}: {answer[:200]!r}.")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            writer.close()
            raise Problem("unreachable", f"The proxy of this machine broke off: {error}.") from error
        except BaseException:
            writer.close()
            raise
        return reader, writer
