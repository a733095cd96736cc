"""A function service without sandboxes: it implements the contract in memory, and notes what was asked of it."""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable

from function_service.contract import (
    PLATFORM,
    Access,
    Actor,
    App,
    AuditEntry,
    Control,
    Ended,
    Exit,
    FunctionConfig,
    FunctionStatus,
    Guarantee,
    ImageStatus,
    Imported,
    InstanceStatus,
    Invocations,
    Key,
    Layer,
    Lease,
    LogLine,
    Opened,
    Recall,
    Revision,
    Route,
    RouteTable,
    Scope,
    Stages,
    Story,
    Terminal,
    Usage,
    Vault,
)
from pilotlight import sockets
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem
from pilotlight.rpc import Server, peer
from tests.fakes.instances import Behaviour, FakeInstance, hello

STAGES = Stages(container=3.0, runtime=2.0, code=1.0)


class FakeFunctionService:
    """Serves Invocations, Control and Vault. `acquire` waits for `gate` (open at first)."""

    def __init__(self, data: DataFolder) -> None:
        self.data = data
        self.routes: dict[str, Route] = {}
        self.behaviours: dict[str, Behaviour] = {}
        self.keys_by_digest: dict[str, str] = {}  # keys that may all
        self.more_keys: list[Key] = []
        self.actors: list[Actor] = []  # who made the changes
        self.idle = 30.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuse: Callable[[str], Problem | None] = lambda function: None
        self.capacity = 10_000
        self.acquires = 0
        self.acquiring = 0
        self.cancelled = 0
        self.leases: dict[str, FakeInstance] = {}
        self.instances_made: list[FakeInstance] = []
        self.idle_instances: dict[str, list[FakeInstance]] = {}
        self.released: list[str] = []
        self.claimed: list[str] = []
        self.stopped: list[tuple[str, str]] = []
        self.diagnosed: list[str] = []
        self.diagnosis: tuple[str, str, list[str]] = (
            "crashed",
            "The process exited with 1.",
            ["Traceback", "boom"],
        )
        self.usage: list[Usage] = []
        self.secrets_set: dict[str, str] = {}
        self.deleted: list[str] = []
        self.emptied: list[str] = []
        self.shells: list[tuple[str, tuple[str, ...], Terminal | None, str]] = []  # and what became of each
        self.shell_ends: asyncio.Future[Exit] | None = None  # of the last one
        self.shell_writer: asyncio.StreamWriter | None = None  # from its sandbox to the gateway
        self.lines = [LogLine(time=1.0, instance="i1", line=f"line {n}") for n in range(3)]
        self._streams: set[asyncio.Queue[RouteTable | Recall | Ended]] = set()
        self._numbers = itertools.count(1)
        self._server: Server | None = None

    async def start(self) -> None:
        self._server = Server(
            self.data.socket("function-service"), {Invocations: self, Control: self, Vault: self}
        )
        await self._server.start()

    async def stop_serving(self) -> None:
        """Go away as a service that is restarted; the instances live on."""
        assert self._server is not None
        await self._server.close()
        self._server = None
        self.leases.clear()

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()
        for instance in self.instances_made:
            await instance.kill()

    # what tests do

    def deploy(
        self, name: str, behaviour: Behaviour = hello, *, revision: str = "r1", **route: object
    ) -> None:
        """Make a revision live."""
        values = {"access": Access.PUBLIC, "timeout": 10.0, "concurrency": 1, "max_instances": 20, **route}
        self.behaviours[f"{name}/{revision}"] = behaviour
        self.routes[name] = Route(function=name, app="app", revision=revision, **values)  # type: ignore[arg-type]
        self.idle_instances.pop(name, None)
        self.tell(self.table())

    def table(self) -> RouteTable:
        return RouteTable(dict(self.routes), {key.sha256: key for key in self.all_keys()})

    def all_keys(self) -> list[Key]:
        return [
            *(
                Key(id=key, name=key, sha256=digest, created=1.0)
                for digest, key in self.keys_by_digest.items()
            ),
            *self.more_keys,
        ]

    def allow(self, text: str, *scopes: Scope, app: str | None = None, expires: float | None = None) -> None:
        """Make a key whose text is known."""
        digest = hashlib.sha256(text.encode()).hexdigest()
        key = Key(id=text, name=text, sha256=digest, created=1.0, scopes=scopes, app=app, expires=expires)
        self.more_keys.append(key)
        self.tell(self.table())

    def tell(self, event: RouteTable | Recall | Ended) -> None:
        for stream in self._streams:
            stream.put_nowait(event)

    async def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Wait until condition holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.001)

    # Invocations

    async def events(self) -> AsyncIterator[RouteTable | Recall | Ended]:
        queue: asyncio.Queue[RouteTable | Recall | Ended] = asyncio.Queue()
        self._streams.add(queue)
        try:
            yield self.table()
            while True:
                yield await queue.get()
        finally:
            self._streams.discard(queue)

    async def acquire(self, function: str, wait: float) -> Lease:
        self.acquires += 1
        self.acquiring += 1
        try:
            await self.gate.wait()
            if (problem := self.refuse(function)) is not None:
                raise problem
            if function not in self.routes:
                raise Problem("unknown-function", f"There is no function {function!r}.")
            route = self.routes[function]
            if len(self.leases) >= self.capacity:
                raise Problem("no-capacity", "The machine is full. Wait, or add memory.")
            cold = not self.idle_instances.get(function)
            if cold:
                instance = FakeInstance(
                    self.data.instances, self.behaviours[f"{function}/{route.revision}"], route.concurrency
                )
                await instance.start()
                self.instances_made.append(instance)
            else:
                instance = self.idle_instances[function].pop()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.acquiring -= 1
        lease = Lease(
            id=f"l{next(self._numbers)}",
            function=function,
            revision=route.revision,
            instance=instance.id,
            socket=str(instance.path),
            concurrency=route.concurrency,
            cold=cold,
            stages=STAGES if cold else Stages(),
            idle=self.idle,
        )
        self.leases[lease.id] = instance
        connection = peer.get(None)
        if connection is not None:
            connection.on_close.append(lambda: self.leases.pop(lease.id, None) and None)
        return lease

    async def claim(self, leases: list[str]) -> None:
        self.claimed += leases

    async def release(self, lease: str) -> None:
        instance = self.leases.pop(lease, None)
        if instance is not None:
            assert instance.running == 0 or not instance.alive, "released while a call was under way"
            self.released.append(lease)

    async def stop(self, lease: str, reason: str) -> None:
        instance = self.leases.pop(lease, None)
        if instance is not None:
            await instance.kill()
        self.stopped.append((lease, reason))

    async def diagnose(self, lease: str) -> tuple[str, str, list[str]]:
        instance = self.leases.pop(lease, None)
        self.diagnosed.append(lease)
        if instance is None:
            raise Problem("not-found", f"There is no lease {lease}.")
        await instance.kill()
        return self.diagnosis

    async def report(self, calls: list[Usage]) -> None:
        self.usage += calls

    # Control

    async def apps(self) -> list[App]:
        return (
            [App(name="app", commit="c1", functions=sorted(self.routes), updated=1.0)] if self.routes else []
        )

    async def functions(self) -> list[FunctionStatus]:
        return [
            FunctionStatus(
                name=name,
                app="app",
                revision=route.revision,
                commit="c1",
                updated=1.0,
                config=FunctionConfig(name=name, runtime="python3.11", handler="handler:handle"),
                instances=0,
                calls=0,
            )
            for name, route in self.routes.items()
        ]

    def _known(self, function: str) -> None:
        if function not in self.routes:
            raise Problem("unknown-function", f"There is no function {function!r}.")

    async def delete_function(self, function: str, by: Actor = PLATFORM) -> bool:
        self.actors.append(by)
        self._known(function)
        del self.routes[function]
        self.deleted.append(function)
        self.tell(self.table())
        return not self.routes

    async def instances(self, function: str | None) -> list[InstanceStatus]:
        if function is not None:
            self._known(function)
        return []

    async def scale_to_zero(self, function: str, by: Actor = PLATFORM) -> int:
        self.actors.append(by)
        self._known(function)
        return 2

    def _revision(self, function: str, revision: str) -> Revision:
        config = FunctionConfig(name=function, runtime="python3.11", handler="handler:handle")
        return Revision(id=revision, app="app", config=config, code="sha", commit="c1", created=1.0)

    async def revisions(self, function: str) -> list[Revision]:
        self._known(function)
        return [self._revision(function, self.routes[function].revision)]

    async def rollback(self, function: str, revision: str | None, by: Actor = PLATFORM) -> Revision:
        self.actors.append(by)
        self._known(function)
        return self._revision(function, revision or "previous")

    async def logs(self, function: str, tail: int, follow: bool) -> AsyncIterator[LogLine]:
        for line in self.lines[-tail:] if tail else []:
            yield line
        while follow:
            await asyncio.Event().wait()

    async def invocations(self, function: str, tail: int, failed: bool) -> list[Usage]:
        return [u for u in self.usage if u.function == function and (not failed or u.status >= 500)][-tail:]

    async def story(self, request: str) -> list[Story]:
        found = [Story(call=usage, lines=[]) for usage in self.usage if usage.request_id == request]
        if not found:
            raise Problem("not-found", f"No call of the request {request!r} is remembered.")
        return found

    async def layers(self) -> list[Layer]:
        return [Layer(digest="d", kind="code", description="x", size=1, created=1.0)]

    async def images(self) -> list[ImageStatus]:
        image = {"id": "sha256:1", "name": "x:1", "kind": "named", "functions": ["hello"]}
        return [ImageStatus(**image, size=1, created=1.0, present=True)]

    async def metrics(self) -> str:
        return "# TYPE fake_metric gauge\nfake_metric 1\n"

    async def empty(self, stage: str, by: Actor = PLATFORM) -> None:
        self.actors.append(by)
        if stage not in ("container", "runtime", "code", "snapshot"):
            raise Problem("not-found", f"There is no cache {stage!r}.")
        self.emptied.append(stage)

    async def imports(self, function: str) -> list[Imported]:
        self._known(function)
        return [Imported(name="handler", depth=0, own=1.0, total=2.5)]

    async def shell(
        self, function: str, command: tuple[str, ...], terminal: Terminal | None, by: Actor = PLATFORM
    ) -> AsyncIterator[Opened | Exit]:
        """Open one that says again what is said to it, until `shell_ends` says how it ends."""
        self._known(function)
        self.actors.append(by)
        if (problem := self.refuse(function)) is not None:
            raise problem
        number = len(self.shells)
        self.shells.append((function, command, terminal, "open"))
        self.shell_ends = asyncio.get_running_loop().create_future()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.shell_writer = writer
            server.close()
            while data := await reader.read(1 << 16):
                writer.write(data)
            writer.close()

        path = self.data.instances / f"s{number}.sock"
        server = await asyncio.start_unix_server(echo, sockets.address(path))
        how = "left"
        try:
            yield Opened("s1", "r1", str(path))
            ended = await self.shell_ends
            how = "ended"
            self.shell_writer.close()
            yield ended
        finally:
            self.shells[number] = (function, command, terminal, how)

    async def guarantees(self) -> list[Guarantee]:
        return [Guarantee(name="memory", kept=False, reason="no cgroup", remedy="delegate one")]

    # Vault

    async def keys(self) -> list[Key]:
        return self.all_keys()

    async def create_key(
        self,
        name: str,
        scopes: tuple[Scope, ...] = (Scope.ADMIN,),
        app: str | None = None,
        expires: float | None = None,
        by: Actor = PLATFORM,
    ) -> tuple[Key, str]:
        self.actors.append(by)
        key = Key(id="k2", name=name, sha256="00", created=1.0, scopes=scopes, app=app, expires=expires)
        return key, "the-secret"

    async def delete_key(self, key: str, by: Actor = PLATFORM) -> None:
        self.actors.append(by)
        raise Problem("conflict", "This is the last key.")

    async def secrets(self, by: Actor = PLATFORM) -> list[str]:
        return sorted(self.secrets_set)

    async def put_secret(self, name: str, value: str, by: Actor = PLATFORM) -> None:
        self.actors.append(by)
        self.secrets_set[name] = value

    async def delete_secret(self, name: str, by: Actor = PLATFORM) -> None:
        self.actors.append(by)
        if self.secrets_set.pop(name, None) is None:
            raise Problem("not-found", f"There is no secret {name}.")

    async def audit(self, tail: int) -> list[AuditEntry]:
        entry = AuditEntry(time=1.0, action="key.create", outcome="done", by=PLATFORM, details={"key": "ci"})
        return [entry] * min(tail, 3)
