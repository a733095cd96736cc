"""Shells of a function service: opened, and spoken to in their frames, as a gateway does it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from function_service import shell_frames as frames
from function_service.contract import Exit, Opened, Terminal
from pilotlight import sockets
from tests.support.service import Service

TERMINAL = Terminal("xterm", 24, 80)


@dataclass
class Shell:
    """One that is open."""

    opened: Opened
    ending: asyncio.Task[Exit]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    output: bytes = b""
    errors: bytes = b""

    def send(self, kind: int, content: bytes = b"") -> None:
        self.writer.write(frames.packed(frames.frame(kind, content)))

    def type(self, text: str) -> None:
        self.send(frames.INPUT, text.encode())

    async def receive(self) -> bool:
        """Take in one frame; return whether there was one."""
        try:
            (length,) = frames.LENGTH.unpack(await self.reader.readexactly(frames.LENGTH.size))
            frame = await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        if frame[0] == frames.OUTPUT:
            self.output += frame[1:]
        else:
            assert frame[0] == frames.ERRORS
            self.errors += frame[1:]
        return True

    async def until(self, text: str) -> str:
        """Wait until it has shown a text; return and forget all that it has shown."""
        async with asyncio.timeout(60):
            while text.encode() not in self.output:
                assert await self.receive(), (text, self.output)
        shown, self.output = self.output.decode(), b""
        return shown

    async def end(self) -> Exit:
        """Take in all that it still says, and return how it ended."""
        async with asyncio.timeout(60):
            while await self.receive():
                pass
            return await self.ending


@contextlib.asynccontextmanager
async def shell(
    service: Service, function: str, *words: str, terminal: Terminal | None = None
) -> AsyncIterator[Shell]:
    """Open one, and leave its stream at the end."""
    stream = service.client.control.shell(function, words, terminal)
    async with contextlib.aclosing(stream):  # type: ignore[type-var]
        opened = await anext(stream)
        assert isinstance(opened, Opened)
        reader, writer = await asyncio.open_unix_connection(sockets.address(Path(opened.socket)))
        ending = asyncio.create_task(anext(stream))
        try:
            yield Shell(opened, ending, reader, writer)  # type: ignore[arg-type]
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            writer.close()


async def run(
    service: Service, function: str, *words: str, typed: str = "", terminal: Terminal | None = None
) -> tuple[str, str, Exit]:
    """Run a command to its end; return its output, its errors, and how it ended."""
    async with shell(service, function, *words, terminal=terminal) as opened:
        if typed:
            opened.type(typed)
        opened.send(frames.END)
        ended = await opened.end()
        return opened.output.decode(), opened.errors.decode(), ended
