"""Passes requests on to a neighbour that speaks HTTP: the builder, the data API, and other machines."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast
from urllib.parse import quote, unquote

import msgspec
from aiohttp.web import BaseRequest, RequestPayloadError, StreamResponse

from function_service.contract import Actor
from gateway import headers, identity, routing
from gateway.call import forwarding
from gateway.exchange import SENT, SENT_LAST, Upload, break_off, pass_answer
from gateway.forward import BrokenOff, Connection, Malformed, TooLarge, connect
from gateway.machines import Machines
from pilotlight import sockets
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from gateway.connections import CallerConnection

_LONGEST = 3600.0  # seconds for a request; the answer to a push streams while its build runs
_PATIENCE = 5.0  # seconds that a request waits for a neighbour which is not there: it may be restarting
_PAUSE = 0.02  # seconds between two attempts to reach it
_OWN = frozenset({b"authorization", b"pilotlight-by"})  # keys go no further than this
_APP = frozenset({b"pilotlight-app"})
_FEED = (b"content-type", b"text/event-stream")


class Feeds:
    """The answers on their way that last as long as their readers like."""

    def __init__(self) -> None:
        self._sources: set[Connection] = set()

    def end(self) -> None:
        """End them all: their readers come again, and know what they have read."""
        for source in self._sources:
            source.cut_short()

    @contextmanager
    def among(self, source: Connection) -> Iterator[None]:
        """Count what comes over a connection among them, if it is such an answer."""
        if any((name.lower(), value) == _FEED for name, value in source.headers):
            self._sources.add(source)
        try:
            yield
        finally:
            self._sources.discard(source)


class _Passing:
    """A request on its way. It can be sent again while `over` ends with a BrokenOff that was not taken."""

    def __init__(self, request: BaseRequest, head: bytes, feeds: Feeds) -> None:
        self._request = request
        self._head = head
        self._feeds = feeds
        self.head_sent = False  # whether the caller has the beginning of an answer

    async def over(self, connection: Connection, upload: Upload) -> StreamResponse:
        """Pass it over a connection, which is closed then. Raises what `Connection` and `Upload` raise."""
        request = self._request
        try:
            await upload.send(connection, self._head)
            await connection.head()
            head = headers.answer_head(
                connection.status,
                connection.reason,
                connection.headers,
                bodiless=connection.bodiless,
                http11=request.version >= (1, 1),
                keep_alive=request.keep_alive,
            )
            self.head_sent = True
            with self._feeds.among(connection):
                await pass_answer(request, connection, head)
        finally:
            await upload.end()
            connection.close()
        return SENT if head.keep_alive else SENT_LAST


class Relay:
    """A neighbour. Its answers, problems included, pass as they are."""

    def __init__(
        self,
        service: str,
        reach: Callable[[], Awaitable[Connection]],
        max_body: int,
        *,
        without: frozenset[bytes] = _OWN,
        feeds: Feeds | None = None,
    ) -> None:
        """`reach` connects to it, `without` are the headers that it is not told."""
        self.feeds = feeds or Feeds()
        self._service = service
        self._reach = reach
        self._max_body = max_body
        self._without = without

    @classmethod
    def to(cls, service: str, socket: Path, max_body: int) -> Self:
        """Return the relay to a service on this machine."""
        return cls(service, lambda: connect(sockets.address(socket)), max_body)

    async def pass_on(
        self,
        request: BaseRequest,
        target: str,
        *,
        by: Actor | None = None,
        app: str | None = None,
        patience: float | None = None,
    ) -> StreamResponse:
        """Pass a request on and its answer back, both as they come. Raises Problem.

        The neighbour is told `by`, who asks, and `app`, the only one that the request may be about. For
        `patience` seconds it may be away.
        """
        headers.refuse_what_cannot_pass(request.headers, request.method)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (_PATIENCE if patience is None else patience)
        passing = _Passing(request, self._head(request, target, by, app), self.feeds)
        try:
            upload = Upload(request, self._max_body)
            async with asyncio.timeout(_LONGEST):
                while True:
                    try:
                        return await passing.over(await self._connect(deadline), upload)
                    except BrokenOff as broken:
                        if broken.taken or upload.streaming or loop.time() >= deadline:
                            raise
        except TooLarge:
            raise Problem(
                "too-large",
                f"The body is larger than {self._max_body} bytes. Send less, or raise --max-body.",
            ) from None
        except RequestPayloadError as error:
            raise Problem(
                "invalid-request", f"The request's body can't be read to its end: {error}."
            ) from error
        except (BrokenOff, Malformed, TimeoutError) as error:
            if passing.head_sent:
                return break_off(request)
            raise Problem(
                "unavailable",
                f"The {self._service} broke the request off ({error or 'no answer in time'}). What it asked "
                "for may have been done, or not: look before you try again.",
                retry_after=1,
            ) from error

    def _head(self, request: BaseRequest, target: str, by: Actor | None, app: str | None) -> bytes:
        request_id, traceparent, _ = identity.identify(
            request.get(identity.REQUEST_ID), request.headers.get("traceparent")
        )
        origin = cast("CallerConnection", request.protocol).origin
        added = forwarding(request.headers, origin) + identity.lines(request_id, traceparent)
        without = self._without
        if by is not None:
            added += f"Pilotlight-By: {quote(msgspec.json.encode(by))}\r\n".encode()
        if app is not None:
            added += f"Pilotlight-App: {app}\r\n".encode()
            without |= _APP
        return headers.request_head(
            request.method, target, request.raw_headers, request.headers, added, without=without
        )

    async def _connect(self, deadline: float = 0.0) -> Connection:
        """Connect, and try again until a moment of the loop's clock. Raises Problem `unavailable`."""
        while True:
            try:
                return await self._reach()
            except BrokenOff as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Problem(
                        "unavailable",
                        f"The {self._service} does not answer. It may be restarting; try again in a moment.",
                        retry_after=1,
                    ) from error
            await asyncio.sleep(_PAUSE)

    async def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Make a request of our own; return status and body. Raises Problem `unavailable`."""
        connection = await self._connect(asyncio.get_running_loop().time() + _PATIENCE)
        try:
            async with asyncio.timeout(5.0):
                connection.begin(method)
                fields = {"Host": "localhost", "Connection": "close", **(headers or {})}
                lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
                message = f"{method} {target} HTTP/1.1\r\n{lines}\r\n"
                connection.send(message.encode(errors="surrogateescape"), whole=True)
                await connection.head()
                body = b""
                while (piece := await connection.read()) is not None:
                    body += piece
                return connection.status, body
        except (BrokenOff, Malformed, TimeoutError) as error:
            raise Problem(
                "unavailable",
                f"The {self._service} did not answer ({error or 'in time'}). Try again in a moment.",
                retry_after=1,
            ) from error
        finally:
            connection.close()

    async def answers(self) -> bool:
        """Tell whether the neighbour accepts connections."""
        try:
            connection = await self._connect()
        except Problem:
            return False
        connection.close()
        return True


class Builder:
    """The builder, on this machine or on another one, whose gateway passes on what it is asked."""

    PATH = "/machines/builder"
    """Under this, a gateway passes on what other machines ask its builder."""
    PATIENCE = 20.0
    """Seconds that a push waits for a builder which is not there: git does not try again by itself."""

    def __init__(self, here: Relay, machines: Machines, max_body: int) -> None:
        self._here = here
        self._machines = machines
        self._max_body = max_body

    def _chosen(self) -> tuple[Relay, str]:
        address = self._machines.builder
        if not address:
            return self._here, ""
        return Relay("builder", lambda: self._machines.connect(address), self._max_body), self.PATH

    async def pass_on(self, request: BaseRequest, target: str, *, by: Actor) -> StreamResponse:
        """Pass a request on, as `Relay.pass_on` does. Raises Problem."""
        relay, prefix = self._chosen()
        return await relay.pass_on(request, prefix + target, by=by, patience=self.PATIENCE)

    async def pass_here(self, request: BaseRequest, target: str) -> StreamResponse:
        """Pass on what another machine asks the builder, in the name of whom it says. Raises Problem."""
        by = msgspec.json.decode(unquote(request.headers.get("Pilotlight-By", "{}")), type=Actor)
        here = target.removeprefix(self.PATH)
        return await self._here.pass_on(request, here, by=by, patience=self.PATIENCE)

    async def ask(self, method: str, target: str) -> tuple[int, bytes]:
        """Make a request of our own, as `Relay.ask` does. Raises Problem."""
        relay, prefix = self._chosen()
        return await relay.ask(method, prefix + target)

    async def answers(self) -> bool:
        """Tell whether it accepts connections, as far as that can be seen from here."""
        return await self._chosen()[0].answers()


class Elsewhere:
    """The same request, made of all other machines: what each of them knows of its own."""

    def __init__(self, machines: Machines, max_body: int) -> None:
        self._machines = machines
        self._max_body = max_body

    async def ask(self, request: BaseRequest) -> list[bytes]:
        """Return the answers with status 200; machines that don't give such a one are left out."""
        if cast("CallerConnection", request.protocol).origin.machine:
            return []
        answers = await asyncio.gather(
            *(self._ask(address, request) for address in self._machines.others), return_exceptions=True
        )
        return [answer for answer in answers if isinstance(answer, bytes)]

    async def _ask(self, address: str, request: BaseRequest) -> bytes:
        relay = Relay(address, lambda: self._machines.connect(address), self._max_body)
        key = request.headers.get("Authorization", "")
        status, body = await relay.ask(
            request.method, routing.origin_form(request.raw_path), {"Authorization": key}
        )
        if status != 200:
            raise Problem("unavailable", f"{address} answers {status}.")
        return body
