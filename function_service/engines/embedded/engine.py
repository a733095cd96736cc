"""The embedded engine: sandboxes out of what Linux has, forked from booted zygotes.

A cold start reads: `make` (ahead of time) → zygote.py forks → sandbox.py isolates → … → `attach` →
sandbox.py mounts, confines, loads.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import runtimes.declaration
from function_service.contract import Exit, Guarantee, Job, Output, Stages, Terminal
from function_service.engines import attaching
from function_service.engines.base import Assignment, ImageSource, Sandbox, Survivor, Use
from function_service.engines.embedded import (
    cgroup,
    debug,
    guarantees,
    jobs,
    messages,
    survivors,
)
from function_service.engines.embedded import sandbox as inside
from function_service.engines.embedded.channel import Channel
from function_service.engines.embedded.cradle import Cradle, remove
from function_service.engines.embedded.former import Former, Kept, find
from function_service.engines.embedded.grants import Grants
from function_service.engines.embedded.handle import Handle
from function_service.engines.embedded.namespaces import Users
from function_service.engines.embedded.nursery import Anchor, Forker, Zygote, kill
from function_service.engines.embedded.roots import Roots
from function_service.engines.embedded.yielding import Yielding
from function_service.layers.store import LayerStore
from function_service.lines import LineReader
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter, Runtime

_log = logging.getLogger(__name__)
_USUAL_MEMORY = 128 << 20  # bytes; what most functions have is set ahead of time
_BLANK_DEADLINE = 20.0  # seconds
_DEATH_DEADLINE = 10.0  # seconds
PROCESSES = 128  # processes and threads in one sandbox


class EmbeddedEngine:
    """Implements engines.base.Engine."""

    name = "embedded"
    forks = True
    images: ImageSource | None = None  # its container layer is the host's own system

    def __init__(
        self,
        data: DataFolder,
        layers: LayerStore,
        users: Users,
        interpreters: tuple[Interpreter, ...],
        *,
        anchor: int | None = None,
        debug: bool = False,
    ) -> None:
        """With an anchor, a descriptor, instances can outlive this process until its other end is closed.

        With `debug`, debuggers get at instances: see debug.py.
        """
        self._debug = debug
        self._data = data
        self._anchor = Anchor(anchor, data.zygotes) if anchor is not None else None
        self._roots = Roots(data, layers, interpreters)
        self._users = users
        self._runtimes: dict[str, Runtime] = runtimes.declaration.load_all()
        self._interpreters = interpreters
        self._zygotes: dict[str, asyncio.Task[Zygote]] = {}
        self._grants = Grants(data.socket("listeners"))
        self._hierarchy = cgroup.find(data.label)
        self._formers = survivors.Formers(self._hierarchy)
        self._yielding = Yielding(cgroup.above(self._hierarchy))
        self._yields: asyncio.Task[None] | None = None
        self._sandboxes: dict[str, Sandbox] = {}
        self._taking_back: set[asyncio.Task[None]] = set()  # what jobs have had
        self._next_user = 0
        self._taken: Counter[int] = Counter()  # users, and how many sandboxes each has
        self._container: str | None = None

    async def start(self) -> list[Survivor]:
        """Take over or remove what a former run left, make the container layer, connect to baas."""
        kept = await find(self._data.zygotes)
        spare = {name for _, those in kept for each in those for name in (each.id, each.snapshot) if name}
        cgroup.sweep(self._hierarchy, spare=spare)
        found = [survivor for former, those in kept for survivor in self._adopt(former, those)]
        for leftover in self._data.instances.iterdir():
            if leftover.stem not in self._sandboxes:
                leftover.unlink()
        if self._users.count:
            # What a job was building when a former run ended belongs to the user of its sandbox still
            sandboxes = range(self._users.first, self._users.first + self._users.count)
            owner = self._data.builds.stat().st_uid
            await asyncio.to_thread(jobs.give, [self._data.builds], owner, of=sandboxes)
        self._container = await asyncio.to_thread(self._roots.make_container)
        await self._grants.start()
        if "cpu" in self._hierarchy.folders:
            self._yields = asyncio.create_task(self._yielding.run(), name="let others go first")
        return found

    def _adopt(self, former: Former, those: list[Kept]) -> list[Survivor]:
        """Take over what the zygote of a former run has kept."""
        adopted = []
        for each in those:
            sandbox = survivors.take_over(former, each, self._hierarchy, self._data.instances)
            for grant in each.grants:
                self._grants.grant(each.id, grant.descriptor, **grant.message)
            self._sandboxes[each.id] = sandbox
            self._taken[self._handle(sandbox).uid] += 1
            self._yielding.watch(self._handle(sandbox).group, sandbox.id)
            adopted.append(Survivor(sandbox, each.memo.note))
        self._formers.follow(former)
        return adopted

    async def close(self) -> None:
        """Destroy all sandboxes, the zygotes and the control groups."""
        if self._yields is not None:
            self._yields.cancel()
            for error in await asyncio.gather(self._yields, return_exceptions=True):
                if not isinstance(error, asyncio.CancelledError):
                    _log.error("Functions at their CPU limit no longer gave way", exc_info=error)
        ends = (self.destroy(s) for s in list(self._sandboxes.values()))
        for error in await asyncio.gather(*ends, return_exceptions=True):
            if error is not None:
                _log.error("A sandbox could not be ended; its zygote's end will do it", exc_info=error)
        await asyncio.gather(*self._taking_back, return_exceptions=True)
        await self._end_zygotes()
        await self._formers.close()
        await self._grants.close()
        await asyncio.to_thread(cgroup.sweep, self._hierarchy, top=True)
        shutil.rmtree(self._data.run / "roots", ignore_errors=True)

    async def _end_zygotes(self) -> None:
        zygotes, self._zygotes = self._zygotes, {}
        for booting in zygotes.values():
            if booting.done() and not booting.exception():
                await booting.result().close()
            else:
                booting.cancel()
                await asyncio.gather(booting, return_exceptions=True)

    async def empty(self, stage: str) -> None:
        """End the zygotes and remove the layers that a start makes again (see base.Engine)."""
        booted = (z.result() for z in self._zygotes.values() if z.done() and not z.exception())
        if self._sandboxes or any(zygote.has_children for zygote in booted):
            raise Problem("conflict", "Sandboxes that were made of it are still in use. Try again later.")
        await self._end_zygotes()
        kinds = {"runtime"}
        if stage == "container":
            kinds.add("container")
            self._container = None
        await asyncio.to_thread(self._roots.remove, kinds)

    def guarantees(self) -> list[Guarantee]:
        """List what is promised on this machine."""
        return guarantees.inspect_with(self._hierarchy, self._users)

    def _parent_of(self, interpreter: Interpreter) -> Interpreter:
        """Return the interpreter whose zygote forks sandboxes for this one."""
        if self._runtimes[interpreter.runtime].forkable:
            return interpreter
        found = runtimes.declaration.choose(self._interpreters, "python")
        if found is None:
            raise Problem("no-capacity", "No Python was found that could make sandboxes.")
        return found

    async def _zygote(self, interpreter: Interpreter) -> Zygote:
        """Return the zygote for an interpreter; it is booted once, however many wait for it."""
        parent = self._parent_of(interpreter)
        booting = self._zygotes.get(parent.name)
        if booting is None or (booting.done() and (booting.exception() or not booting.result().alive)):
            booting = asyncio.create_task(self._boot(parent, booting), name=f"boot {parent.name}")
            self._zygotes[parent.name] = booting
        return await asyncio.shield(booting)

    async def _boot(self, interpreter: Interpreter, former: asyncio.Task[Zygote] | None) -> Zygote:
        if former is not None and not former.exception():
            await former.result().close()
        plan = {
            "shim": str(self._runtimes[interpreter.runtime].shim),
            "own_user": self._users.count > 0,
            "container": self._roots.plan(interpreter, str(self._container)),
        }
        zygote = Zygote(interpreter, self._anchor)
        await zygote.boot(plan)
        return zygote

    def _user(self) -> int:
        if self._users.count == 0:
            return self._users.first
        while True:
            self._next_user = (self._next_user + 1) % self._users.count
            if not self._taken[uid := self._users.first + self._next_user]:
                return uid

    async def make(self, interpreter: Interpreter, *, awaited: bool) -> Sandbox:
        """Make a blank sandbox (see base.Engine)."""
        runtime = self._runtimes[interpreter.runtime]
        command = runtime.boot(interpreter)
        kind = "fork" if runtime.forkable else "exec"
        return await self._make(interpreter, kind, list(command) if command else None, ahead=not awaited)

    async def _make(
        self, interpreter: Interpreter, kind: str, boot: list[str] | None, *, ahead: bool = False
    ) -> Sandbox:
        began = time.perf_counter()
        if self._container is None:  # it was emptied
            self._container = await asyncio.to_thread(self._roots.make_container)
        rooted = time.perf_counter()
        zygote = await self._zygote(interpreter)
        zygote_ms = (time.perf_counter() - rooted) * 1000
        uid = self._user()
        cradle = Cradle(self._data.instances, self._hierarchy)
        try:
            order = {"kind": kind, "uid": uid, "boot": boot, "rehearse": ahead and kind == "fork"}
            if ahead:
                cradle.group.give_way()
            await cradle.fork(zygote, order, _USUAL_MEMORY, PROCESSES)
            async with asyncio.timeout(_BLANK_DEADLINE):
                message, received = await cradle.control.receive()
        except BaseException as error:
            raise _not_made(error, await cradle.abandon()) from error
        total = (time.perf_counter() - began) * 1000
        booted = message["runtime"] + zygote_ms
        stages = Stages(container=max(0.0, total - booted), runtime=booted)
        return self._take_over(cradle, zygote, interpreter, stages, received[0], uid)

    def _take_over(
        self,
        cradle: Cradle,
        zygote: Zygote,
        interpreter: Interpreter,
        stages: Stages,
        data_listener: int,
        uid: int,
    ) -> Sandbox:
        handle = Handle(cradle.pidfd, cradle.control, cradle.group, uid, data_listener, zygote)
        if self._anchor is not None:
            handle.output = os.dup(cradle.output)
        made = Sandbox(cradle.id, interpreter, cradle.socket, stages, cradle.output, cradle.ended, handle)
        self._sandboxes[made.id] = made
        self._taken[uid] += 1
        return made

    async def snapshot(self, interpreter: Interpreter, assignment: Assignment) -> Sandbox:
        """Import a function once, to be forked by `restore` (see base.Engine and snapshot.py)."""
        made = await self._make(interpreter, "snapshot", None)
        try:
            await self.attach(made, assignment)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.destroy(made)))
            os.close(made.output)
            raise
        handle = self._handle(made)
        handle.forker = Forker(f"The snapshot of {assignment.function}", partial(kill, handle.pidfd))
        handle.forker.follow(handle.control)
        return made

    async def restore(self, snapshot: Sandbox, assignment: Assignment) -> Sandbox:
        """Fork a snapshot; the copy waits for its `attach` (see base.Engine)."""
        began = time.perf_counter()
        zygote = await self._zygote(snapshot.interpreter)
        parent = self._handle(snapshot)
        if parent.forker is None:
            raise Problem("internal", "That sandbox is no snapshot.")
        cradle = Cradle(self._data.instances, self._hierarchy)
        try:
            async with asyncio.timeout(_BLANK_DEADLINE):
                await cradle.fork(parent.forker, {}, assignment.memory, PROCESSES, cradle.note)
                await cradle.control.receive()  # it has left the namespaces of the snapshot
                listeners = await self._furnish(zygote, cradle, assignment)
        except BaseException as error:
            raise _not_made(error, await cradle.abandon()) from error
        stages = Stages(container=(time.perf_counter() - began) * 1000)
        made = self._take_over(cradle, zygote, snapshot.interpreter, stages, listeners[0], parent.uid)
        handle = self._handle(made)
        handle.snapshot = snapshot.id
        handle.watcher = asyncio.create_task(cradle.watch(), name=f"watch {made.id}")
        handle.egress_listener = listeners[1] if assignment.egress else None
        return made

    async def _furnish(self, zygote: Zygote, cradle: Cradle, assignment: Assignment) -> list[int]:
        """Have the zygote mount what a copy of a snapshot sees; return its listeners: data, egress."""
        mine, theirs = messages.pair()
        channel = Channel(mine)
        ports = [inside.DATA_PORT, *([inside.EGRESS_PORT] if assignment.egress else [])]
        try:
            with contextlib.closing(theirs):
                order = {
                    "fork": f"{cradle.id}-deliver",
                    "kind": "deliver",
                    "tmp": inside.tmp_options(assignment.memory // 2),
                    "ports": ports,
                }
                pidfd = await zygote.fork(order, [theirs.fileno(), cradle.pidfd], lambda _: None)
                os.close(pidfd)
            return (await channel.receive())[1]
        finally:
            channel.close()

    async def shell(
        self,
        interpreter: Interpreter,
        assignment: Assignment,
        command: tuple[str, ...],
        terminal: Terminal | None,
    ) -> Sandbox:
        """Make a sandbox that waits for who shall have its terminal (see base.Engine and shell.py)."""
        assignment, told = attaching.of_shell(assignment, command, terminal)
        made = await self._make(interpreter, "shell", None)
        try:
            await self._assign(made, assignment, told)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.destroy(made)))
            os.close(made.output)
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
        trees = [(assignment.code, "/function", False)]
        if assignment.dependencies is not None:
            trees.append((assignment.dependencies, "/dependencies", False))
        runtime = self._runtimes[sandbox.interpreter.runtime]
        message = attaching.message_of(assignment, runtime, sandbox.interpreter)
        message |= more
        if door is not None:
            trees += door.trees
        handle = self._handle(sandbox)
        handle.group.give_way_no_more()
        handle.group.limit(assignment.memory, PROCESSES)
        identity = {"app": assignment.app, "function": assignment.function}
        egress = assignment.egress
        if handle.watcher is not None:  # a copy of a snapshot: the code is there, and knows the rest
            message, trees, egress = {}, [], ()
        try:
            self._send(handle, message, trees, egress, door)
            self._grant(sandbox, handle, assignment, identity)
            await attaching.until_ready(handle.control, self._grants, sandbox.id, egress, identity)
        finally:
            # The start itself may use all the CPU that is free, since the caller waits for it
            asyncio.get_running_loop().call_soon(self._limit_cpu, handle, assignment.cpu, assignment.function)

    @staticmethod
    def _send(
        handle: Handle,
        message: dict[str, Any],
        trees: list[tuple[Path, str, bool]],
        egress: tuple[str, ...],
        door: debug.Door | None = None,
    ) -> None:
        """Send the message and the mounts. /tmp counts towards the memory."""
        message |= {"mounts": [target for _, target, _ in trees], "egress": bool(egress)}
        with attaching.opened(trees) as descriptors:
            doors = [] if door is None else [door.listener]
            attaching.send(handle.control, message, [*descriptors, *doors])

    def _grant(
        self, sandbox: Sandbox, handle: Handle, assignment: Assignment, identity: dict[str, str]
    ) -> None:
        """Grant the listeners that are there already; who connects before that waits in their backlog."""
        if handle.data_listener is not None:
            self._grants.grant(sandbox.id, handle.data_listener, kind="data", egress=[], **identity)
            handle.data_listener = None
        if handle.egress_listener is not None:
            names = list(assignment.egress)
            self._grants.grant(sandbox.id, handle.egress_listener, kind="egress", egress=names, **identity)
            handle.egress_listener = None

    def _limit_cpu(self, handle: Handle, cores: float, function: str) -> None:
        if handle.destroying is None:
            handle.group.limit_cpu(cores)
            self._yielding.watch(handle.group, function)

    @staticmethod
    def _handle(sandbox: Sandbox) -> Handle:
        handle: Handle = sandbox.handle
        return handle

    def keep(self, sandbox: Sandbox, note: str | None) -> None:
        """Have it outlive this process (see base.Engine and survivors.py)."""
        handle = self._handle(sandbox)
        if handle.zygote is None or handle.output is None or handle.destroying is not None:
            return
        if note is None:
            handle.zygote.drop(sandbox.id)
            return
        survivors.keep(sandbox, handle, self._grants.of(sandbox.id), note)

    async def destroy(self, sandbox: Sandbox) -> None:
        """Kill it and remove every trace (see base.Engine), also when the caller stops waiting."""
        handle = self._handle(sandbox)
        if handle.destroying is None:
            work = self._destroy(sandbox, handle)
            handle.destroying = asyncio.create_task(work, name=f"destroy {sandbox.id}")
        await asyncio.shield(handle.destroying)

    async def _destroy(self, sandbox: Sandbox, handle: Handle) -> None:
        if handle.zygote is not None:
            handle.zygote.drop(sandbox.id)
        self._grants.revoke(sandbox.id)
        kill(handle.pidfd)
        if handle.former is not None:
            handle.former.kill(sandbox.id)
        async with asyncio.timeout(_DEATH_DEADLINE):
            await asyncio.shield(sandbox.ended)
        if handle.forker is not None:
            await handle.forker.unfollow()
        if handle.watcher is not None:
            await handle.watcher
        for descriptor in (handle.pidfd, handle.output, handle.data_listener, handle.egress_listener):
            if descriptor is not None:
                os.close(descriptor)
        handle.control.close()
        sandbox.socket.unlink(missing_ok=True)
        debug.place(sandbox.socket).unlink(missing_ok=True)
        self._yielding.forget(handle.group)
        await remove(handle.group)
        del self._sandboxes[sandbox.id]
        if handle.former is not None:
            return  # its user stays taken: a snapshot that it was forked from may still be ending
        self._taken[handle.uid] -= 1
        if not self._taken[handle.uid]:
            del self._taken[handle.uid]

    def use(self, sandbox: Sandbox) -> Use:
        """Tell what it uses (see base.Engine)."""
        group = self._handle(sandbox).group
        return Use(group.memory(), group.cpu_seconds(), group.processes())

    async def run(self, job: Job) -> AsyncGenerator[Output | Exit, None]:
        """Run a job (see base.Engine and jobs.py)."""
        interpreter = runtimes.declaration.choose(self._interpreters, job.runtime)
        if interpreter is None:
            raise Problem("invalid-request", f"This machine has no runtime {job.runtime}.")
        trees = [(Path(m.source), m.target, m.writable) for m in job.mounts]
        writable = [path for path, _, can_write in trees if can_write]
        owner = self._data.builds.stat().st_uid
        blank = await self._make(interpreter, "exec", None)
        handle = self._handle(blank)
        reader = LineReader(blank.output)
        try:
            handle.group.limit(job.memory, 1024)
            self._limit_cpu(handle, job.cpu, "build")
            if self._users.count:
                await jobs.hand_over(writable, handle.uid, of={owner})
            identity = {"app": "", "function": "build"}
            self._send(handle, jobs.message_of(job), trees, job.egress)
            await attaching.until_ready(
                handle.control, self._grants, blank.id, job.egress, identity, proxy="build"
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
            ended = Exit(1, "the sandbox ended before the command was started")
        finally:
            reader.close()
            work = self._take_back(blank, writable, owner)
            task = asyncio.create_task(work, name=f"take back {blank.id}")
            self._taking_back.add(task)
            task.add_done_callback(self._taking_back.discard)
            await asyncio.shield(task)
        yield ended  # only now, since whoever waits for it goes on with the folders

    async def _take_back(self, sandbox: Sandbox, writable: list[Path], owner: int) -> None:
        """End the sandbox of a job, and give its folders to their owner again, however the job ended."""
        try:
            await self.destroy(sandbox)
        finally:
            if self._users.count:
                await jobs.hand_over(writable, owner, of={self._handle(sandbox).uid})


def _not_made(error: BaseException, printed: str) -> BaseException:
    """Return what to raise where a sandbox could not be made."""
    if not isinstance(error, (OSError, EOFError, TimeoutError, Problem)):
        return error
    cause = str(error).rstrip(".") or type(error).__name__
    return Problem("no-capacity", f"No sandbox could be made: {cause}. {printed}".rstrip(), retry_after=1)
