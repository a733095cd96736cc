"""The two ways into a container: it has the kernel of this machine, or (gVisor, Kata) one of its own.

Where it has this one, descriptors come over a socket that is shown to it, and code is mounted into it while
it runs (entering.py). One of its own takes neither: all goes through a tunnel (tunnel.py) then, and code is
copied to folders that are shown to it from its start on.
"""

import asyncio
import errno
import os
import shutil
import socket
import stat
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from function_service.engines import attaching
from function_service.engines.attaching import Tree
from function_service.engines.docker.container import Plan, Show, create
from function_service.engines.docker.daemon import Daemon
from function_service.engines.docker.guest import Root
from function_service.engines.docker.servant import Servant
from function_service.engines.embedded import messages
from function_service.engines.embedded.sandbox import TMP_SIZE
from pilotlight import sockets
from pilotlight.problems import Problem

_LOOK: Final = 2.0  # seconds without a sign of life, after which dockerd is asked whether there is any
_CREDENTIALS: Final = struct.Struct("3i")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")  # of a kernel, random(4)
_TELL_BOOT_ID: Final = f"""
import os
path = {str(_BOOT_ID)!r}
print("kernel", open(path).read() if os.path.exists(path) else "without a name, as gVisor")
"""
_TRIED_WITHIN: Final = 15.0  # seconds
_TMP: Final = "/tmp"  # noqa: S108  the container's own
_STREAM: Final = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}


@dataclass(frozen=True)
class Entered:
    """What is known once process 1 can be talked to."""

    control: socket.socket
    pid: int  # of process 1, or of its kernel, as the host sees it
    user: int  # as the host sees it
    carrier: int | None = None  # a pidfd of the process without which nothing leads into the container


class Entrance(Protocol):
    """The way into one container, until it is closed."""

    def attach(self, client: Any, name: str) -> None:
        """Prepare for the start of a container that was created; in a thread of the daemon's."""
        ...

    async def enter(self, daemon: Daemon, name: str) -> Entered:
        """Wait for process 1. Raises Problem, OSError, and EOFError where it has ended before that."""
        ...

    def close(self) -> None:
        """Close what the container has by now."""
        ...


class Way(Protocol):
    """How an engine gets into its containers."""

    process_one: str
    """The module in the container whose `main` is process 1."""
    own_kernel: bool
    processes: int
    """Processes and threads that its kernel takes for itself, at most."""
    tmp: int
    """Bytes that its /tmp has from its start on."""

    def entrance(self, folder: Path, user: int) -> Entrance:
        """Make the way into one container, which has a folder of ours and runs as a user. Raises OSError."""
        ...

    def early(self, trees: Sequence[Tree]) -> list[Tree]:
        """Return which of the folders that are known beforehand have to be shown from the start on."""
        ...

    def shown(self, folder: Path, root: Root, early: Sequence[Tree]) -> list[Show]:
        """Return what a container is shown from its start on; it blocks. Raises OSError."""
        ...

    async def furnish(self, pidfd: int, root: Root, *, terminal: bool) -> None:
        """Take away what a function has no use for, before its runtime boots. Raises OSError."""
        ...

    async def bring(self, folder: Path, pidfd: int, trees: Sequence[Tree], tmp: int) -> None:
        """Bring code into it, and give its /tmp so many bytes. Raises OSError."""
        ...

    async def close(self) -> None:
        """End what it has started."""
        ...


async def choose(daemon: Daemon, plan: Plan, python: str) -> Way:
    """Return the way into containers like that of a plan, tried with a Python in one. Raises Problem."""
    tried = replace(plan, command=(python, "-I", "-S", "-c", _TELL_BOOT_ID))

    def run(client: Any) -> str:
        create(client, tried)
        try:
            client.start(tried.name)
            client.wait(tried.name, timeout=_TRIED_WITHIN)
            said: bytes = client.logs(tried.name)
            return said.decode(errors="replace").strip()
        finally:
            client.remove_container(tried.name, force=True, v=True)

    said = await daemon.call(run)
    if not said.startswith("kernel "):
        raise Problem("unavailable", f"Its first process said: {said}")
    return SameKernel() if said == f"kernel {_BOOT_ID.read_text().strip()}" else OwnKernel()


class SameKernel:
    """Implements Way."""

    process_one = "inside"
    own_kernel = False
    processes = 0
    tmp = TMP_SIZE

    def __init__(self) -> None:
        self._servant = Servant("entering")

    def entrance(self, folder: Path, user: int) -> Entrance:  # noqa: ARG002
        """Open the door to which process 1 comes (see Way)."""
        return _Door(folder)

    def early(self, trees: Sequence[Tree]) -> list[Tree]:  # noqa: ARG002
        """Return none: all is mounted later (see Way)."""
        return []

    def shown(self, folder: Path, root: Root, early: Sequence[Tree]) -> list[Show]:  # noqa: ARG002
        """Show the door, where a socket can't be connected to if it is read-only (see Way)."""
        return [*((Path(of), at, False) for of, at in root.shown), (folder, "/run", True)]

    async def furnish(self, pidfd: int, root: Root, *, terminal: bool) -> None:
        """Enter it (see Way)."""
        order = {"binds": root.kept, "gone": root.gone, "terminal": terminal, "tmp": TMP_SIZE}
        await self._servant.order({"furnish": order}, [pidfd])

    async def bring(self, folder: Path, pidfd: int, trees: Sequence[Tree], tmp: int) -> None:  # noqa: ARG002
        """Mount (see Way)."""
        order = {"mounts": [target for _, target, _ in trees], "tmp": tmp}
        with attaching.opened(trees) as descriptors:
            await self._servant.order(order, [pidfd, *descriptors])

    async def close(self) -> None:
        """End the process that mounts (see Way)."""
        await self._servant.close()


class _Door:
    """Implements Entrance."""

    def __init__(self, folder: Path) -> None:
        # The container's user has to get at it; from outside the folder is within one that is ours alone
        path = folder / "control.sock"
        self._listener = sockets.listen(path, mode=0o666, backlog=1, kind=socket.SOCK_SEQPACKET)

    def attach(self, client: Any, name: str) -> None:
        """Do nothing (see Entrance)."""

    async def enter(self, daemon: Daemon, name: str) -> Entered:
        """Wait until process 1 comes to the door (see Entrance)."""
        accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(self._listener))
        try:
            while not (await asyncio.wait([accepting], timeout=_LOOK))[0]:
                if not await daemon.runs(name):
                    raise EOFError("its first process has ended")
        finally:
            if not accepting.done():
                accepting.cancel()
        control = accepting.result()[0]
        credentials = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, user, _ = _CREDENTIALS.unpack(credentials)
        return Entered(control, pid, user)

    def close(self) -> None:
        """Close the door (see Entrance)."""
        self._listener.close()


class OwnKernel:
    """Implements Way."""

    process_one = "apart"
    own_kernel = True
    processes = 384
    # It can't be changed later. What is in it counts towards the memory in any case
    tmp = 1 << 30

    def __init__(self) -> None:
        self._servant = Servant("carrying")

    def entrance(self, folder: Path, user: int) -> Entrance:
        """Return what will be a tunnel (see Way)."""
        return _Stream(self._servant, folder, user)

    def early(self, trees: Sequence[Tree]) -> list[Tree]:
        """Return all (see Way)."""
        return list(trees)

    def shown(self, folder: Path, root: Root, early: Sequence[Tree]) -> list[Show]:
        """Show folders to which code will be copied, where it would be mounted else (see Way)."""
        later = () if early else root.later
        for place in later:
            _copies(folder, place).mkdir(mode=0o755)
        copies = [(_copies(folder, place), place, False) for place in later]
        given = [at for _, at, _ in (*copies, *early)]
        # A volume would be a folder on the disk to which a function could write without any limit
        replaced = {*given, *(at for _, at in root.shown), _TMP}
        volumes = [each for each in root.volumes if each not in replaced]
        # What is shown at a place would get folders for what is shown below it
        stay = [each for each in root.shown if not any(f"{at}/".startswith(f"{each[1]}/") for at in given)]
        empty = folder / "empty"
        empty.mkdir(mode=0o755)
        covers = [(empty, each, False) for each in volumes]
        return [*((Path(of), at, False) for of, at in stay), *covers, *copies, *early]

    async def furnish(self, pidfd: int, root: Root, *, terminal: bool) -> None:
        """Leave it as it is: what it shows of a system is its own (see Way)."""

    async def bring(self, folder: Path, pidfd: int, trees: Sequence[Tree], tmp: int) -> None:  # noqa: ARG002
        """Copy (see Way)."""

        def copy() -> None:
            for source, target, _ in trees:
                if source.is_symlink():
                    raise NotADirectoryError(errno.ENOTDIR, f"{source.name} is a link")
                shutil.copytree(
                    source, _copies(folder, target), symlinks=True, dirs_exist_ok=True, copy_function=_link
                )

        copying = asyncio.create_task(asyncio.to_thread(copy), name="copy code")
        try:
            await asyncio.shield(copying)
        finally:  # it can't be stopped, and who was cancelled would remove the folder meanwhile
            await asyncio.wait([copying])

    async def close(self) -> None:
        """End the process that carries (see Way)."""
        await self._servant.close()


def _copies(folder: Path, place: str) -> Path:
    return folder / place.removeprefix("/")


def _link(source: str, target: str) -> None:
    """Give a file a second name, which takes no room; it is seen where nobody can write. Raises OSError."""
    if not stat.S_ISREG(os.lstat(source).st_mode):
        return  # copytree copies folders and links by itself; anything else has no business in a layer
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target, follow_symlinks=False)


class _Stream:
    """Implements Entrance."""

    def __init__(self, servant: Servant, folder: Path, user: int) -> None:
        self._servant = servant
        self._folder = folder
        self._user = user
        self._descriptor: int | None = None  # of the stream, until it is carried
        self._closing = threading.Lock()  # where the start is given up, its thread goes on for a while

    def attach(self, client: Any, name: str) -> None:
        """Have dockerd give the stream (see Entrance)."""
        attached = client.attach_socket(name, params=_STREAM)
        try:
            with self._closing:
                self._descriptor = os.dup(attached.fileno())
        finally:
            attached._response.close()  # noqa: SLF001  which holds it open otherwise, until a collection
            attached.close()

    async def enter(self, daemon: Daemon, name: str) -> Entered:
        """Begin to carry (see Entrance)."""
        ours, theirs = messages.pair()
        with theirs:
            try:
                if self._descriptor is None:
                    raise EOFError("dockerd gave no stream")
                order = {"carry": str(self._folder)}
                [carrier] = await self._servant.order(order, [self._descriptor, theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        try:
            return Entered(ours, await daemon.pid(name), self._user, carrier)
        except BaseException:
            ours.close()
            os.close(carrier)
            raise

    def close(self) -> None:
        """Close our copy of the stream (see Entrance)."""
        with self._closing:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
