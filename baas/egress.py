"""The proxy that is a function's only way to the outside: CONNECT, and plain requests for http:// addresses.

It lets pass what egress_rules.py allows and connects as dial.py does; here is what is said on the wire.
"""

import asyncio
import logging
import re
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from baas.dial import Dialer, Streams
from baas.egress_rules import Authority, Rules
from baas.face import raw_problem
from baas.metrics import Metrics
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

_LONGEST_HEAD: Final = 1 << 16
_HEAD_WAIT: Final = 10.0  # seconds for the head of a request
_IDLE: Final = 300.0  # seconds without a byte in either direction
_CHUNK: Final = 1 << 16
_REQUEST_LINE = re.compile(r"([A-Za-z]+) (\S+) HTTP/1\.[01]")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")

# What is between the function and us. Transfer-Encoding goes on, because the body does as it is.
_OWN_HEADERS: Final = frozenset(
    {"connection", "proxy-connection", "proxy-authorization", "keep-alive", "te", "upgrade", "host"}
)


@dataclass(frozen=True)
class Request:
    """What a proxy is asked for: `onward` is what the target is told first, None for a tunnel."""

    target: Authority
    onward: bytes | None


def parse_request(head: bytes) -> Request:
    """Read the head of a request to a proxy. Raises Problem `invalid-request`."""
    lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    if not (start := _REQUEST_LINE.fullmatch(lines[0])):
        raise Problem("invalid-request", "This is a proxy for HTTP/1.1, and that was not a request.")
    method, address = start.groups()
    try:
        if method == "CONNECT":
            return Request(Authority.parse(address), None)
        parts = urlsplit(address)
        if parts.scheme.lower() != "http" or not parts.netloc:
            raise ValueError(f"{address[:200]!r} is not an http:// address")
        has_port = re.search(r":\d+$", parts.netloc) is not None
        target = Authority.parse(parts.netloc if has_port else f"{parts.netloc}:80")
    except ValueError as error:
        raise Problem(
            "invalid-request",
            f"This is a proxy: send CONNECT host:port, or a whole http:// address; {error}.",
        ) from error
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    onward = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", *_onward_headers(lines[1:])]
    # One request a connection: what follows on it would go to the same host, whatever it asked for
    return Request(target, "\r\n".join([*onward, "Connection: close", "", ""]).encode("latin-1"))


def _onward_headers(lines: list[str]) -> list[str]:
    headers: list[tuple[str, str]] = []
    for line in lines:
        if not (match := _HEADER.fullmatch(line)):
            raise Problem("invalid-request", f"{line[:80]!r} is not a header.")
        headers.append((match[1], match[2]))
    named = {
        token.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for token in value.split(",")
    }
    return [f"{name}: {value}" for name, value in headers if name.lower() not in _OWN_HEADERS | named]


class EgressProxy:
    """Serves one function's listener, which it closes at the end."""

    def __init__(
        self, rules: Rules, dialer: Dialer, metrics: Metrics, *, connections: int, idle: float = _IDLE
    ) -> None:
        self._rules = rules
        self._dialer = dialer
        self._metrics = metrics
        self._limit = connections
        self._idle = idle
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Accept connections."""
        # In two steps, so that a cancellation in between leaves a server that `close` knows
        self._server = await asyncio.start_server(
            self._accept, sock=listener, limit=_LONGEST_HEAD, start_serving=False
        )
        await self._server.start_serving()

    async def close(self, grace: float) -> None:
        """Stop accepting, give open connections `grace` seconds, then break them off."""
        if self._server is not None:
            self._server.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine, so that the task is ours to hold and to end
        if len(self._tasks) >= 2 * self._limit:  # as many again may wait to be refused in words
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="egress connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outcome = "broken"
        try:
            outcome = await self._answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # either side went away, or kept silent for too long; `outcome` counts it
        except Exception:  # noqa: BLE001  the boundary: nobody awaits this task
            _log.exception("An egress connection failed")
        finally:
            self._metrics.egress.labels(outcome).inc()
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Serve one connection and return how it ended. Raises OSError, IncompleteReadError."""
        try:
            request = parse_request(await self._head(reader))
            outside = await self._dialer.open(request.target, self._rules)
        except Problem as problem:
            writer.write(raw_problem(problem))
            await writer.drain()
            return problem.kind
        try:
            if request.onward is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                outside[1].write(request.onward)
            await join((reader, writer), outside, self._idle)
        finally:
            outside[1].close()
        return "served"

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(_HEAD_WAIT):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError as error:
            raise Problem("invalid-request", f"The head is larger than {_LONGEST_HEAD} bytes.") from error
        if len(self._tasks) > self._limit:
            # Only now: closing while bytes are unread resets the connection, and hides the answer
            raise Problem(
                "overloaded",
                f"All {self._limit} connections to the outside are in use. Close some first.",
                retry_after=1,
            )
        return head


async def join(left: Streams, right: Streams, idle: float) -> None:
    """Pass bytes both ways until both sides have ended, or none came for `idle` seconds.

    Raises OSError (TimeoutError is one).
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(idle) as deadline:

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
                if not deadline.expired():
                    deadline.reschedule(loop.time() + idle)
            if writer.can_write_eof():
                writer.write_eof()

        pumps = [
            asyncio.ensure_future(pump(left[0], right[1])),
            asyncio.ensure_future(pump(right[0], left[1])),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
