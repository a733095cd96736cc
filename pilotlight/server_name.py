"""What our HTTP servers call themselves, in place of aiohttp's name and version and Python's."""

from typing import Final

from aiohttp import web

SERVER: Final = "Pilotlight"


def sign(response: web.StreamResponse) -> web.StreamResponse:
    """Name us on an answer that is not sent yet, unless another server is named; return it."""
    if not response.prepared:
        response.headers.setdefault("Server", SERVER)
    return response


async def sign_before_sending(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Name us on all answers of an Application: for its signal `on_response_prepare`."""
    response.headers["Server"] = SERVER  # aiohttp has set its own before it sends the signal
