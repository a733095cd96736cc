"""Gives layers to other machines, by HTTP on a socket to which the gateway passes what they ask for."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from function_service.layers.exchange import PATH, Exchange
from pilotlight import sockets
from pilotlight.problems import Problem


@contextlib.asynccontextmanager
async def serving(exchange: Exchange, path: Path) -> AsyncIterator[None]:
    """Serve `PATH` DIGEST on the socket at path."""

    async def layer(request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        response = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
        async with contextlib.aclosing(exchange.read(digest)) as pieces:
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
    application.add_routes([web.get(f"{PATH}{{digest}}", layer)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, sockets.listen(path)).start()
        yield
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)
