"""Lines out of a pipe, of any length and at any speed, without ever holding up the writer for long."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncGenerator

from pilotlight.descriptors import readable_once

LONGEST = 8 << 10  # bytes of a line that are kept
_CHUNK = 64 << 10
_PIPE = 1 << 20  # bytes that the kernel buffers for the writer
_BUDGET = 4 << 20  # bytes a second that are read as lines; beyond, output is thrown away unseen
_PAUSE = 0.01  # seconds


class LineReader:
    """Reads the lines of one pipe; owns the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        with contextlib.suppress(PermissionError):  # the user's share of pipe memory is used up
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)
        self._closed = False

    async def lines(self) -> AsyncGenerator[tuple[str, bool], None]:
        """Yield (line, truncated) until every writer has closed the pipe.

        Truncated means that the line was longer, or that lines after it were left out.
        """
        loop = asyncio.get_running_loop()
        pending = b""
        skipping = False  # within a line whose first part was yielded already
        budget, since = _BUDGET, loop.time()
        while True:
            try:
                data = os.read(self._descriptor, _CHUNK)
            except BlockingIOError:
                await readable_once(self._descriptor)
                continue
            if not data:
                break
            budget -= len(data)
            if budget < 0:
                dropped = await self._drop_until(since + 1)
                budget, since = _BUDGET, loop.time()
                if dropped:
                    yield f"[{dropped + len(data)} bytes were left out: too much output at once]", True
                    pending, skipping = b"", True
                    continue
            *whole, rest = (pending + data).split(b"\n")
            for line in whole:
                if not skipping:
                    yield line[:LONGEST].decode(errors="replace"), len(line) > LONGEST
                skipping = False
            pending = rest
            if skipping:
                pending = b""
            elif len(pending) > LONGEST:
                yield pending[:LONGEST].decode(errors="replace"), True
                pending, skipping = b"", True
            if loop.time() - since > 1:
                budget, since = _BUDGET, loop.time()
        if pending and not skipping:
            yield pending.decode(errors="replace"), False

    async def _drop_until(self, moment: float) -> int:
        """Throw output away until a moment of the loop's clock, at little cost; return how many bytes."""
        loop = asyncio.get_running_loop()
        dropped = 0
        while loop.time() < moment:
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self._descriptor, _PIPE):
                    dropped += len(data)
                return dropped  # the end: the caller's next read sees it too
            await asyncio.sleep(_PAUSE)
        return dropped

    def close(self) -> None:
        """Close the pipe."""
        if not self._closed:
            self._closed = True
            os.close(self._descriptor)
