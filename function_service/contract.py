"""What others may see of the function service: its types, and its doors as Protocols.

`Invocations` is the gateway's door, `Control` and `Vault` are the operator's (through the gateway),
`Builds` is the builder's. Each is served by `server.py` and reached through `client.py`.
Refusals are `pilotlight.problems.Problem`.
"""

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct


class Access(StrEnum):
    """Who may call a function."""

    KEY = "key"  # whoever has a key
    PUBLIC = "public"
    INTERNAL = "internal"  # other functions only


class FunctionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one function runs: what its manifest says, with the defaults filled in."""

    name: str
    runtime: str  # with its version, such as "python3.11"
    handler: str
    memory: int = 128 << 20  # bytes
    cpu: float = 0.25  # cores
    timeout: float = 10.0  # seconds
    concurrency: int = 1  # calls that one instance answers at a time
    min_instances: int = 0
    max_instances: int = 20
    keep_alive: float | None = None  # seconds; None lets the policy decide
    access: Access = Access.KEY
    egress: tuple[str, ...] = ()  # host:port
    env: dict[str, str] = {}
    secrets: tuple[str, ...] = ()


class Image(Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """An image of Docker's that a function runs in, as it was when that was pushed.

    One that was built by the Dockerfile of the function brings its program along: `command` is that.
    """

    name: str  # as the manifest has it, or `Dockerfile`
    id: str  # of the content, so that it never means another one
    runtime: str  # with the version that is in it, such as "python3.12"
    executable: str  # of that runtime, in the image; empty for programs that need none
    env: dict[str, str] = {}  # what the image sets
    command: tuple[str, ...] = ()  # ENTRYPOINT and CMD
    folder: str = ""  # in which it runs
    bases: tuple[str, ...] = ()  # the images that the Dockerfile names
    source: str = ""  # the full name with a digest, where it came from a registry


class Revision(Struct, frozen=True, kw_only=True):
    """One immutable build of a function; `id` is a digest of everything else but commit and time."""

    id: str
    app: str
    config: FunctionConfig
    code: str  # digest of the layer with the function's own files
    dependencies: str | None = None  # digest of the layer with what it depends on
    image: Image | None = None  # None for the system of the host
    commit: str  # the latest by which a push has made it live
    created: float  # seconds since the epoch; the one that a push made live last has the greatest


class Scope(StrEnum):
    """What a key is good for. `admin` is all of it, and everything else."""

    INVOKE = "invoke"  # call functions whose access is `key`
    DEPLOY = "deploy"  # push apps, see, roll back and delete their functions, read their logs
    DATA = "data"  # read and write the documents of apps
    ADMIN = "admin"


class Key(Struct, frozen=True, kw_only=True):
    """A key as it is kept: only the SHA-256 of the secret itself.

    Those that were made before there were scopes have the defaults.
    """

    id: str
    name: str
    sha256: str  # hexadecimal
    created: float
    scopes: tuple[Scope, ...] = (Scope.ADMIN,)
    app: str | None = None  # the only app that it is good for
    expires: float | None = None  # seconds since the epoch

    def expired(self, now: float) -> bool:
        """Tell whether it is good for nothing any more."""
        return self.expires is not None and self.expires <= now

    def may(self, scope: Scope, app: str | None) -> bool:
        """Tell whether it is good for this, on this app; None is what belongs to none, or to all."""
        if Scope.ADMIN in self.scopes:
            return True
        return scope in self.scopes and self.app in (None, app)


class Actor(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asked for something, as the audit log tells it. The defaults are the platform itself."""

    key: str = ""  # the id of the key
    name: str = ""  # of the key
    address: str = ""
    request_id: str = ""


PLATFORM = Actor()
"""What nobody asked for, such as what is made up for after a restart."""


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One line of the audit log."""

    time: float  # seconds since the epoch
    action: str  # such as "key.create"
    outcome: str  # "done", "refused: …" or "failed"
    by: Actor
    details: dict[str, Any]  # what it was done to


class Route(Struct, frozen=True, kw_only=True):
    """All that the gateway must know of a function that is live."""

    function: str
    app: str
    revision: str
    access: Access
    timeout: float  # seconds
    concurrency: int
    max_instances: int


class RouteTable(Struct, frozen=True, tag=True):
    """All routes and keys at one moment; it replaces the former table as a whole."""

    routes: dict[str, Route]  # by function name
    keys: dict[str, Key]  # by hexadecimal SHA-256, with those that have expired
    edition: int = 0  # of the registry, see there


class Recall(Struct, frozen=True, tag=True):
    """The gateway shall use this lease for no new call, and release it when its last call has ended."""

    lease: str


class Ended(Struct, frozen=True, tag=True):
    """The instance of this lease is dead; the lease is void and need not be released."""

    lease: str


class Wanted(Struct, frozen=True, tag=True):
    """Another gateway waits for an instance of this function: give back one that has no call under way.

    Where all have, send no new call on one of them, and release it when its calls have ended. This is told
    again as long as the other one waits.
    """

    function: str


class Machines(Struct, frozen=True, tag=True):
    """The other machines of the platform that are there: where their gateways serve this one's.

    `builder` is the one among all of them that has the repositories; empty where it is this one.
    """

    addresses: tuple[str, ...]
    builder: str = ""


class Stages(Struct, frozen=True):
    """How long each stage of a start took, in milliseconds; 0 where it came out of a cache."""

    container: float = 0.0
    runtime: float = 0.0
    code: float = 0.0


class Lease(Struct, frozen=True, kw_only=True):
    """The right to send up to `concurrency` calls at a time to one instance."""

    id: str
    function: str
    revision: str
    instance: str
    socket: str  # path of the Unix socket on which the instance serves HTTP/1.1
    concurrency: int
    cold: bool  # the instance was made for this lease
    stages: Stages
    idle: float  # seconds without a call after which the gateway releases the lease


class Usage(Struct, frozen=True, gc=False):
    """One call that ended, as the gateway reports it."""

    function: str
    revision: str
    instance: str  # empty where it got none
    request_id: str
    started: float  # seconds since the epoch
    duration: float  # seconds
    status: int
    cold: bool
    method: str = ""
    path: str = ""  # what the function saw, without the query, which may hold what is nobody's business
    caller: str = ""  # the function that called, if it was one
    waited: float = 0.0  # seconds until it had an instance
    stages: Stages | None = None  # of the start that it waited for
    problem: str = ""  # kind of the platform's error that was answered in place of the function's answer
    detail: str = ""  # what that said


class Invocations(Protocol):
    """The gateway's door."""

    def events(self) -> AsyncIterator[RouteTable | Recall | Ended | Wanted | Machines]:
        """Yield the current table, then every change, and what happens to this gateway's leases.

        On a platform of several machines, the others are told before the table, and whenever they change.
        """
        ...

    async def acquire(self, function: str, wait: float) -> Lease:
        """Return a lease on an instance that was idle or is made now; `wait` bounds it, in seconds.

        Where other gateways hold all instances that the function may have, they are asked to give one back.
        Cancelling gives the instance back. Raises Problem `unknown-function`, `init-failed`,
        `crashed`, `out-of-memory`, `timeout`, `no-capacity`; `unavailable` where the function is at home on
        another machine (`pilotlight.machines.machine_of` tells on which).
        """
        ...

    async def claim(self, leases: list[str]) -> None:
        """Take over leases that a function service which was killed has granted, to end the calls on them.

        Each has been recalled, and is to be released when its last call has ended. Those which nobody claims
        are ended. Unknown leases are ignored.
        """
        ...

    async def release(self, lease: str) -> None:
        """Give a lease back; the instance must have no call under way. Unknown leases are ignored."""
        ...

    async def stop(self, lease: str, reason: str) -> None:
        """Kill the instance, and return when every process in it is dead. The lease is void then."""
        ...

    async def diagnose(self, lease: str) -> tuple[str, str, list[str]]:
        """Tell why the instance broke off a call: a problem kind, a detail, the last lines it printed.

        It waits up to two seconds for the instance to be dead, and stops it otherwise. The lease is void.
        """
        ...

    async def report(self, calls: list[Usage]) -> None:
        """Tell about calls that have ended, for the keep-alive policy and the metrics."""
        ...


class App(Struct, frozen=True, kw_only=True):
    """One repository that was pushed."""

    name: str
    commit: str
    functions: list[str]
    updated: float  # seconds since the epoch


class FunctionStatus(Struct, frozen=True, kw_only=True):
    """A function, how it is configured, and what of it runs."""

    name: str
    app: str
    revision: str
    commit: str
    updated: float
    config: FunctionConfig
    instances: int
    calls: int  # since the function service started
    snapshot: bool = False  # whether its next start comes out of a snapshot
    snapshot_refusal: str = ""  # why it can't have one, though its import is slow


class InstanceStatus(Struct, frozen=True, kw_only=True):
    """One instance."""

    id: str
    function: str
    revision: str
    state: str
    created: float
    last_used: float
    memory: int  # bytes
    cpu_seconds: float
    processes: int
    stages: Stages


class LogLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line that an instance printed; `truncated` where it was longer, or where lines were dropped."""

    time: float
    instance: str
    line: str
    truncated: bool = False
    request: str = ""  # the request that the instance was busy with, where that is known


class Story(Struct, frozen=True, kw_only=True):
    """What is remembered of one call."""

    call: Usage
    lines: list[LogLine]  # that its instance printed meanwhile
    instance_end: str = ""  # why its instance has ended since, if it has, and lately


class Layer(Struct, frozen=True, kw_only=True):
    """One layer that is cached."""

    digest: str
    kind: str  # container, runtime or code
    description: str
    size: int  # bytes
    created: float


class ImageStatus(Struct, frozen=True, kw_only=True):
    """One image of Docker's that the platform or a function uses, or could."""

    id: str
    name: str  # as Docker has it; where it has none, as the manifest had it; else empty
    kind: str  # platform, base (`pilotlight images build`), dockerfile (built for a function), fetched, named
    functions: list[str]  # that have a revision which runs in it
    size: int  # bytes, 0 where it is not there any more
    created: float  # seconds since the epoch, 0 likewise
    present: bool


class Imported(Struct, frozen=True, kw_only=True):
    """One module that a function's import brings in, beyond what the runtime has loaded already."""

    name: str
    depth: int  # 0 for what the handler's own import is made of; one more for what that imports
    own: float  # milliseconds, without what it imports itself
    total: float  # milliseconds, with it


class Guarantee(Struct, frozen=True, kw_only=True):
    """One promise of the engine, and whether this machine lets it be kept."""

    name: str
    kept: bool
    reason: str = ""
    remedy: str = ""


class Exit(Struct, frozen=True, tag=True):
    """How a job or a shell ended: `reason` is empty where its exit code says all."""

    code: int
    reason: str = ""


class Terminal(Struct, frozen=True):
    """The terminal at which somebody opens a shell."""

    kind: str  # such as "xterm-256color"
    rows: int
    columns: int


class Opened(Struct, frozen=True, tag=True):
    """A shell has a sandbox, and waits there for who connects first (see shell_frames.py)."""

    instance: str
    revision: str
    socket: str  # path of the Unix socket


class Control(Protocol):
    """The operator's door. Names that do not exist raise Problem `not-found` or `unknown-function`.

    `by` is who asks for a change, for the audit log.
    """

    async def apps(self) -> list[App]:
        """List the apps."""
        ...

    async def functions(self) -> list[FunctionStatus]:
        """List the functions."""
        ...

    async def delete_function(self, function: str, by: Actor = PLATFORM) -> bool:
        """Delete a function with its revisions and logs. Return whether its app is gone with it."""
        ...

    async def instances(self, function: str | None) -> list[InstanceStatus]:
        """List the instances of one function, or all."""
        ...

    async def scale_to_zero(self, function: str, by: Actor = PLATFORM) -> int:
        """Let instances finish their calls, end them, and return how many there were."""
        ...

    async def revisions(self, function: str) -> list[Revision]:
        """List the revisions that are kept, newest first."""
        ...

    async def rollback(self, function: str, revision: str | None, by: Actor = PLATFORM) -> Revision:
        """Make a former revision live again: the named one, else the one before the present one."""
        ...

    def logs(self, function: str, tail: int, follow: bool) -> AsyncIterator[LogLine]:
        """Yield the last `tail` lines, then, if `follow`, each new one.

        A line names its request where the runtime says it, or the call has been reported by then.
        """
        ...

    async def invocations(self, function: str, tail: int, failed: bool) -> list[Usage]:
        """List the latest calls that have ended, oldest first; if `failed`, those with a 5xx or none."""
        ...

    async def story(self, request: str) -> list[Story]:
        """Tell all that is remembered of the calls of one request, in their order. Raises `not-found`."""
        ...

    async def layers(self) -> list[Layer]:
        """List the cached layers."""
        ...

    async def images(self) -> list[ImageStatus]:
        """List the images that the platform or a function uses, or could; none without Docker."""
        ...

    async def empty(self, stage: str, by: Actor = PLATFORM) -> None:
        """Empty the cache of one stage of a start, so that the next start is without it.

        `container`: the layer with the system's files, and all that `runtime` means. `runtime`: the booted
        interpreters, the blank sandboxes made of them, and the layers with the shims. `code`: what the kernel
        has in memory of the code layers' files. `snapshot`: all snapshots, which go with each other stage.
        The instances of all functions are ended first. Nothing is made ahead of time again until the next
        start; a snapshot as soon as calls show anew that it is worth it. Raises Problem `not-found` for
        another stage, `conflict` while an instance still answers calls, or something is being built.
        """
        ...

    async def imports(self, function: str) -> list[Imported]:
        """Import a function once more, in a sandbox of its own, and tell what each module cost, in order.

        Raises Problem `invalid-request` for a runtime that can't tell, `init-failed` with what it printed.
        """
        ...

    def shell(
        self, function: str, command: tuple[str, ...], terminal: Terminal | None, by: Actor = PLATFORM
    ) -> AsyncIterator[Opened | Exit]:
        """Run a command in a fresh sandbox of the live revision, in place of the function.

        It is confined, and sees code, environment, secrets, data and network, as an instance does; without
        words it is /bin/sh. Without a terminal it has pipes. Yields Opened, and at last Exit; leaving the
        stream ends it, and an hour does. Raises Problem `unknown-function`, `init-failed`, `no-capacity`,
        `invalid-request`.
        """
        ...

    async def metrics(self) -> str:
        """Return the metrics of this service in Prometheus' text format."""
        ...

    async def guarantees(self) -> list[Guarantee]:
        """List what the engine promises on this machine, and what it can't keep."""
        ...


class Vault(Protocol):
    """Keys, secrets, and the log of what was done. `by` is who asks for it, for that log."""

    async def keys(self) -> list[Key]:
        """List the keys."""
        ...

    async def create_key(
        self,
        name: str,
        scopes: tuple[Scope, ...] = (Scope.ADMIN,),
        app: str | None = None,
        expires: float | None = None,
        by: Actor = PLATFORM,
    ) -> tuple[Key, str]:
        """Make a key; the second value is the key itself, which is told only once.

        Raises Problem `invalid-request` for what can't be: a name that is not printable, `admin` for one app,
        an end that has passed.
        """
        ...

    async def delete_key(self, key: str, by: Actor = PLATFORM) -> None:
        """Withdraw the key with this id. Raises Problem `not-found`, `conflict` for the last of admin."""
        ...

    async def secrets(self, by: Actor = PLATFORM) -> list[str]:
        """List the names of the secrets."""
        ...

    async def put_secret(self, name: str, value: str, by: Actor = PLATFORM) -> None:
        """Set a secret. Instances that are started from now on see the new value."""
        ...

    async def delete_secret(self, name: str, by: Actor = PLATFORM) -> None:
        """Delete a secret. Raises Problem `conflict` while a live function names it."""
        ...

    async def audit(self, tail: int) -> list[AuditEntry]:
        """Return the last entries of the audit log, oldest first."""
        ...


class Mount(Struct, frozen=True):
    """A folder of the host that a build sees at `target` (/source, /build, /tools/NAME)."""

    source: str
    target: str
    writable: bool = False


class Job(Struct, frozen=True, kw_only=True):
    """A one-shot run in a sandbox: one step of a build."""

    runtime: str  # whose interpreter must be there (but for an image), such as "python3.11"
    command: tuple[str, ...]
    mounts: tuple[Mount, ...]
    env: dict[str, str] = {}
    folder: str = "/build"  # the working folder
    memory: int = 1 << 30  # bytes
    cpu: float = 2.0  # cores
    timeout: float = 300.0  # seconds
    output_limit: int = 1 << 30  # bytes that the writable mounts may grow to
    egress: tuple[str, ...] = ()
    image: str | None = None  # the id of the image to run in


class ImageBuild(Struct, frozen=True, kw_only=True):
    """The build of an image by the Dockerfile of a folder."""

    folder: str  # of the host, below the builds folder
    digest: str  # of all that is in it: what is equal is built once
    memory: int  # bytes, of each step
    cpu: float  # cores, of each step
    timeout: float  # seconds, for all of it
    growth: int  # bytes that it may add to the image that it begins with


class Output(Struct, frozen=True, tag=True):
    """A piece of what a job printed, a whole line without its end."""

    line: str


class Builds(Protocol):
    """The builder's door."""

    async def settle(self) -> None:
        """Have the repositories of the platform on this machine.

        Raises Problem `conflict` where another machine has them: pushes go there.
        """
        ...

    async def runtimes(self) -> list[str]:
        """List the runtimes of this machine, with versions: "python3.11", "node20", "native"."""
        ...

    async def claim(self, app: str, functions: list[str]) -> None:
        """Raise Problem `conflict` where another app owns one of the names."""
        ...

    async def current(self, app: str) -> list[Revision]:
        """Return the live revisions of an app; empty when there is none of that name."""
        ...

    async def commit(self, app: str) -> str | None:
        """Return the commit that is live, or None."""
        ...

    def run(self, job: Job) -> AsyncIterator[Output | Exit]:
        """Run a job, yield what it prints, at last one Exit. Leaving the stream kills the job."""
        ...

    def image(self, name: str, runtime: str) -> AsyncIterator[Output | Image]:
        """Find an image on this machine, else pull it, and see what it has for a runtime (such as "python").

        Yields what there is to tell of that, at last one Image. Raises Problem `build-failed` that says what
        is wrong with the image or its name, `invalid-request` where the engine has no images.
        """
        ...

    def build_image(self, order: ImageBuild) -> AsyncIterator[Output | Image]:
        """Build the image of a function by its Dockerfile, unless the same was built already.

        Yields what is printed, at last one Image; leaving the stream ends the build. Raises Problem
        `build-failed` with the cause, `invalid-request` where the engine has no images, or this is not
        permitted.
        """
        ...

    async def has_layer(self, digest: str) -> bool:
        """Tell whether the layer is there."""
        ...

    async def seal_layer(self, digest: str, folder: str, description: str) -> None:
        """Move folder (under the builds folder) into the layer store, read-only from now on."""
        ...

    async def verify(self, revision: Revision) -> None:
        """Start the revision once, as a call would, and end it.

        Raises Problem `init-failed`, `crashed`, `out-of-memory` or `timeout` with what it printed.
        """
        ...

    async def prepare(self, app: str, commit: str, revisions: list[Revision]) -> None:
        """Store revisions durably, to be made live by `activate`."""
        ...

    async def activate(self, app: str, commit: str, by: Actor = PLATFORM) -> None:
        """Make the prepared revisions live in one step; functions that are no longer among them go.

        Does nothing when that commit is live already. Raises Problem `not-found` if nothing was prepared.
        """
        ...
