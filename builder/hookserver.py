"""The builder's side of the hooks: the folder that git finds them in, and the socket that they ask."""

import asyncio
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder.repository import Update
from pilotlight import sockets
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

HOOKS: Final = ("pre-receive", "post-receive")

# read while this module is imported: later on the process may have lost the right to
_SCRIPT: Final = Path(__file__).with_name("hook.py").read_bytes()
_MAX_MESSAGE = 4 << 20
_ASK_DEADLINE = 10.0
_WRITE_DEADLINE = 60.0


def _interpreter() -> str:
    """Return a Python that this process may start; that of a virtual environment itself starts slower."""
    for candidate in (os.path.realpath(sys.executable), sys.executable, "/usr/bin/python3"):
        if os.access(candidate, os.X_OK):
            return candidate
    raise Problem(
        "unavailable", f"No Python can be started for git's hooks: {sys.executable} is not accessible."
    )


def install(folder: Path) -> None:
    """Write the hooks into a folder for core.hooksPath, in place of those of a former version."""
    folder.mkdir(exist_ok=True)
    script = folder / "hook.py"
    script.write_bytes(_SCRIPT)
    for hook in HOOKS:
        place = folder / hook
        command = [_interpreter(), "-I", "-S", str(script), hook]
        place.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
        place.chmod(0o755)


class Terminal:
    """The pusher's screen."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def say(self, text: str = "") -> None:
        """Print lines. What is not printable in them is left out: it could change what stands before it.

        Raises ConnectionError or TimeoutError when the pusher is gone.
        """
        for line in text.split("\n"):
            plain = "".join(c if c.isprintable() else " " for c in line.expandtabs(4).replace("\r", ""))
            self._writer.write(plain.encode(errors="replace") + b"\n")
        async with asyncio.timeout(_WRITE_DEADLINE):
            await self._writer.drain()

    async def end(self, agreed: bool) -> None:
        """Tell the hook how to exit."""
        self._writer.write(b"\x000" if agreed else b"\x001")
        async with asyncio.timeout(_WRITE_DEADLINE):
            await self._writer.drain()


@dataclass(frozen=True)
class Question:
    """What a hook asks: for which push, at which point, about which refs, with which quarantine."""

    push: str
    hook: str
    objects: str  # the folder with the objects that were pushed; empty if there are none
    updates: tuple[Update, ...]


Answer = Callable[[Question, Terminal], Awaitable[bool]]


class HookServer:
    """Listens for hooks, and lets `answer` talk to each; cancels it when the hook's process is gone."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(
            self._converse, sock=sockets.listen(self._path, mode=0o600)
        )

    async def stop(self, grace: float) -> None:
        """Refuse the pushes that are being built, with a word to the pusher; others get `grace` seconds."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        conversations = list(self._conversations)
        for task in conversations:
            task.cancel()
        if conversations:
            _, late = await asyncio.wait(conversations, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  for mypy: this is a coroutine of a task
        self._conversations.add(task)
        try:
            async with asyncio.timeout(_ASK_DEADLINE):
                length = int(await reader.readline())
                if not 0 < length <= _MAX_MESSAGE:
                    raise ValueError(f"a message of {length} bytes")
                question = _parse(await reader.readexactly(length))
            await self._answer_while_there(question, Terminal(writer), reader)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError) as error:
            _log.info("A hook went away: %s", error or type(error).__name__)
        except ValueError as error:
            _log.warning("A hook's message was not understood: %s", error)
        finally:
            self._conversations.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer_while_there(
        self, question: Question, terminal: Terminal, reader: asyncio.StreamReader
    ) -> None:
        """Talk until the answer is found; the hook says nothing more, so that reading tells when it ends."""
        work = asyncio.ensure_future(self._answer(question, terminal))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await terminal.end(work.result())
            else:
                _log.info("The pusher of %s went away", question.push)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            if question.hook == "post-receive":  # the ref has moved: what follows must be seen through
                await terminal.end(await work)
                return
            work.cancel()
            await asyncio.wait({work})
            await terminal.say(
                "\nPilotlight is being stopped. Nothing was changed; push again when it is back."
            )
            await terminal.end(agreed=False)
        finally:
            for each in (work, gone):
                each.cancel()
            await asyncio.wait({work, gone})
            if not work.cancelled() and (error := work.exception()) is not None:
                _log.debug("The answer to a hook that is gone: %r", error)


def _parse(message: bytes) -> Question:
    push, hook, objects, updates = (os.fsdecode(field) for field in message.split(b"\0", 3))
    if hook not in HOOKS:
        raise ValueError(f"there is no hook {hook!r}")
    lines = [line.split(" ", 2) for line in updates.splitlines()]
    if any(len(line) != 3 for line in lines):
        raise ValueError("the ref updates are not what git writes")
    return Question(push, hook, objects, tuple(Update(*line) for line in lines))
