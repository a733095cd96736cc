"""The seam under which engines lie: how sandboxes come to be. Everything above is the same for each."""

import asyncio
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from function_service.contract import Exit, Guarantee, Image, ImageBuild, Job, Output, Stages, Terminal
from runtimes.declaration import Interpreter


@dataclass(frozen=True)
class Assignment:
    """What makes an instance of a blank sandbox."""

    app: str
    function: str
    handler: str
    concurrency: int
    env: dict[str, str]
    code: Path
    dependencies: Path | None
    memory: int  # bytes
    cpu: float  # cores
    egress: tuple[str, ...]
    command: tuple[str, ...] = ()  # of an image that brings its program along: no code is mounted then
    folder: str = "/function"  # the working folder


@dataclass(frozen=True)
class End:
    """How a sandbox ended: an exit code, or the signal that killed it; and whether memory was the reason."""

    code: int | None
    signal: int | None
    out_of_memory: bool
    memory_peak: int  # bytes, 0 where unknown


@dataclass(frozen=True)
class Use:
    """What a sandbox uses now."""

    memory: int  # bytes
    cpu_seconds: float
    processes: int


class StartError(Exception):
    """The function could not be loaded. The text is the function's own error, for its author."""


class Untouched(EOFError):  # noqa: N818  what happened to it, not a fault of ours
    """The sandbox was dead before anything of the function had come to it: another one can take its place."""


@dataclass(eq=False)
class Sandbox:
    """One sandbox, as an engine made it."""

    id: str
    interpreter: Interpreter
    socket: Path  # where the instance in it will serve HTTP
    stages: Stages  # how long making it took
    output: int  # a descriptor from which all that it prints is read; whoever takes it closes it
    ended: asyncio.Future[End]  # done when every process in it is dead
    handle: Any = field(repr=False)  # the engine's own


@dataclass(frozen=True)
class Survivor:
    """An instance that a former run has kept. It serves, and takes no other assignment."""

    sandbox: Sandbox
    note: str


@dataclass(frozen=True)
class FoundImage:
    """An image that is on this machine, and what it sets.

    `command` and `folder` are there where it was built for a function, and are what it runs, and where;
    `bases` are the images that its Dockerfile names.
    """

    id: str
    env: dict[str, str]
    command: tuple[str, ...] = ()
    folder: str = "/"
    bases: tuple[str, ...] = ()
    source: str = ""  # with its digest, where it came from a registry


@dataclass(frozen=True)
class MadeImage:
    """An image that was built for a function, or came from another machine."""

    id: str
    size: int  # bytes, with what it begins with
    created: float  # seconds since the epoch


@dataclass(frozen=True)
class KnownImage:
    """An image that is there, and what it is for the platform (see contract.ImageStatus)."""

    id: str
    name: str
    kind: str
    size: int  # bytes
    created: float  # seconds since the epoch


class ImageTransport(Protocol):
    """How images come from one machine to another. An image is known by its id alone."""

    async def has(self, image: str) -> bool:
        """Tell whether it is on this machine. Raises Problem."""
        ...

    def pack(self, image: str) -> AsyncGenerator[bytes, None]:
        """Yield one as an archive. Raises Problem."""
        ...

    async def unpack(self, image: str, archive: Path) -> None:
        """Make one of what another machine has packed. Raises Problem, also where that is not the one."""
        ...

    def pulls(self, image: Image) -> bool:
        """Tell whether it has a registry, and the operator permits that it is pulled."""
        ...

    async def pull(self, image: Image) -> None:
        """Pull one from its registry. Raises Problem, also where that is not the one."""
        ...

    async def fetched(self) -> dict[str, int]:
        """List what `unpack` and `pull` have brought, by id, with its bytes. Raises Problem."""
        ...

    async def drop(self, image: str) -> bool:
        """Remove one of these; return False where it is in use. Raises Problem."""
        ...


class ImageSource(Protocol):
    """The images of an engine: interpreters whose `image` is the id of one of them can be given to it."""

    @property
    def transport(self) -> ImageTransport:
        """How they come from and to other machines."""
        ...

    def refusal(self, name: str) -> str:
        """Return why the operator does not permit functions to name this image; empty where he does."""
        ...

    def find(self, name: str) -> AsyncGenerator[Output | FoundImage, None]:
        """Look for an image by its name, pull it where it is not there; yield how that goes, then it.

        Raises Problem `build-failed`, also where it is not permitted. It ends when the stream is left.
        """
        ...

    def build(self, order: ImageBuild) -> AsyncGenerator[Output | FoundImage, None]:
        """Build an image by a Dockerfile unless the same was built already; yield what is printed, then it.

        Raises Problem `build-failed`, also where it names an image that is not permitted, `invalid-request`
        where the operator permits no builds. It ends when the stream is left.
        """
        ...

    async def made(self) -> list[MadeImage]:
        """List the images that go when no revision needs them. Raises Problem.

        They are those that `build` has made, those that came from other machines, and base images that have
        lost their name.
        """
        ...

    async def known(self, ids: Collection[str]) -> list[KnownImage]:
        """List the images that are there with these ids, and those of the platform. Raises Problem."""
        ...

    async def remove(self, image: str) -> bool:
        """Remove one of them by its id; return False while a sandbox is made of it, which it outlives.

        Raises Problem.
        """
        ...


class Engine(Protocol):
    """How sandboxes are made. Between `start` and `close`, any call may be made at any time."""

    forks: bool
    """Whether there are snapshots: `snapshot` and `restore` are called only then."""

    @property
    def images(self) -> ImageSource | None:
        """Where the images are that functions can run in; None where there are none."""
        ...

    async def start(self) -> list[Survivor]:
        """Clean what a former run left behind, and get ready. Raises Problem where this can't work here.

        Return the sandboxes that were kept (see `keep`) when the former run was killed, and still live.
        """
        ...

    async def close(self) -> None:
        """Destroy all that is left."""
        ...

    async def make(self, interpreter: Interpreter, *, awaited: bool) -> Sandbox:
        """Make a blank sandbox with a booted runtime. Raises Problem `no-capacity`.

        Where nobody waits for it (`awaited` is false), more may be done now that makes its `attach` quicker.
        """
        ...

    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:
        """Bring code into a blank sandbox and load it; once only. Returns when the instance serves.

        Raises StartError. Where the sandbox ends meanwhile, it raises EOFError, and `ended` tells more; where
        it had ended before, Untouched.
        """
        ...

    async def snapshot(self, interpreter: Interpreter, assignment: Assignment) -> Sandbox:
        """Load a function once, in a sandbox that serves nothing but is forked by `restore`.

        Only for runtimes that are `forkable`, on an engine that `forks`. Raises StartError, also where the
        function is not fit for it.
        """
        ...

    async def restore(self, snapshot: Sandbox, assignment: Assignment) -> Sandbox:
        """Make a copy of a snapshot; it waits for `attach` with the same assignment, which is quick then.

        Raises Problem `no-capacity`.
        """
        ...

    def keep(self, sandbox: Sandbox, note: str | None) -> None:
        """Have an instance outlive this process, should that be killed; with None, have it end with it again.

        The next run finds it among what `start` returns, with the note. It may be that none does: an engine
        keeps what it can, for a bounded time, and nothing once the whole platform has ended.
        """
        ...

    async def destroy(self, sandbox: Sandbox) -> None:
        """Kill every process in it, wait until they are dead, remove all traces. May be called again.

        It goes on to its end when the caller stops waiting.
        """
        ...

    async def empty(self, stage: str) -> None:
        """Forget what is cached of the stage `container` or `runtime` (see contract.Control.empty).

        Raises Problem `conflict` while there is a sandbox that was made of it.
        """
        ...

    def use(self, sandbox: Sandbox) -> Use:
        """Tell what it uses."""
        ...

    def run(self, job: Job) -> AsyncGenerator[Output | Exit, None]:
        """Run a job in a sandbox of its own; yield what it prints, at last one Exit."""
        ...

    async def shell(
        self,
        interpreter: Interpreter,
        assignment: Assignment,
        command: tuple[str, ...],
        terminal: Terminal | None,
    ) -> Sandbox:
        """Make a sandbox in which a command runs in place of the function, and all else is as it would be.

        The first who connects to its `socket` is who it serves, in the frames of shell_frames.py, at a
        terminal of the sandbox's own, or by pipes. Only then the command is started; the sandbox ends with
        it, by its exit code, or with the connection. Raises StartError, EOFError as `attach` does, and
        Problem `no-capacity`.
        """
        ...

    def guarantees(self) -> list[Guarantee]:
        """List what is promised, and what of it can't be kept on this machine."""
        ...
