"""The engine's side of entering.py and carrying.py: starts such a process, and gives it orders."""

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from function_service.engines.embedded import messages
from function_service.engines.embedded.channel import Channel

_WITHIN = 10.0  # seconds for an order
_END_WITHIN = 2.0  # seconds
_COMMAND = (
    "import sys; sys.path.insert(0, sys.argv[2]); "
    "from function_service.engines.docker.{} import main; main(int(sys.argv[1]))"
)
_OURS = Path(__file__).parents[3]


class Servant:
    """A process of ours for one kind of work: started when needed, and again where it has died."""

    def __init__(self, module: str) -> None:
        """`module` is the one whose `main` takes the orders."""
        self._module = module
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._reader: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[tuple[str | None, list[int]]]] = {}
        self._starting = asyncio.Lock()

    async def order(self, order: dict[str, Any], descriptors: Sequence[int]) -> list[int]:
        """Have an order carried out; return the descriptors that came with the answer. Raises OSError."""
        async with self._starting:
            if self._reader is None or self._reader.done():
                await self.close()
                await self._start()
        number = next(self._numbers)
        answer: asyncio.Future[tuple[str | None, list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if self._channel is None:
                raise OSError(f"the process for {self._module} has ended")
            self._channel.send({"id": number, **order}, descriptors)
            async with asyncio.timeout(_WITHIN):
                error, received = await answer
        except (EOFError, TimeoutError) as failure:
            raise OSError(f"the process for {self._module} does not answer") from failure
        finally:
            del self._waiting[number]
        if error is not None:
            raise OSError(error)
        return received

    async def _start(self) -> None:
        mine, theirs = messages.pair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            code = _COMMAND.format(self._module)
            self._process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    code,
                    str(theirs.fileno()),
                    str(_OURS),
                ),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={"LC_ALL": "C.UTF-8"},
            )
        self._channel = Channel(mine)
        self._reader = asyncio.create_task(self._read(self._channel), name=self._module)

    async def _read(self, channel: Channel) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message, received = await channel.receive()
                waiting = self._waiting.get(message["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result((message.get("error"), received))
                    continue
                for descriptor in received:  # nobody waits for them any more
                    os.close(descriptor)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result((f"the process for {self._module} has ended", []))

    async def close(self) -> None:
        """End it."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        if self._process is not None:
            try:
                async with asyncio.timeout(_END_WITHIN):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
            self._process = None
