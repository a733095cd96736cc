"""ASGI 3 applications on the evented server, with their lifespan."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

from . import failures
from .evented import Exchange, Serve
from .wire import Disconnected, valid_fields

_VERSION = {"version": "3.0", "spec_version": "2.3"}


class Lifespan:
    """Runs an application's startup before its first request. `state` is what it leaves for requests."""

    def __init__(self, application: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._application = application
        self._loop = loop
        self._started: asyncio.Future[str | None] = loop.create_future()
        self._asked = False
        self._task: asyncio.Task[None] | None = None
        self.state: dict[str, Any] = {}

    def start(self) -> str | None:
        """Run the startup. Return why it failed, None if it did not or there is none."""
        self._task = self._loop.create_task(self._run())
        return self._loop.run_until_complete(self._started)

    def cancel(self) -> None:
        """End the application's part of it, without a shutdown."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._loop.run_until_complete(asyncio.wait([self._task]))

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": _VERSION, "state": self.state}
        try:
            await self._application(scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001
            # The specification's way of saying that there is no lifespan; after the startup it is a fault.
            if self._started.done():
                failures.report(error)
        finally:
            if not self._started.done():
                self._started.set_result(None)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._loop.create_future()  # instances are ended from outside; there is no shutdown to tell of
        raise AssertionError

    async def _send(self, message: dict[str, Any]) -> None:
        if not self._started.done():
            failed = message["type"] == "lifespan.startup.failed"
            self._started.set_result(
                (message.get("message") or "the application's startup failed") if failed else None
            )


class _Call:
    """`receive` and `send` of one request."""

    __slots__ = ("_body_read", "_exchange", "_fields", "_over", "_status")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._body_read = False
        self._over: asyncio.Event | None = None
        self._status = 0
        self._fields: list[tuple[str, str]] = []

    async def receive(self) -> dict[str, Any]:
        exchange = self._exchange
        if not self._body_read:
            try:
                piece = await exchange.read()
            except Disconnected:
                return {"type": "http.disconnect"}
            self._body_read = not piece or exchange.drained
            return {"type": "http.request", "body": piece, "more_body": not self._body_read}
        await exchange.wait_over()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        exchange = self._exchange
        writer = exchange.writer
        kind = message["type"]
        if kind == "http.response.start":
            if self._status:
                raise RuntimeError("The application sent http.response.start twice")
            self._status = message["status"]
            self._fields = [
                (bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
                for name, value in message.get("headers", ())
            ]
            valid_fields(self._fields)
        elif kind == "http.response.body":
            if not self._status or writer.ended:
                raise RuntimeError("The application sent http.response.body out of turn")
            body = bytes(message.get("body", b""))
            more = message.get("more_body", False)
            data = b""
            if not writer.started:
                if exchange.unasked:
                    writer.keep_alive = False
                whole = not more and (body or exchange.head.method != "HEAD")
                data = writer.start(self._status, self._fields, len(body) if whole else None)
            data += writer.data(body)
            if not more:
                data += writer.end()
            try:
                await exchange.send(data)
            except Disconnected:
                return  # as the specification has it; the application learns it from `receive`
            if not more:
                exchange.over()
        else:
            raise RuntimeError(f"The application sent {kind!r}, which has no meaning here")


def adapt(application: Any, prefix: str, state: dict[str, Any]) -> Serve:
    """Return what serves an exchange. `prefix` is the path at which the world sees the application."""
    raw_prefix = prefix.encode()

    async def serve(exchange: Exchange) -> None:
        call = _Call(exchange)
        await application(_scope(exchange, prefix, raw_prefix, state), call.receive, call.send)
        if not exchange.writer.ended and exchange.gone is None:
            raise RuntimeError("The ASGI application returned without having sent a whole response")

    return serve


def _scope(exchange: Exchange, prefix: str, raw_prefix: bytes, state: dict[str, Any]) -> dict[str, Any]:
    head = exchange.head
    host, scheme = "", "http"
    headers = []
    for name, value in head.fields:
        lowered = name.lower()
        headers.append((lowered.encode("latin-1"), value.encode("latin-1")))
        if lowered == "host":
            host = value
        elif lowered == "x-forwarded-proto":
            scheme = value
    name, _, port = host.rpartition(":")
    default = 443 if scheme == "https" else 80
    return {
        "type": "http",
        "asgi": _VERSION,
        "http_version": "1.1" if head.modern else "1.0",
        "server": (name, int(port)) if port.isdigit() else (host or "localhost", default),
        "client": None,
        "scheme": scheme,
        "method": head.method,
        "root_path": prefix,
        "path": prefix + unquote(head.path),
        "raw_path": raw_prefix + head.path.encode("latin-1"),
        "query_string": head.query.encode("latin-1"),
        "headers": headers,
        "state": dict(state),
    }
