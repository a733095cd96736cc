"""Shells over a WebSocket: from the caller to the sandbox and back, until one of them ends.

What is said on it stands in operations.py. The gateway looks into no frame; it knows only where one ends.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec
from aiohttp import WSMsgType, web

from function_service import shell_frames as frames
from function_service.contract import Control, Exit, Key, Opened, Terminal
from gateway.admission import Caller
from gateway.routing import Routes
from pilotlight import sockets
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

_WANTED_WITHIN: Final = 10.0  # seconds for the first message
_END_WITHIN: Final = 15.0  # seconds that the end of a shell takes to be told
_LOOK: Final = 1.0  # seconds between two looks whether the key is still good
_KILLED: Final = 137
_KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    command: tuple[str, ...] = ()
    terminal: Terminal | None = None


class Shells:
    """Answers whoever opens one."""

    def __init__(self, control: Control, routes: Routes) -> None:
        self._control = control
        self._routes = routes
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all, and say why."""
        self._closing.set()

    async def answer(self, request: web.Request, function: str, caller: Caller) -> web.StreamResponse:
        """Serve one from its upgrade to its end. Raises Problem where there is nothing to upgrade."""
        _refuse_other_pages(request)
        self._routes.find(function)
        upgraded = web.WebSocketResponse(max_msg_size=frames.LONGEST + 1, compress=False)
        if not upgraded.can_prepare(request):
            raise Problem(
                "invalid-request",
                "This is a WebSocket: ask for an upgrade, or use `pilotlight shell`. "
                "/api/v1/openapi.json tells what is said on it.",
            )
        await upgraded.prepare(request)
        _notice_lost_callers(request)
        try:
            ended = await self._serve(upgraded, function, caller)
            last: dict[str, Any] | None = None
            if ended is not None:
                last = {"exit": {"code": ended.code, "reason": ended.reason}}
        except Problem as problem:
            _log.info("action=refused path=%s problem=%s", request.path[:200], problem.kind)
            last = {"problem": problem.document()}
        except OSError as error:
            _log.warning("action=shell-broke-off function=%s error=%r", function, error)
            broken = Problem("unavailable", f"The shell broke off ({error}). Open it again.")
            last = {"problem": broken.document()}
        if last is not None:
            with contextlib.suppress(ConnectionError):  # the caller has just gone
                await upgraded.send_str(msgspec.json.encode(last).decode())
        await upgraded.close()
        return upgraded

    async def _serve(self, caller: web.WebSocketResponse, function: str, by: Caller) -> Exit | None:
        """Open it, pass on what both say, and return how it ended; None where the caller went before."""
        wanted = await _first_message(caller)
        if wanted is None:
            return None
        shell = self._control.shell(function, wanted.command, wanted.terminal, by.actor)
        stream = cast("AsyncGenerator[Opened | Exit, None]", shell)
        async with contextlib.aclosing(stream):
            opened = await anext(stream)
            if not isinstance(opened, Opened):
                raise Problem("internal", "A shell ended before it began.")
            path = sockets.address(Path(opened.socket))
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                told = {"instance": opened.instance, "revision": opened.revision}
                await caller.send_str(msgspec.json.encode(told).decode())
                return await self._relay(caller, reader, writer, stream, by.key)
            finally:
                writer.close()

    async def _relay(
        self,
        caller: web.WebSocketResponse,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stream: AsyncGenerator[Opened | Exit, None],
        key: Key,
    ) -> Exit | None:
        typing = asyncio.create_task(_type(caller, writer), name="shell typing")
        showing = asyncio.create_task(_show(reader, caller), name="shell showing")
        ending = asyncio.create_task(_exit(stream), name="shell ending")
        stopped = asyncio.create_task(self._stopped(key), name="shell stopped")
        tasks: tuple[asyncio.Task[Any], ...] = (typing, showing, ending, stopped)
        pending = set(tasks)
        try:
            while not typing.done() and not stopped.done():
                if ending.done() and (showing.done() or ending.exception() is not None):
                    return ending.result()
                within = _END_WITHIN if showing.done() else None
                done, pending = await asyncio.wait(
                    pending, timeout=within, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise Problem("unavailable", "How the shell ended was not told in time.")
            return Exit(_KILLED, stopped.result()) if stopped.done() else None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stopped(self, key: Key) -> str:
        """Wait for a reason to end it from here, and return that."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._closing.wait()
                return "the gateway stops; open it again"
            known = self._routes.keys.get(key.sha256)
            if known is None or known.expired(time.time()):
                return "the key was withdrawn, or has expired"


async def _first_message(caller: web.WebSocketResponse) -> _Wanted | None:
    """Return what is wanted; None where the caller goes before. Raises Problem `invalid-request`."""
    try:
        message = await caller.receive(_WANTED_WITHIN)
    except TimeoutError:
        detail = f"What shall run was not said within {_WANTED_WITHIN:g} s."
        raise Problem("invalid-request", detail) from None
    if message.type is WSMsgType.TEXT:
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(message.data, type=_Wanted)
    elif message.type is not WSMsgType.BINARY:
        return None
    raise Problem("invalid-request", 'The first message must be a JSON object with "command" and "terminal".')


async def _type(caller: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    """Pass on what the caller sends, until that ends; what comes when the command is gone is dropped."""
    async for message in caller:
        if message.type is not WSMsgType.BINARY or not message.data:
            return
        with contextlib.suppress(ConnectionError):
            writer.write(frames.packed(message.data))
            await writer.drain()


async def _show(reader: asyncio.StreamReader, caller: web.WebSocketResponse) -> None:
    """Pass on what the sandbox sends, until that ends, or is nothing that it should be."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            (length,) = frames.LENGTH.unpack(await reader.readexactly(frames.LENGTH.size))
            if not 0 < length <= frames.LONGEST:
                return
            await caller.send_bytes(await reader.readexactly(length))


async def _exit(stream: AsyncGenerator[Opened | Exit, None]) -> Exit:
    ended = await anext(stream)
    if not isinstance(ended, Exit):
        raise Problem("internal", "A shell was opened twice.")
    return ended


def _refuse_other_pages(request: web.Request) -> None:
    """Raise Problem `forbidden` where a browser asks for a page that is not ours.

    It may have a key that it was given for this address, and sends that for whatever page it shows.
    """
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("Host"):
        raise Problem("forbidden", "Web pages of other origins may open no shell. Use `pilotlight shell`.")


def _notice_lost_callers(request: web.Request) -> None:
    """Have the kernel look whether the caller's machine is still there: a shell may be silent for long."""
    sock = None if request.transport is None else request.transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
