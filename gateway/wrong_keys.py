"""Who tries wrong keys at speed is told to wait, by address. Keys that are right are none of its business."""

import ipaddress
import logging
from collections import OrderedDict
from typing import Final

from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

_BURST: Final = 10  # wrong keys that an address may try at once
_RATE: Final = 1.0  # a second, from then on
_ADDRESSES: Final = 4096  # that are remembered; whoever has more of them has as many buckets anyway


class WrongKeys:
    """A token bucket for each address, as far as it is not full."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when; oldest first

    def tried(self, address: str, now: float) -> None:
        """Take a wrong key into account; `now` is any clock's. Raises Problem `overloaded`."""
        network = _network(address)
        tokens, then = self._buckets.pop(network, (_BURST, now))
        tokens = min(_BURST, tokens + (now - then) * _RATE)
        allowed = tokens >= 1
        self._buckets[network] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        if not allowed:
            raise Problem(
                "overloaded",
                "Too many wrong keys have come from your address. Wait a second before the next one; keys "
                "that are right go on working.",
                retry_after=1,
            )
        if tokens < 2:
            _log.warning("action=wrong-keys address=%s", network)


def _network(address: str) -> str:
    """Return what one caller is: an address, or a whole /64, which is what one has of IPv6."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]  # what a proxy on this machine says
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
