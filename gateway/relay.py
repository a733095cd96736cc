"""Passes requests on to a neighbour that speaks HTTP on a Unix socket: the builder, and the data API."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import msgspec
from aiohttp.web import BaseRequest, RequestPayloadError, StreamResponse

from function_service.contract import Actor
from gateway import headers, identity
from gateway.call import forwarding
from gateway.exchange import SENT, SENT_LAST, Upload, break_off, pass_answer
from gateway.forward import BrokenOff, Connection, Malformed, TooLarge, connect
from pilotlight import sockets
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from gateway.connections import CallerConnection

_LONGEST = 3600.0  # seconds for a request; the answer to a push streams while its build runs
_PATIENCE = 5.0  # seconds that a request waits for a neighbour which is not there: it may be restarting
_PAUSE = 0.02  # seconds between two attempts to reach it
_OWN = frozenset({b"authorization", b"pilotlight-by"})  # keys go no further than this
_APP = frozenset({b"pilotlight-app"})


class _Passing:
    """A request on its way. It can be sent again while `over` ends with a BrokenOff that was not taken."""

    def __init__(self, request: BaseRequest, head: bytes) -> None:
        self._request = request
        self._head = head
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
            await pass_answer(request, connection, head)
        finally:
            await upload.end()
            connection.close()
        return SENT if head.keep_alive else SENT_LAST


class Relay:
    """A neighbour. Its answers, problems included, pass as they are."""

    def __init__(self, service: str, socket: Path, max_body: int) -> None:
        self._service = service
        self._socket = socket
        self._max_body = max_body

    async def pass_on(
        self, request: BaseRequest, target: str, *, by: Actor | None = None, app: str | None = None
    ) -> StreamResponse:
        """Pass a request on and its answer back, both as they come. Raises Problem.

        The neighbour is told `by`, who asks, and `app`, the only one that the request may be about.
        """
        headers.refuse_what_cannot_pass(request.headers, request.method)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        passing = _Passing(request, self._head(request, target, by, app))
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
        without = _OWN
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
                return await connect(sockets.address(self._socket))
            except BrokenOff as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Problem(
                        "unavailable",
                        f"The {self._service} does not answer. It may be restarting; try again in a moment.",
                        retry_after=1,
                    ) from error
            await asyncio.sleep(_PAUSE)

    async def ask(self, method: str, target: str) -> tuple[int, bytes]:
        """Make a request of our own; return status and body. Raises Problem `unavailable`."""
        connection = await self._connect(asyncio.get_running_loop().time() + _PATIENCE)
        try:
            async with asyncio.timeout(5.0):
                connection.begin(method)
                message = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                connection.send(message.encode(), whole=True)
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
