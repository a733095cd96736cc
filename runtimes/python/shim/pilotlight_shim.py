"""The Python shim: serves a function's handler over HTTP/1.1, as `contract.md` has it.

An engine that forks imports this module once, calls `preload()`, and then in each child `load(handler)` and
`serve(listener, application, concurrency)`. Alone (`python3 -I -S pilotlight_shim.py`) it is the booted
shim of the contract, on descriptors 3 and 4. It runs under every CPython from 3.9 on, and needs nothing
but the standard library. What it does after a fork is what every cold start waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import random
import socket
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  -I leaves it out

from pilotlight_parts import asgi, blocking, evented, loading, messages, wire, wsgi
from pilotlight_parts.loading import LoadError

del sys.path[0]
sys.modules.setdefault("pilotlight", messages)  # so that functions can `from pilotlight import Response`

__all__ = ["Application", "LoadError", "load", "main", "preload", "serve"]

# What functions commonly import. All of it is there already when a function's first line runs.
_PRELOADED = """
    argparse array ast base64 binascii bisect calendar collections collections.abc concurrent.futures
    contextlib contextvars copy csv dataclasses datetime decimal difflib email email.message email.parser
    email.utils enum fnmatch fractions functools gc glob gzip hashlib heapq hmac html html.parser http
    http.client http.cookies importlib.metadata importlib.resources importlib.util inspect io ipaddress
    itertools json keyword linecache locale logging logging.config logging.handlers math mimetypes numbers
    operator os pathlib pickle pkgutil platform posixpath pprint queue random re secrets select shlex shutil
    signal socket sqlite3 ssl stat statistics string struct subprocess tempfile textwrap threading time
    tokenize traceback types typing unicodedata urllib urllib.error urllib.parse urllib.request uuid
    warnings weakref xml.etree.ElementTree zipfile zlib zoneinfo
"""


class Application:
    """A loaded handler, ready to be served."""

    __slots__ = ("kind", "lifespan", "loop", "name", "target")

    def __init__(self, name: str, target: Any, kind: str) -> None:
        self.name = name
        self.target = target
        self.kind = kind
        self.loop: asyncio.AbstractEventLoop | None = None
        self.lifespan: asgi.Lifespan | None = None

    def __repr__(self) -> str:
        return f"<Application {self.name} ({self.kind})>"


def preload() -> None:
    """Import what functions commonly need, and answer a request of each kind, so that all of it is warm.

    Leaves no thread, descriptor or event loop behind.
    """
    for name in _PRELOADED.split():
        with contextlib.suppress(ImportError):  # some distributions leave parts of the standard library out
            importlib.import_module(name)
    _rehearse_blocking()
    _rehearse_evented()


def load(handler: str) -> Application:
    """Import the handler ("module:attribute") and make it ready. Raises LoadError."""
    random.seed()  # an engine's own way of forking may not run the hooks that do this
    loading.flush_lines()
    target = loading.find(handler)
    application = Application(handler, target, loading.kind_of(target, handler))
    if application.kind in (loading.ASGI, loading.ASYNC):
        application.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(application.loop)
    if application.kind == loading.ASGI:
        assert application.loop is not None  # noqa: S101
        application.lifespan = asgi.Lifespan(target, application.loop)
        failure = application.lifespan.start()
        if failure is not None:
            raise LoadError(f"The application refused to start: {failure}")
    loading.flush_lines()  # the function may have replaced sys.stdout
    return application


def serve(listener: socket.socket, application: Application, concurrency: int) -> None:
    """Answer requests for ever, at most `concurrency` at a time. SystemExit in a handler ends the process."""
    try:
        if application.loop is None:
            call = _blocking_call(application, concurrency)
            blocking.Server(listener, call, concurrency).run()
        else:
            _evented_server(application, application.loop, concurrency).run(listener)
    except SystemExit as error:
        blocking.end_process(error)


def _blocking_call(application: Application, concurrency: int) -> blocking.Call:
    if application.kind == loading.WSGI:
        return wsgi.adapt(application.target, loading.prefix(), threads=concurrency > 1)
    handle, answer, request = application.target, messages.answer, messages.Request

    def call(head: wire.Head, body: blocking.Body | None) -> messages.Answer:
        return answer(handle(request(head, body)))

    return call


def _evented_server(
    application: Application, loop: asyncio.AbstractEventLoop, concurrency: int
) -> evented.Server:
    """Return the server for an asynchronous application."""
    if application.kind == loading.ASYNC:
        return evented.Server(loop, evented.adapt(application.target), concurrency)
    state = application.lifespan.state if application.lifespan is not None else {}
    # An application is told by http.disconnect first, and cancelled only if it goes on regardless.
    return evented.Server(
        loop, asgi.adapt(application.target, loading.prefix(), state), concurrency, grace=1.0
    )


_REHEARSAL = (
    b"POST /a?b=c HTTP/1.1\r\nHost: localhost\r\nUser-Agent: rehearsal\r\nAccept: */*\r\n"
    b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    b'{"a": 12}'
)


def _rehearse_blocking() -> None:
    def handle(request: messages.Request) -> Any:
        return {"json": request.json(), "query": request.query.get("b"), "host": request.headers.get("host")}

    application = Application("rehearsal:handle", handle, loading.kind_of(handle, "rehearsal:handle"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(_REHEARSAL)
        blocking.Server(None, _blocking_call(application, 1), 1).advance(blocking.Connection(ours))
        theirs.recv(65536)


def _rehearse_evented() -> None:
    async def handle(request: messages.AsyncRequest) -> Any:
        return {"json": request.json(), "query": request.query.get("b"), "host": request.headers.get("host")}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
            await send({"type": "http.response.body", "body": b"hello"})

    for target in (handle, application):
        loop = asyncio.new_event_loop()
        made = Application("rehearsal:handle", target, loading.kind_of(target, "rehearsal:handle"))
        if made.kind == loading.ASGI:
            made.lifespan = asgi.Lifespan(target, loop)
            made.lifespan.start()
        server = _evented_server(made, loop, 1)
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            try:
                loop.run_until_complete(_converse(loop, server, ours, theirs))
            finally:
                loop.close()


async def _converse(
    loop: asyncio.AbstractEventLoop, server: evented.Server, ours: socket.socket, theirs: socket.socket
) -> None:
    transport, _ = await loop.connect_accepted_socket(server.connect, ours)
    await loop.sock_sendall(theirs, _REHEARSAL)
    await loop.sock_recv(theirs, 65536)
    transport.close()
    await asyncio.sleep(0)  # the transport closes its descriptor in the loop's next round


def _receive(control: socket.socket) -> Any:
    """Return the next message: one line of JSON. None where the other side closed."""
    received = b""
    while not received.endswith(b"\n"):
        data = control.recv(65536)
        if not data:
            return None
        received += data
    return json.loads(received)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def main() -> int:
    """Boot as the contract's first part says, and serve. Return an exit code if nothing can be served."""
    listener = socket.socket(fileno=3)
    control = socket.socket(fileno=4)
    preload()
    _send(control, {"booted": True})
    message = _receive(control)
    if message is None:
        return 0
    os.environ.clear()
    os.environ.update(message["env"])
    sys.path[:0] = [os.getcwd(), "/dependencies"]  # noqa: PTH109
    try:
        application = load(message["handler"])
    except LoadError as error:
        print(error, file=sys.stderr)
        _send(control, {"error": str(error)})
        return 1
    _send(control, {"ready": True})
    control.close()
    serve(listener, application, message["concurrency"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
