"""Loads and calls handlers of our own, so that the first real one finds all paths and pages warm."""

from __future__ import annotations

import asyncio
import os
import py_compile
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import blocking, evented, loading
from .application import Application
from .messages import AsyncRequest, Request

_MODULE = "pilotlight_rehearsal"
_SOURCE = """
def handle(request):
    return {"json": request.json(), "host": request.headers.get("host")}
"""
_REQUEST = (
    b"POST /a?b=c HTTP/1.1\r\nHost: localhost\r\nUser-Agent: rehearsal\r\nAccept: */*\r\n"
    b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    b'{"a": 12}'
)
_compiled = b""


def prepare() -> None:
    """Compile the module that `import_like` imports, and import it once."""
    global _compiled  # noqa: PLW0603  made once, before any fork
    with tempfile.TemporaryDirectory() as folder:
        source, compiled = Path(folder, "source.py"), Path(folder, "compiled.pyc")
        source.write_text(_SOURCE)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(compiled), doraise=True, invalidation_mode=mode)
        _compiled = compiled.read_bytes()
        answer_blocking(import_like(folder))


def import_like(scratch: str) -> Application:
    """Load a handler from the folder as a function's is loaded, and leave nothing there."""
    source = f"{scratch}/{_MODULE}.py"
    cache = f"{scratch}/__pycache__"
    compiled = f"{cache}/{_MODULE}.{sys.implementation.cache_tag}.pyc"
    # By the plainest calls, since a fork pays for each page that their code lies on
    os.mkdir(cache)  # noqa: PTH102
    _write(source, _SOURCE.encode())
    _write(compiled, _compiled)
    sys.path.insert(0, scratch)
    try:
        handler = _MODULE + ":handle"
        return Application(handler, loading.find(handler))
    finally:
        sys.path.remove(scratch)
        sys.path_importer_cache.pop(scratch, None)
        sys.modules.pop(_MODULE, None)
        os.unlink(source)  # noqa: PTH108
        os.unlink(compiled)  # noqa: PTH108
        os.rmdir(cache)  # noqa: PTH106


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(descriptor, data)  # a new file on a file system in memory takes it all at once
    os.close(descriptor)


def answer_blocking(application: Application) -> None:
    """Answer a request by a synchronous handler."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(_REQUEST)
        blocking.Server(None, application.call(1), 1).advance(blocking.Connection(ours))
        theirs.recv(65536)


def answer_evented() -> None:
    """Answer a request by an asynchronous handler, and one by an ASGI application."""
    for target in (_handle, _application):
        made = Application(_MODULE + ":handle", target)
        made.start()
        assert made.loop is not None  # noqa: S101  both are asynchronous
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            made.loop.run_until_complete(_converse(made.server(made.loop, 1), ours, theirs))
        if made.lifespan is not None:
            made.lifespan.cancel()
        made.loop.close()
        asyncio.set_event_loop(None)


async def _converse(server: evented.Server, ours: socket.socket, theirs: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(server.connect, ours)
    await loop.sock_sendall(theirs, _REQUEST)
    await loop.sock_recv(theirs, 65536)
    transport.close()
    await asyncio.sleep(0)  # the transport closes its descriptor in the loop's next round


async def _handle(request: AsyncRequest) -> Any:
    assert isinstance(request, Request)  # noqa: S101
    return {"json": request.json(), "host": request.headers.get("host")}


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        await receive()
    else:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"hello"})
