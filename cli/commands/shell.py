"""`pilotlight shell FUNCTION [-- COMMAND…]`: a shell in a fresh sandbox of a function.

Where standard input and output are a terminal, so is what the shell has, and each key goes to it. Else it has
pipes: what comes from standard input goes in, and output and errors come out apart.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from cli import client, output
from cli.commands import flags
from function_service import shell_frames as frames
from pilotlight.problems import KINDS, Problem
from pilotlight.settings import inherited

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse, WSMessage

_CHUNK: Final = 32 << 10
_PING: Final = 30.0  # seconds, so that a proxy on the way does not take the connection for idle
_TERMINATED: Final = 128 + signal.SIGTERM
_AGAIN: Final = "What ran in the shell has ended with it; open it again."


@click.command()
@flags.function
@click.argument("words", metavar="[-- COMMAND…]", nargs=-1, help="what to run in place of /bin/sh")
def command(name: str, *, words: tuple[str, ...]) -> int:
    """Run it, and return its exit code. Raises Problem."""
    platform = client.find()
    platform.get(client.path("functions", name))  # tells what is wrong better than an upgrade that is refused
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        code, reason = asyncio.run(_run(platform, name, words, at_terminal=at_terminal))
    except asyncio.CancelledError:
        return _TERMINATED
    if reason:
        output.note(f"pilotlight: the shell was ended: {output.harmless(reason)}")
    return code


@contextlib.contextmanager
def _every_key() -> Iterator[None]:
    """Have the terminal pass on every key as it is typed, until the end, however that comes."""
    import termios
    import tty

    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


async def _run(
    platform: client.Platform, function: str, words: tuple[str, ...], *, at_terminal: bool
) -> tuple[int, str]:
    """Open the shell and serve it to its end; see `_serve`."""
    import aiohttp

    headers = {"Authorization": f"Bearer {platform.key}"} if platform.key else {}
    url = platform.url + client.path("functions", function, "shell")
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  for mypy
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the terminal becomes what it was
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(url, headers=headers, ssl=platform.tls() or True) as shell:
                return await _serve(shell, words, at_terminal=at_terminal)
        except aiohttp.WSServerHandshakeError as error:
            kind = error.headers.get("Pilotlight-Error", "") if error.headers else ""
            detail = f"The platform answered {error.status} where a WebSocket was asked for."
            raise Problem(kind if kind in KINDS else "unavailable", detail) from error
        except aiohttp.ClientError as error:
            detail = f"The connection to {platform.url} broke off ({error}). {_AGAIN}"
            raise Problem("unavailable", detail) from error


async def _serve(
    shell: "ClientWebSocketResponse", words: tuple[str, ...], *, at_terminal: bool
) -> tuple[int, str]:
    """Return the exit code, and why it was ended where it has not ended by itself. Raises Problem."""
    terminal = None
    if at_terminal:
        size = os.get_terminal_size(1)
        kind = inherited("TERM").get("TERM") or "xterm"
        terminal = {"kind": kind, "rows": max(size.lines, 1), "columns": max(size.columns, 1)}
    await shell.send_json({"command": words, "terminal": terminal})
    _end(await shell.receive())  # that it is open
    # Until now Ctrl-C and signals end this command as any other
    with _every_key() if at_terminal else contextlib.nullcontext():
        return await _pass_on(shell, at_terminal=at_terminal)


async def _pass_on(shell: "ClientWebSocketResponse", *, at_terminal: bool) -> tuple[int, str]:
    """Pass on what is typed and what the shell shows, to its end; see `_serve`."""
    loop = asyncio.get_running_loop()
    tasks = [asyncio.create_task(_keep_alive(shell), name="keep alive")]
    if at_terminal:
        changed = asyncio.Event()
        loop.add_signal_handler(signal.SIGWINCH, changed.set)
        tasks.append(asyncio.create_task(_follow_window(shell, changed), name="follow the window"))
    threading.Thread(target=_read, args=(loop, shell), name="standard input", daemon=True).start()
    try:
        while True:
            message = await shell.receive()
            if (ended := _end(message)) is not None:
                return ended
            await asyncio.to_thread(_write, message.data)  # whoever reads it may be slow
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _end(message: "WSMessage") -> tuple[int, str] | None:
    """Return how the shell ended, if that is what a message says. Raises Problem."""
    from aiohttp import WSMsgType

    if message.type is WSMsgType.BINARY:
        return None
    if message.type is not WSMsgType.TEXT:
        raise Problem("unavailable", f"The connection to the platform ended. {_AGAIN}")
    said = json.loads(message.data)
    if "problem" in said:
        kind = str(said["problem"]["type"]).rpartition(":")[2]
        raise Problem(kind if kind in KINDS else "internal", str(said["problem"]["detail"]))
    return (int(said["exit"]["code"]), str(said["exit"]["reason"])) if "exit" in said else None


def _read(loop: asyncio.AbstractEventLoop, shell: "ClientWebSocketResponse") -> None:
    """Send what comes from standard input, in a thread: a file, a pipe and a terminal are all read so."""
    data = b"-"
    with contextlib.suppress(RuntimeError, ConnectionError):  # the shell has ended meanwhile
        while data:
            try:
                data = os.read(0, _CHUNK)
            except OSError:  # it was closed
                data = b""
            frame = frames.frame(frames.INPUT, data) if data else frames.frame(frames.END)
            asyncio.run_coroutine_threadsafe(shell.send_bytes(frame), loop).result()


def _write(frame: bytes) -> None:
    """Write what the shell shows; where it has no terminal, errors come apart."""
    rest, target = memoryview(frame)[1:], 2 if frame[0] == frames.ERRORS else 1
    while rest:
        rest = rest[os.write(target, rest) :]


async def _follow_window(shell: "ClientWebSocketResponse", changed: asyncio.Event) -> None:
    while True:
        await changed.wait()
        changed.clear()
        size = os.get_terminal_size(1)
        await shell.send_bytes(frames.frame(frames.WINDOW, frames.SIZE.pack(size.lines, size.columns)))


async def _keep_alive(shell: "ClientWebSocketResponse") -> None:
    while True:
        await asyncio.sleep(_PING)
        await shell.ping()
