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
_COST = 200  # bytes that a line counts for besides its own: keeping many short ones costs time too
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
        """Yield (line, truncated) until every writer has closed the pipe (see batches)."""
        async for batch in self.batches():
            for item in batch:
                yield item

    async def batches(self) -> AsyncGenerator[list[tuple[str, bool]], None]:
        """Yield lists of (line, truncated) as they come, until every writer has closed the pipe.

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
            if loop.time() - since > 1:
                budget, since = _BUDGET, loop.time()
            budget -= len(data) + _COST * data.count(b"\n")
            if budget < 0:
                dropped = len(data) + await self._drop_until(since + 1)
                budget, since = _BUDGET, loop.time()
                batch = [(pending.decode(errors="replace"), True)] if pending and not skipping else []
                yield [*batch, (f"[{dropped} bytes were left out: too much output at once]", True)]
                pending, skipping = b"", True
                continue
            *whole, rest = (pending + data).split(b"\n")
            batch = []
            for line in whole:
                if not skipping:
                    batch.append((line[:LONGEST].decode(errors="replace"), len(line) > LONGEST))
                skipping = False
            pending = b"" if skipping else rest
            if len(pending) > LONGEST:
                batch.append((pending[:LONGEST].decode(errors="replace"), True))
                pending, skipping = b"", True
            if batch:
                yield batch
            await asyncio.sleep(0)  # who prints without end must not keep the loop from everybody else
        if pending and not skipping:
            yield [(pending.decode(errors="replace"), False)]

    async def _drop_until(self, moment: float) -> int:
        """Throw output away until a moment of the loop's clock, at little cost; return how many bytes."""
        loop = asyncio.get_running_loop()
        dropped = 0
        while loop.time() < moment:
            with contextlib.suppress(BlockingIOError):
                # Once, as a writer can be as quick as we are
                if not (data := os.read(self._descriptor, _PIPE)):
                    return dropped  # the end: the caller's next read sees it too
                dropped += len(data)
            await asyncio.sleep(_PAUSE)
        return dropped

    def close(self) -> None:
        """Close the pipe."""
        if not self._closed:
            self._closed = True
            os.close(self._descriptor)
