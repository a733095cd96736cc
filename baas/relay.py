"""Calls from functions to functions: /function/NAME on a function's listener goes on to the gateway.

The gateway believes the header Pilotlight-Caller on its private socket, because only we write it there.
"""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from baas.request import send_continue
from pilotlight import sockets
from pilotlight.problems import Problem
from pilotlight.server_name import sign

PREFIX: Final = "/function/"
CALLER: Final = "Pilotlight-Caller"
_CONNECT: Final = 5.0  # seconds

# RFC 9110, 7.6.1; Expect is answered here
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",
    }
)


class Relay:
    """Passes calls on to the gateway's private socket. To be entered as an async context."""

    def __init__(self, gateway: Path) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(sockets.address(gateway), limit=0),  # faces bound it
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),  # the gateway has the time-outs
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
            read_bufsize=1 << 16,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def call(self, http: web.BaseRequest, function: str) -> web.StreamResponse:
        """Pass one call of `function` on and its answer back, as streams. Raises Problem `unavailable`."""
        headers = _end_to_end(http.headers)
        headers.popall(CALLER, None)
        headers[CALLER] = function
        await send_continue(http)
        try:
            answer = await self._session.request(
                http.method,
                URL(f"http://gateway{http.raw_path}", encoded=True),
                headers=headers,
                data=http.content if http.can_read_body else None,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Problem(
                "unavailable",
                f"The gateway does not answer ({type(error).__name__}). It may be restarting; try again.",
                retry_after=1,
            ) from error
        async with answer:
            return await _stream_back(http, answer)


async def _stream_back(http: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
    )
    await sign(response).prepare(http)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except aiohttp.ClientError:
        # The head is out: only an end without the last chunk tells that something is missing
        if http.transport is not None:
            http.transport.abort()
        return response
    await response.write_eof()
    return response


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the headers that are meant for the other end."""
    dropped = _HOP_BY_HOP | set(_tokens(headers.getall("Connection", [])))
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


def _tokens(lines: Iterable[str]) -> Iterable[str]:
    return (token.strip().lower() for line in lines for token in line.split(","))
