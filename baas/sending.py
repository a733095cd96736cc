"""What is sent piece by piece: whoever takes nothing for a while is cut off."""

import asyncio
from typing import Final

from aiohttp import web

from pilotlight.server_name import sign

_LARGE: Final = 256 << 10  # bytes; the kernel takes what is smaller
_PIECE: Final = 64 << 10  # bytes
_STALLED: Final = 30.0  # seconds that a reader may take nothing


def is_large(response: web.Response) -> bool:
    """Tell whether an answer is to be sent so."""
    return (response.content_length or 0) > _LARGE


async def answer(http: web.BaseRequest, response: web.Response) -> web.StreamResponse:
    """Send an answer with a large body, and return what was sent."""
    assert isinstance(response.body, bytes)  # noqa: S101  all of ours are
    sent = web.StreamResponse(status=response.status, headers=response.headers)
    sent.content_length = len(response.body)
    await sign(sent).prepare(http)
    body = memoryview(response.body)
    try:
        for start in range(0, len(body), _PIECE):
            await piece(sent, body[start : start + _PIECE])
        await sent.write_eof()
    except TimeoutError:
        cut_off(http)
    return sent


async def piece(response: web.StreamResponse, data: bytes | memoryview) -> None:
    """Send a piece of what has begun. Raises TimeoutError for a reader that takes nothing."""
    async with asyncio.timeout(_STALLED):
        await response.write(data)


def cut_off(http: web.BaseRequest) -> None:
    """End the connection at once: that something is missing can't be told otherwise."""
    if http.transport is not None:
        http.transport.abort()
