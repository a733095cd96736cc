"""The docker engine: sandboxes are containers of dockerd, which wait booted and get their code from outside.

A cold start reads: `make` (ahead of time) → container.py creates → inside.py boots → entering.py furnishes →
… → `attach` → entering.py mounts → inside.py loads. Where a container has a kernel of its own, see ways.py.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.errors

import runtimes.declaration
from function_service import interpreters
from function_service.contract import Exit, Guarantee, Job, Output, Stages, Terminal
from function_service.engines import attaching
from function_service.engines.attaching import Tree
from function_service.engines.base import Assignment, End, ImageSource, Sandbox, Survivor, Untouched, Use
from function_service.engines.docker import guarantees, guest, ways
from function_service.engines.docker.container import Plan, Show
from function_service.engines.docker.cradle import Cradle
from function_service.engines.docker.daemon import Daemon, Ending
from function_service.engines.docker.dockerfiles import Dockerfiles
from function_service.engines.docker.guest import Root
from function_service.engines.docker.image import HostImage
from function_service.engines.docker.images import Images
from function_service.engines.docker.permitted import Permitted
from function_service.engines.docker.ways import SameKernel, Way
from function_service.engines.embedded import cgroup, container, debug, jobs
from function_service.engines.embedded.channel import Channel
from function_service.engines.embedded.grants import Grants
from function_service.engines.embedded.namespaces import Users
from function_service.engines.embedded.nursery import kill
from function_service.lines import LineReader
from pilotlight.datafolder import DataFolder
from pilotlight.descriptors import readable
from pilotlight.ids import short_id
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter, Runtime

_log = logging.getLogger(__name__)
_USUAL_MEMORY = 128 << 20  # bytes; what most functions have is set ahead of time
_BLANK_DEADLINE = 20.0  # seconds
_DEATH_DEADLINE = 10.0  # seconds
_ANSWER_WITHIN = 3.0  # seconds that dockerd has left to tell how a container ended, once that is in the way
_LAST_WORDS = 2.0  # seconds for what a container has said last to come through its tunnel
_CLOSE_WITHIN = 5.0  # seconds for what is being made, or removed
_USUAL_RUNTIME = "runc"
_PROCESSES = 128  # processes and threads in one container
_JOB_PROCESSES = 1024
_KILLED = 128 + signal.SIGKILL


@dataclass(eq=False)
class Handle:
    """The `handle` of a Sandbox. Its descriptors are the engine's, which closes them at its end."""

    container: str  # its name
    folder: Path  # of ours, for it
    pidfd: int
    control: Channel
    group: cgroup.Group
    user: int  # as the host sees it
    inner_user: int
    data_listener: int | None = None  # until it is granted
    carrier: int | None = None  # a pidfd, see ways.Entered
    watching: asyncio.Task[None] | None = None  # it
    watcher: asyncio.Task[None] | None = None
    asking: asyncio.Task[Ending | None] | None = None  # from its death until dockerd has told how it was
    destroying: asyncio.Task[None] | None = None  # from the moment on at which it shall be no more


class DockerEngine:
    """Implements engines.base.Engine."""

    name = "docker"
    forks = False

    def __init__(
        self,
        data: DataFolder,
        interpreters: tuple[Interpreter, ...],
        *,
        runtime: str = "",
        debug: bool = False,
        dockerfiles: bool = False,
        images: str = "",
    ) -> None:
        """`runtime` is an OCI runtime that dockerd knows. With `debug`, debuggers get at instances.

        `dockerfiles` permits images to be built, `images` is the list of those that functions may name.
        """
        self._data = data
        self._interpreters = interpreters
        self._runtime = runtime
        self._debug = debug
        self._runtimes: dict[str, Runtime] = runtimes.declaration.load_all()
        self._daemon = Daemon(data.label)
        self._image = HostImage(self._daemon)
        self._images = Images(self._daemon)
        self._dockerfiles = Dockerfiles(
            self._daemon, self._images, data.label, Permitted(images), builds=dockerfiles
        )
        self._way: Way = SameKernel()
        self._grants = Grants(data.socket("listeners"))
        self._users = Users(0, 0)
        self._first_user = 0  # of containers, as the host sees it
        self._guarantees: list[Guarantee] = []
        self._by_systemd = False  # it writes control groups anew, with what dockerd has told it
        self._sandboxes: dict[str, Sandbox] = {}
        self._making: set[asyncio.Task[Sandbox]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._next_user = 0
        self._taken: set[int] = set()  # users

    @property
    def images(self) -> ImageSource | None:
        """The images of dockerd, and those that are built."""
        return self._dockerfiles

    @property
    def _folders(self) -> Path:
        """Where containers find the way to this engine, and what covers what they shall not see."""
        return self._data.run / "containers"

    async def start(self) -> list[Survivor]:
        """Remove what a former run left, see that there is an image, connect to baas."""
        if os.geteuid() != 0:
            raise Problem(
                "unavailable",
                "The docker engine mounts code into containers that already run, which takes root. "
                "Run Pilotlight as root, or use --engine embedded, which needs no privileges.",
            )
        try:
            information = await self._daemon.information()
            left = await self._daemon.remove_all()
        except Problem as problem:
            raise Problem("unavailable", f"The docker engine can't start. {problem.detail}") from problem
        if left:
            _log.info("action=orphans-removed containers=%d", left)
        if self._runtime and self._runtime not in information["Runtimes"]:
            known = ", ".join(sorted(information["Runtimes"]))
            raise Problem("invalid-request", f"dockerd has no runtime {self._runtime!r}; it has {known}.")
        self._users = guarantees.users(information)
        self._by_systemd = information["CgroupDriver"] == "systemd"
        shutil.rmtree(self._folders, ignore_errors=True)
        (self._folders / "empty").mkdir(parents=True, mode=0o755)
        await asyncio.to_thread(guest.prepare, self._folders, self._interpreters)
        for leftover in self._data.instances.iterdir():
            leftover.unlink()
        # What a job was building when a former run ended belongs to the user of its container still
        self._first_user = guarantees.first_user(information)
        first = self._first_user + self._users.first
        users = range(first, first + self._users.count)
        owner = self._data.builds.stat().st_uid
        await asyncio.to_thread(jobs.give, [self._data.builds], owner, of=users)
        await self._image.name()
        await self._choose_way(self._runtime or information["DefaultRuntime"])
        self._guarantees = guarantees.of(information, self._runtime, own_kernel=self._way.own_kernel)
        await self._dockerfiles.start(information["DockerRootDir"])
        await self._grants.start()
        return []

    async def _choose_way(self, runtime: str) -> None:
        """Find out whether containers of an OCI runtime have the kernel of this machine. Raises Problem."""
        python = runtimes.declaration.choose(self._interpreters, "python")
        if runtime == _USUAL_RUNTIME or python is None:
            return
        root = await self._root(python)
        plan = self._plan("try", root, self._users.first, [(Path(of), at, False) for of, at in root.shown])
        try:
            self._way = await ways.choose(self._daemon, plan, python.executable)
        except Problem as problem:
            detail = f"No container starts with the runtime {runtime!r}. {problem.detail}"
            raise Problem("unavailable", detail) from problem
        _log.info("action=docker-runtime runtime=%s own_kernel=%s", runtime, self._way.own_kernel)

    async def close(self) -> None:
        """Destroy all containers."""
        if self._making:
            await asyncio.wait(self._making, timeout=_CLOSE_WITHIN)
            for making in self._making:
                making.cancel()
            await asyncio.gather(*self._making, return_exceptions=True)
        ends = (self.destroy(s) for s in list(self._sandboxes.values()))
        for error in await asyncio.gather(*ends, return_exceptions=True):
            if error is not None:
                _log.error("A container could not be ended; the next start will do it", exc_info=error)
        if self._background:
            await asyncio.wait(self._background, timeout=_CLOSE_WITHIN)
        await self._way.close()
        await self._grants.close()
        try:
            async with asyncio.timeout(_CLOSE_WITHIN):
                await self._daemon.remove_all()  # what was on its way, too
                await self._image.tidy()
        except (Problem, TimeoutError) as error:
            _log.warning("action=not-swept error=%r: the next start removes what is left", error)
        await self._daemon.close()
        shutil.rmtree(self._folders, ignore_errors=True)

    async def empty(self, stage: str) -> None:
        """Remove the image, which holds the shims too; the next start makes it again (see base.Engine)."""
        if self._sandboxes or self._making:
            raise Problem("conflict", "Containers that were made of it are still in use. Try again later.")
        if stage == "container":
            if self._background:  # a container that is being removed holds its image
                await asyncio.wait(self._background, timeout=_CLOSE_WITHIN)
            await self._image.remove()

    def guarantees(self) -> list[Guarantee]:
        """List what is promised with this dockerd."""
        return self._guarantees

    async def make(self, interpreter: Interpreter, *, awaited: bool) -> Sandbox:
        """Make a blank container (see base.Engine)."""
        runtime = self._runtimes[interpreter.runtime]
        command = runtime.boot(interpreter)
        kind = "fork" if runtime.forkable and interpreter.image is None else "exec"
        order = {
            "kind": kind,
            "boot": list(command) if command else None,
            "shim": f"/runtime/{runtime.name}",
            "rehearse": not awaited,
        }
        return await self._make(interpreter, order)

    async def _make(self, interpreter: Interpreter, order: dict[str, Any], job: Job | None = None) -> Sandbox:
        """Make a container to its end, since what dockerd has begun can't be taken back sooner."""
        making = asyncio.create_task(self._made(interpreter, order, job), name="make a container")
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, making: asyncio.Task[Sandbox]) -> None:
        if not making.cancelled() and making.exception() is None:
            os.close(making.result().output)
            self._run(self.destroy(making.result()), f"destroy {making.result().id}")

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _made(self, interpreter: Interpreter, order: dict[str, Any], job: Job | None) -> Sandbox:
        began = time.perf_counter()
        name = short_id()
        user = self._take_user()
        folder, instance = self._folders / name, self._data.instances / f"{name}.sock"
        cradle = None
        try:
            cradle = Cradle(
                f"{self._data.label}-{name}", folder, instance, self._way, self._first_user + user
            )
            async with asyncio.timeout(_BLANK_DEADLINE):
                root = await self._root(interpreter)
                early = [] if job is None else self._way.early(_trees(job))
                plan = self._plan(name, root, user, self._way.shown(folder, root, early), job)
                blank = await cradle.begin(
                    self._daemon,
                    plan,
                    order,
                    lambda pidfd: self._way.furnish(pidfd, root, terminal=order["kind"] == "shell"),
                )
                group = cgroup.of(blank.pid)
        except BaseException as error:
            self._taken.discard(user)
            if isinstance(error, docker.errors.ImageNotFound):
                self._image.forget()
            said = ""
            if cradle is not None:
                if isinstance(error, EOFError):  # it has ended by itself, and may say why
                    said = await self._daemon.said(cradle.name) + cradle.printed()
                cradle.abandon(self._daemon)
            if isinstance(error, docker.errors.ImageNotFound) and interpreter.image is not None:
                raise self._images.lost(interpreter.image) from error
            raise _not_made(error, said) from error
        handle = Handle(
            *(cradle.name, folder, blank.pidfd, blank.control, group, blank.user, user, blank.data_listener),
            carrier=blank.carrier,
        )
        total = (time.perf_counter() - began) * 1000
        stages = Stages(container=max(0.0, total - blank.runtime), runtime=blank.runtime)
        ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        made = Sandbox(name, interpreter, instance, stages, cradle.output, ended, handle)
        self._sandboxes[name] = made
        handle.watcher = asyncio.create_task(self._watch(made, handle), name=f"watch {name}")
        if blank.carrier is not None:
            watching = self._watch_carrier(made, handle.pidfd, blank.carrier)
            handle.watching = asyncio.create_task(watching, name=f"watch the carrier of {name}")
        return made

    def _plan(self, name: str, root: Root, user: int, shown: Sequence[Show], job: Job | None = None) -> Plan:
        return Plan(
            name=f"{self._data.label}-{name}",
            label=self._data.label,
            image=root.image,
            command=root.command,
            environment=root.environment,
            user=user,
            memory=_USUAL_MEMORY if job is None else job.memory,
            processes=(_PROCESSES if job is None else _JOB_PROCESSES) + self._way.processes,
            shown=tuple(shown),
            tmp=self._way.tmp,
            runtime=self._runtime,
            spoken_to=self._way.own_kernel,
        )

    def _take_user(self) -> int:
        while True:
            self._next_user = (self._next_user + 1) % self._users.count
            if (user := self._users.first + self._next_user) not in self._taken:
                self._taken.add(user)
                return user

    async def _root(self, interpreter: Interpreter) -> Root:
        """Return what the container of an interpreter is made of. Raises Problem."""
        own = self._runtimes[interpreter.runtime].forkable and interpreter.image is None
        parent = interpreter if own else runtimes.declaration.choose(self._interpreters, "python")
        if parent is None:
            raise Problem("no-capacity", "No Python was found that could run process 1 of a container.")
        if interpreter.image is not None:
            inspected = await self._images.inspect(interpreter.image)
            return guest.root(
                *(self._folders, parent, inspected), module=self._way.process_one, whole=interpreter.whole
            )
        # Builds of one language may use what another version has brought along, such as npm
        chosen = (parent, interpreter)
        seen = [i for i in self._interpreters if i in chosen or not self._runtimes[i.runtime].forkable]
        folders = [i.folder for i in seen if i.folder]
        shown = list(dict.fromkeys(container.binds(folders)))
        hidden = container.hidden([*folders, *(i.executable for i in seen)])
        empty = str(self._folders / "empty")
        return Root(
            image=await self._image.name(),
            command=guest.process_one(self._way.process_one, parent.executable),
            environment={"LC_ALL": "C.UTF-8"},
            shown=(*((path, path) for path in shown), *((empty, path) for path in hidden)),
            kept=shown,
            gone=[],
            later=guest.PLACES,
        )

    async def _watch(self, sandbox: Sandbox, handle: Handle) -> None:
        """Wait for the death of process 1, with which the kernel ends all others, and tell how it was."""
        await readable(handle.pidfd)
        if handle.carrier is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await readable(handle.carrier)
        # Docker removes the group soon, and may say nothing of such a kill
        killed, peak = handle.group.out_of_memory(), handle.group.memory_peak()
        code: int | None = _KILLED
        if handle.destroying is None and not killed:
            handle.asking = asyncio.create_task(self._daemon.ending(handle.container), name="ask for the end")
            await asyncio.wait([handle.asking])
            ending = None if handle.asking.cancelled() else handle.asking.result()
            code = ending.code if ending is not None else None
            killed = ending is not None and ending.out_of_memory
        if code is not None and code > 128:
            sandbox.ended.set_result(End(None, code - 128, killed, peak))
        else:
            sandbox.ended.set_result(End(code, None, killed, peak))

    async def _watch_carrier(self, sandbox: Sandbox, pidfd: int, carrier: int) -> None:
        """End a container into which nothing leads any more."""
        await readable(carrier)
        await asyncio.wait([sandbox.ended], timeout=_LAST_WORDS)
        kill(pidfd)

    async def snapshot(self, interpreter: Interpreter, assignment: Assignment) -> Sandbox:  # noqa: ARG002
        """Refuse, as `forks` says (see base.Engine)."""
        raise Problem("invalid-request", "The docker engine makes no snapshots.")

    async def restore(self, snapshot: Sandbox, assignment: Assignment) -> Sandbox:  # noqa: ARG002
        """Refuse, as `forks` says (see base.Engine)."""
        raise Problem("invalid-request", "The docker engine makes no snapshots.")

    def keep(self, sandbox: Sandbox, note: str | None) -> None:
        """Keep nothing (see base.Engine): the next run removes all containers of this one."""

    async def shell(
        self,
        interpreter: Interpreter,
        assignment: Assignment,
        command: tuple[str, ...],
        terminal: Terminal | None,
    ) -> Sandbox:
        """Make a container that waits for who shall have its terminal (see base.Engine)."""
        assignment, told = attaching.of_shell(assignment, command, terminal)
        made = await self._make(interpreter, {"kind": "shell"})
        try:
            await self._assign(made, assignment, told)
        except BaseException:
            os.close(made.output)
            self._run(self.destroy(made), f"destroy {made.id}")
            raise
        return made

    async def attach(self, sandbox: Sandbox, assignment: Assignment) -> None:
        """Bring code into it (see base.Engine)."""
        runtime = self._runtimes[sandbox.interpreter.runtime]
        door = debug.Door(runtime.debugger, sandbox.socket) if self._debug and runtime.debugger else None
        try:
            await self._assign(sandbox, assignment, {} if door is None else {"debug": door.port}, door)
        finally:
            if door is not None:
                door.close()

    async def _assign(
        self, sandbox: Sandbox, assignment: Assignment, more: dict[str, Any], door: debug.Door | None = None
    ) -> None:
        """Bring code into it, and have it become the function, or what `more` says is to run in its place."""
        handle = self._handle(sandbox)
        trees = [] if assignment.command else [(assignment.code, "/function", False)]
        if assignment.dependencies is not None:
            trees.append((assignment.dependencies, "/dependencies", False))
            modules = assignment.dependencies / "node_modules"
            if sandbox.interpreter.image is not None and modules.is_dir() and not modules.is_symlink():
                trees.append((modules, "/node_modules", False))
        if door is not None:
            trees += door.trees
        runtime = self._runtimes[sandbox.interpreter.runtime]
        message = attaching.message_of(assignment, runtime, sandbox.interpreter) | more
        identity = {"app": assignment.app, "function": assignment.function}
        if handle.data_listener is not None:
            self._grants.grant(sandbox.id, handle.data_listener, kind="data", egress=[], **identity)
            handle.data_listener = None
        try:
            await self._attach(
                sandbox, message, trees, assignment.egress, identity, memory=assignment.memory, door=door
            )
        finally:
            # The start itself may use all the CPU that is free, since the caller waits for it
            asyncio.get_running_loop().call_soon(self._limit_cpu, handle, assignment.memory, assignment.cpu)

    async def _attach(
        self,
        sandbox: Sandbox,
        message: dict[str, Any],
        trees: list[Tree],
        egress: tuple[str, ...],
        identity: dict[str, str],
        *,
        memory: int,
        processes: int = _PROCESSES,
        proxy: str = "egress",
        door: debug.Door | None = None,
    ) -> None:
        """Bring code, send the message, return when it is ready. /tmp counts towards the memory."""
        handle = self._handle(sandbox)
        if sandbox.ended.done():
            raise Untouched
        try:
            handle.group.limit(memory, processes + self._way.processes)
            await self._way.bring(handle.folder, handle.pidfd, trees, message["tmp"])
        except OSError as error:
            if _is_dead(handle.pidfd):
                raise Untouched from error
            detail = f"Its code can't be brought into the container: {error}."
            raise Problem("no-capacity", detail, retry_after=1) from error
        message["egress"] = bool(egress)
        attaching.send(handle.control, message, [] if door is None else [door.listener])
        await attaching.until_ready(handle.control, self._grants, sandbox.id, egress, identity, proxy=proxy)

    def _limit_cpu(self, handle: Handle, memory: int, cores: float) -> None:
        if handle.destroying is not None:
            return
        try:
            handle.group.limit_cpu(cores)
        except OSError:
            if _is_dead(handle.pidfd):
                return
            raise
        if self._by_systemd:
            self._run(self._daemon.tell_limits(handle.container, memory, cores), "tell limits")

    @staticmethod
    def _handle(sandbox: Sandbox) -> Handle:
        handle: Handle = sandbox.handle
        return handle

    async def destroy(self, sandbox: Sandbox) -> None:
        """Kill it and remove every trace (see base.Engine), also when the caller stops waiting."""
        handle = self._handle(sandbox)
        if handle.destroying is None:
            work = self._destroy(sandbox, handle)
            handle.destroying = asyncio.create_task(work, name=f"destroy {sandbox.id}")
        await asyncio.shield(handle.destroying)

    async def _destroy(self, sandbox: Sandbox, handle: Handle) -> None:
        self._grants.revoke(sandbox.id)
        kill(handle.pidfd)
        if handle.asking is not None:
            await asyncio.wait([sandbox.ended], timeout=_ANSWER_WITHIN)
            handle.asking.cancel()  # a dockerd that is slow holds up nobody for long
        async with asyncio.timeout(_DEATH_DEADLINE):
            await asyncio.shield(sandbox.ended)
        if handle.watcher is not None:
            await handle.watcher
        if handle.watching is not None:
            handle.watching.cancel()
            await asyncio.gather(handle.watching, return_exceptions=True)
        if handle.carrier is not None:
            os.close(handle.carrier)
        os.close(handle.pidfd)
        if handle.data_listener is not None:
            os.close(handle.data_listener)
        handle.control.close()
        sandbox.socket.unlink(missing_ok=True)
        debug.place(sandbox.socket).unlink(missing_ok=True)
        self._run(self._bury(handle), f"bury {sandbox.id}")
        del self._sandboxes[sandbox.id]

    async def _bury(self, handle: Handle) -> None:
        """Have dockerd remove what is left of a dead container, however long that takes it."""
        await asyncio.shield(self._daemon.bury(handle.container))
        await asyncio.to_thread(shutil.rmtree, handle.folder, ignore_errors=True)
        self._taken.discard(handle.inner_user)

    def use(self, sandbox: Sandbox) -> Use:
        """Tell what it uses (see base.Engine)."""
        group = self._handle(sandbox).group
        return Use(group.memory(), group.cpu_seconds(), group.processes())

    async def run(self, job: Job) -> AsyncGenerator[Output | Exit, None]:
        """Run a job (see base.Engine and embedded/jobs.py)."""
        interpreter = runtimes.declaration.choose(self._interpreters, job.runtime)
        if job.image is not None:
            interpreter = interpreters.in_image(job.image, job.runtime)
        if interpreter is None:
            raise Problem("invalid-request", f"This machine has no runtime {job.runtime}.")
        trees = _trees(job)
        writable = [path for path, _, can_write in trees if can_write]
        owner = self._data.builds.stat().st_uid
        early = self._way.early(trees)
        blank = await self._make(interpreter, {"kind": "exec", "boot": None}, job)
        handle = self._handle(blank)
        reader = LineReader(blank.output)
        try:
            self._limit_cpu(handle, job.memory, job.cpu)
            await jobs.hand_over(writable, handle.user, of={owner})
            message = jobs.message_of(job)
            identity = {"app": "", "function": "build"}
            await self._attach(
                *(blank, message, [tree for tree in trees if tree not in early], job.egress, identity),
                memory=job.memory,
                processes=_JOB_PROCESSES,
                proxy="build",
            )
            async with contextlib.aclosing(
                jobs.follow(blank, reader, job, writable, lambda: kill(handle.pidfd))
            ) as stream:
                async for item in stream:
                    if isinstance(item, Output):
                        yield item
                    else:
                        ended = item
        except EOFError:
            await self.destroy(blank)
            async for line, _ in reader.lines():  # it has said why
                yield Output(line)
            ended = Exit(1, "the container ended before the command was started")
        finally:
            reader.close()
            taking = asyncio.create_task(self._take_back(blank, writable, owner), name="take back")
            self._background.add(taking)
            taking.add_done_callback(self._background.discard)
            await asyncio.shield(taking)
        yield ended  # only now, since whoever waits for it goes on with the folders

    async def _take_back(self, sandbox: Sandbox, writable: list[Path], owner: int) -> None:
        """End the container of a job, and give its folders to their owner again, however the job ended."""
        try:
            await self.destroy(sandbox)
        finally:
            await jobs.hand_over(writable, owner, of={self._handle(sandbox).user})


def _trees(job: Job) -> list[Tree]:
    return [(Path(m.source), m.target, m.writable) for m in job.mounts]


def _is_dead(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False


def _not_made(error: BaseException, said: str) -> BaseException:
    """Return what to raise where a container could not be made."""
    if not isinstance(error, (OSError, EOFError, TimeoutError, docker.errors.ImageNotFound)):
        return error
    late = f"it was not there within {_BLANK_DEADLINE:g} s"
    cause = late if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return Problem("no-capacity", f"No container could be made: {cause}. {said}".rstrip(), retry_after=1)
