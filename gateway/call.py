"""One call while it lasts, and what the gateway adds to its request and its answer."""

import time
from typing import TYPE_CHECKING

from aiohttp.web import BaseRequest
from multidict import CIMultiDictProxy

from gateway import headers
from gateway.identity import identify
from gateway.leases import HeldLease, Waiter

if TYPE_CHECKING:
    from function_service.contract import Route
    from gateway.exchange import Upload


class Origin:
    """Where the calls of one connection come from."""

    __slots__ = ("address", "inside", "local")

    def __init__(self, address: str, *, inside: bool) -> None:
        self.address = address
        self.inside = inside  # over the private socket: from a function of this platform
        # a reverse proxy on this machine is believed what it says about the caller's scheme and host
        self.local = inside or address.startswith(("127.", "::ffff:127.")) or address == "::1"


class Call:
    """What is known of one call."""

    __slots__ = (
        "arrived", "caller", "cold", "head_sent", "held", "origin", "request", "request_id", "route",
        "status", "target", "trace_taken", "traceparent", "upload", "waited", "waiter",
    )  # fmt: skip

    def __init__(self, request: BaseRequest, origin: Origin) -> None:
        given = request.headers
        self.arrived = time.perf_counter()
        self.request = request
        self.origin = origin
        self.request_id, self.traceparent, self.trace_taken = identify(
            given.get("X-Request-Id"), given.get("traceparent")
        )
        self.caller = given.get("Pilotlight-Caller") if origin.inside else None
        self.route: Route | None = None
        self.target = "/"  # what the function sees
        self.upload: Upload | None = None
        self.waiter: Waiter | None = None
        self.held: HeldLease | None = None  # whose slot it has, or had last
        self.waited = 0.0  # seconds until it got the slot
        self.cold = False
        self.head_sent = False
        self.status = 0

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


def forwarding(
    given: CIMultiDictProxy[str], origin: Origin, request_id: str, traceparent: str, caller: str | None = None
) -> bytes:
    """Return the header lines that tell the other side who called, and as which request."""
    host = given.get("Host")
    scheme = "http"
    forwarded = given.get("X-Forwarded-For")
    if origin.local:
        host = given.get("X-Forwarded-Host", host)
        scheme = given.get("X-Forwarded-Proto", scheme)
    lines = (
        f"X-Forwarded-For: {origin.address if forwarded is None else f'{forwarded}, {origin.address}'}\r\n"
        f"X-Forwarded-Proto: {scheme}\r\n"
        f"X-Request-Id: {request_id}\r\n"
        f"traceparent: {traceparent}\r\n"
    )
    if host is not None:
        lines += f"X-Forwarded-Host: {host}\r\n"
    if caller is not None:
        lines += f"Pilotlight-Caller: {caller}\r\n"
    return lines.encode(errors="surrogateescape")
