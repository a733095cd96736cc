"""Gives layers and images to other machines, by HTTP on a socket to which the gateway passes on."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from aiohttp import web

from function_service import image_exchange
from function_service.layers.exchange import PATH, Exchange
from pilotlight import sockets
from pilotlight.problems import Problem


@contextlib.asynccontextmanager
async def serving(exchange: Exchange, path: Path) -> AsyncIterator[None]:
    """Serve layers and images by their digests on the socket at path."""

    async def layer(request: web.Request) -> web.StreamResponse:
        return await answer(request, exchange.read(request.match_info["digest"]))

    async def image(request: web.Request) -> web.StreamResponse:
        if exchange.images is None:
            raise web.HTTPNotFound
        return await answer(request, exchange.images.read(request.match_info["digest"]))

    async def answer(request: web.Request, archive: AsyncGenerator[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
        async with contextlib.aclosing(archive) as pieces:
            try:
                async for piece in pieces:
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(piece)
            except Problem as problem:
                if response.prepared:
                    raise  # the connection breaks off, and whoever reads it tries elsewhere
                return web.json_response(problem.document(), status=problem.status)
        await response.write_eof()
        return response

    application = web.Application()
    application.add_routes(
        [web.get(f"{PATH}{{digest}}", layer), web.get(f"{image_exchange.PATH}{{digest}}", image)]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, sockets.listen(path)).start()
        yield
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)
