"""One call while it lasts, and what the gateway adds to its request and its answer."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from multidict import CIMultiDictProxy

from function_service.contract import Key
from gateway import admission, headers
from gateway.leases import HeldLease, Waiter

if TYPE_CHECKING:
    from function_service.contract import Route
    from gateway.connections import CallerConnection
    from gateway.exchange import Upload
    from gateway.forward import Connection
    from gateway.glance import Plain
    from gateway.quick import Quick

_AUTHORIZATION = frozenset({b"authorization"})
_TRACESTATE = frozenset({b"tracestate"})  # belongs to a traceparent, and is worth nothing without it
_NONE: frozenset[bytes] = frozenset()


class Origin:
    """Where the calls of one connection come from."""

    __slots__ = ("address", "inside", "local", "machine", "scheme")

    def __init__(self, address: str, scheme: str = "http", *, inside: bool, machine: bool = False) -> None:
        self.address = address
        self.scheme = scheme
        self.inside = inside  # over the private socket: from a function of this platform
        self.machine = machine  # inside as well, from the gateway of another machine, which has let it in
        # a reverse proxy on this machine is believed what it says about the caller's scheme and host
        self.local = inside or address.startswith(("127.", "::ffff:127.")) or address == "::1"


class Call:
    """What is known of one call."""

    route: "Route | None" = None
    target = "/"  # what the function sees
    upload: "Upload | None" = None
    waiter: Waiter | None = None
    held: HeldLease | None = None  # whose slot it has, or had last
    waited = 0.0  # seconds until it got the slot
    passed_on = False  # whether another machine has been asked to make it
    admitted = False  # whether its caller may call the function
    cold = False
    head_sent = False
    status = 0

    def __init__(self, method: str, identity: tuple[str, str, bool], caller: str | None) -> None:
        """`identity` is what `identify` made of the headers; `caller` is the function that calls, if any."""
        self.arrived = time.perf_counter()
        self.method = method
        self.request_id, self.traceparent, self.trace_taken = identity
        self.caller = caller

    def receipt(self, held: HeldLease) -> headers.Receipt:
        """Return the receipt, which is due when the head of the function's answer has come."""
        handler = time.perf_counter() - self.arrived - self.waited
        request_id = f"X-Request-Id: {self.request_id}\r\n".encode()
        if self.cold:
            return headers.receipt(self.waited, handler, held.lease.stages, held.cold_lines + request_id)
        return headers.receipt(self.waited, handler, None, held.lines + request_id)

    def failure_headers(self) -> dict[str, str]:
        """Return what goes with a problem instead of the answer: the receipt, as far as the call got."""
        added = {"X-Request-Id": self.request_id}
        if self.held is not None:
            added["Server-Timing"] = self.receipt(self.held).timing.decode()
            added["Pilotlight-Start"] = "cold" if self.cold else "warm"
            added["Pilotlight-Instance"] = self.held.lease.instance
            added["Pilotlight-Revision"] = self.held.lease.revision
        return added


class QuickCall(Call):
    """A call on the short way: it waits for a slot, or has been sent to an instance already."""

    admitted = True
    sent = False
    slot: HeldLease  # both are there once it is sent
    connection: "Connection"

    def __init__(
        self, method: str, identity: tuple[str, str, bool], plain: "Plain", quick: "Quick",
        caller_connection: "CallerConnection", data: bytes, route: "Route",
    ) -> None:  # fmt: skip
        """`data` is the whole request as it came, and `plain` its headers."""
        super().__init__(method, identity, plain.caller)
        self.plain = plain
        self.quick = quick
        self.caller_connection = caller_connection
        self.data = data
        self.route = self.wanted = route

    def woken(self) -> None:
        """Something has happened to the answer."""
        self.quick.woken(self)

    def handed(self, _: object) -> None:
        """The wait for a slot is over."""
        self.quick.handed(self)


def calling(given: CIMultiDictProxy[str], origin: Origin) -> str | None:
    """Return the function that calls; only what comes from inside can say so."""
    return given.get("Pilotlight-Caller") if origin.inside else None


def forwarding(given: CIMultiDictProxy[str], origin: Origin) -> bytes:
    """Return the header lines that tell the other side who called."""
    host = given.get("Host")
    scheme = origin.scheme
    forwarded = given.get("X-Forwarded-For")
    if origin.local:
        host = given.get("X-Forwarded-Host", host)
        scheme = given.get("X-Forwarded-Proto", scheme)
    lines = (
        f"X-Forwarded-For: {origin.address if forwarded is None else f'{forwarded}, {origin.address}'}\r\n"
        f"X-Forwarded-Proto: {scheme}\r\n"
    )
    if host is not None:
        lines += f"X-Forwarded-Host: {host}\r\n"
    caller = calling(given, origin)
    if caller is not None:
        lines += f"Pilotlight-Caller: {caller}\r\n"
    return lines.encode(errors="surrogateescape")


def remote(given: CIMultiDictProxy[str], origin: Origin) -> str:
    """Return the address of a caller; that of one behind a proxy on this machine is what the proxy says."""
    forwarded = given.getall("X-Forwarded-For", ()) if origin.local else ()
    last = ",".join(forwarded).rpartition(",")[2].strip()
    return last or origin.address


def withheld(given: CIMultiDictProxy[str], keys: Mapping[str, Key], *, trace_taken: bool) -> frozenset[bytes]:
    """Return which headers of a request are not for the function: a key of the platform, for one."""
    dropped = _NONE if trace_taken or "tracestate" not in given else _TRACESTATE
    if "Authorization" in given and any(
        admission.find(one, keys) is not None for one in given.getall("Authorization")
    ):
        return dropped | _AUTHORIZATION
    return dropped
