"""The zygotes of a function service that has died, as the next one sees them: what they keep, and its end.

Read lingering.py for the other side, and survivors.py for what is made of it.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from function_service.engines.embedded.channel import Channel
from function_service.engines.embedded.grants import Grant
from function_service.engines.embedded.nursery import Forker
from pilotlight import sockets
from runtimes.declaration import Interpreter

_log = logging.getLogger(__name__)
_TELL_WITHIN = 5.0  # seconds that a zygote has to say what it keeps; it kills all else before
_END_WITHIN = 2.0  # seconds
_CREDENTIALS = struct.Struct("3i")


class Memo(msgspec.Struct, frozen=True):
    """What a service notes of an instance for the next one."""

    interpreter: Interpreter
    user: int
    grants: list[dict[str, Any]]  # what the baas process was told of each listener
    note: str  # see base.Engine.keep


@dataclass(frozen=True)
class Kept:
    """What the zygote of a former service has handed over of one instance; its descriptors are ours."""

    id: str
    snapshot: str | None  # what it was forked from
    pidfd: int
    output: int
    grants: list[Grant]
    memo: Memo


class Former(Forker):
    """The zygote of a function service that has died: it forks no more, and keeps what is left."""

    def __init__(self, door: Path, channel: Channel) -> None:
        super().__init__(f"The former zygote at {door.name}", self._gone)
        self.door = door
        self._connection = channel
        self._kept: list[Kept] = []
        self.snapshots: set[str] = set()  # of which it keeps copies
        self.gone = asyncio.Event()  # it has ended, and so has all that it kept

    def _gone(self) -> None:
        self.door.unlink(missing_ok=True)
        self.gone.set()

    async def meet(self) -> list[Kept]:
        """Hear what it keeps. Where it can't be understood, it is ended, as far as it still listens.

        Raises EOFError, OSError where it has just ended, and TimeoutError, ValueError, LookupError,
        msgspec.MsgspecError where it can't.
        """
        try:
            async with asyncio.timeout(_TELL_WITHIN):
                while True:
                    message, descriptors = await self._connection.receive()
                    if "all" in message:
                        break
                    self._kept.append(_read(message, descriptors))
        except BaseException:
            for kept in self._kept:
                for descriptor in (kept.pidfd, kept.output, *(g.descriptor for g in kept.grants)):
                    os.close(descriptor)
            self._end()
            self._connection.close()
            raise
        self.snapshots = {each.snapshot for each in self._kept if each.snapshot is not None}
        return self._kept

    def begin(self) -> None:
        """Begin to follow what becomes of what it keeps, once `watch` has been called for each."""
        self.follow(self._connection)

    def watch(self, sandbox: str, ended: Callable[[int | None], None]) -> None:
        """Call `ended` with the wait status of an instance, or None where that can't be known."""
        self._ended[sandbox] = ended

    def kill(self, sandbox: str) -> None:
        """Have an instance killed with all that is in it; only its zygote may in a user namespace."""
        with contextlib.suppress(OSError, EOFError):  # the zygote has ended, and all of its instances with it
            self._connection.send({"kill": sandbox})

    def _end(self) -> None:
        with contextlib.suppress(OSError, EOFError):  # as above
            self._connection.send({"end": True})

    async def close(self) -> None:
        """End it, and with it every instance that it keeps."""
        self._end()
        try:
            async with asyncio.timeout(_END_WITHIN):
                await self.gone.wait()
        except TimeoutError:
            _log.error("A zygote of a former function service does not end; the end of `up` will do it")
        await self.unfollow()
        self._connection.close()


def _read(message: dict[str, Any], descriptors: list[int]) -> Kept:
    pidfd, file, output, *listeners = descriptors
    with open(file, "rb") as written:  # noqa: PTH123  a descriptor has no path
        written.seek(0)
        memo = msgspec.json.decode(written.read(), type=Memo)
    grants = [Grant(told, listener) for told, listener in zip(memo.grants, listeners, strict=True)]
    return Kept(message["lives"], message["of"], pidfd, output, grants, memo)


async def find(folder: Path) -> list[tuple[Former, list[Kept]]]:
    """Find the zygotes of former services that still keep something, and hear what; clean up after others."""
    formers = [former for door in folder.iterdir() if (former := _connect(door)) is not None]
    told = await asyncio.gather(*(former.meet() for former in formers), return_exceptions=True)
    found = []
    for former, kept in zip(formers, told, strict=True):
        if isinstance(kept, list):
            found.append((former, kept))
        elif isinstance(kept, (TimeoutError, ValueError, LookupError, msgspec.MsgspecError)):
            _log.error("What a former function service has left can't be taken over", exc_info=kept)
        elif not isinstance(kept, (EOFError, OSError)):
            raise kept
        else:  # it has ended by itself just now, as it kept nothing any more
            _log.info("action=former-gone door=%s reason=%r", former.door.name, str(kept) or "it has ended")
    return found


def _connect(door: Path) -> Former | None:
    """Connect to a former zygote, or remove its socket where it has ended."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        connection.connect(sockets.address(door))
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        connection.close()
        door.unlink(missing_ok=True)
        return None
    if _CREDENTIALS.unpack(credentials)[1] != os.geteuid():
        _log.error("%s is a socket of another user; it is not believed", door)
        connection.close()
        return None
    return Former(door, Channel(connection))
