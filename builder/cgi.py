"""Runs one CGI program for one HTTP request, streaming both ways: RFC 3875, as much as git needs of it."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import aiohttp
from aiohttp import web

from builder.limits import Limits
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

_PIECE = 1 << 16
_HEAD = 1 << 16
_PASSED_ON = ("Cache-Control", "Expires", "Pragma", "Content-Type")
_KILL_AFTER = 2.0

# git-http-backend reads on and on where the builder was killed before it had passed on the whole body, so the
# kernel kills it with the builder (prctl(2), PR_SET_PDEATHSIG)
_TIED: Final = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()


class Running:
    """Bounds how many programs run at a time."""

    def __init__(self, limits: Limits) -> None:
        self._free = limits.requests

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Take one place. Raises Problem `overloaded` when there is none."""
        if self._free == 0:
            raise Problem(
                "overloaded", "Too many git clients are connected. Try again in a moment.", retry_after=5
            )
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


def _variables(request: web.Request) -> dict[str, str]:
    """Return what RFC 3875 tells a program about its request, and the headers that git knows."""
    variables = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": request.query_string,
        "REMOTE_USER": "pilotlight",
        "REMOTE_ADDR": "pilotlight",
    }
    for variable, header in (
        ("CONTENT_TYPE", "Content-Type"),
        ("CONTENT_LENGTH", "Content-Length"),
        ("HTTP_CONTENT_ENCODING", "Content-Encoding"),
        ("GIT_PROTOCOL", "Git-Protocol"),
    ):
        if (value := request.headers.get(header)) is not None:
            variables[variable] = value
    return variables


async def run(
    command: Sequence[str], environment: Mapping[str, str], request: web.Request, limits: Limits
) -> web.StreamResponse:
    """Answer a request with what a program makes of it.

    The program and all that it starts are dead when this returns, raises or is cancelled, which is what
    happens when the client goes away. Raises Problem where the program gives no answer.
    """
    process = await asyncio.create_subprocess_exec(
        *_TIED,
        *command,
        env={**environment, **_variables(request)},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_HEAD,
        start_new_session=True,
    )
    response = web.StreamResponse()
    helpers = [
        asyncio.create_task(_feed(process, request), name="request body to git"),
        asyncio.create_task(_log_errors(process), name="errors of git"),
    ]
    try:
        async with asyncio.timeout(limits.push):
            await _answer(process, request, response)
            await process.wait()
    except TimeoutError:
        _break_off(request, response)
        raise Problem("timeout", f"git took longer than {limits.push:.0f} s and was stopped.") from None
    except Exception:
        _break_off(request, response)
        raise
    finally:
        # shielded: the request may be cancelled again while its processes come to their end
        await asyncio.shield(_end(process, helpers))
    return response


def _break_off(request: web.Request, response: web.StreamResponse) -> None:
    """End the connection if an answer was begun, so that nobody takes it for the whole."""
    if response.prepared and request.transport is not None:
        request.transport.abort()


async def _feed(process: Process, request: web.Request) -> None:
    """Give the body to the program; what it does not read is dropped, so that its answer gets through."""
    assert process.stdin is not None  # noqa: S101  for mypy: it is a pipe
    wanted = True
    try:
        async for piece in request.content.iter_any():
            if wanted:
                try:
                    process.stdin.write(piece)
                    await process.stdin.drain()
                except (BrokenPipeError, ConnectionResetError):
                    wanted = False
    except (aiohttp.ClientError, ConnectionError) as error:
        _log.info("A request to git broke off: %s", error)
    finally:
        process.stdin.close()


async def _answer(process: Process, request: web.Request, response: web.StreamResponse) -> None:
    assert process.stdout is not None  # noqa: S101  for mypy: it is a pipe
    try:
        head = await process.stdout.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise Problem("internal", "git gave no answer. Its error stands in the log of Pilotlight.") from error
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.title() == "Status":
            response.set_status(int(value.split()[0]))
        elif name.title() in _PASSED_ON:
            response.headers[name.title()] = value.strip()
    await response.prepare(request)
    while piece := await process.stdout.read(_PIECE):
        await response.write(piece)
    # the end is written when the handler has returned: whoever sees it sees a push that is over


async def _log_errors(process: Process) -> None:
    """Keep the program's error output from filling its pipe."""
    assert process.stderr is not None  # noqa: S101  for mypy: it is a pipe
    while piece := await process.stderr.read(_PIECE):
        _log.info("git: %s", piece.decode(errors="replace").strip()[:1000])


async def _end(process: Process, helpers: list[asyncio.Task[None]]) -> None:
    """Make sure that nothing of the program's session is left, nor the tasks that served it."""
    if process.returncode is None:
        await _kill(process)
    for task in helpers:
        task.cancel()
    await asyncio.gather(*helpers, return_exceptions=True)


async def _kill(process: Process) -> None:
    assert process.stdout is not None  # noqa: S101  for mypy: it is a pipe
    # git clears its quarantine on SIGTERM; its output ends when the last process of the session has
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(_KILL_AFTER):
            while await process.stdout.read(_PIECE):
                pass
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
