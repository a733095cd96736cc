"""The control API as a table: from it both the routes and the OpenAPI document are made."""

from dataclasses import dataclass

from msgspec import Struct

from function_service.contract import (
    App,
    AuditEntry,
    FunctionStatus,
    Guarantee,
    ImageStatus,
    Imported,
    InstanceStatus,
    Layer,
    LogLine,
    Revision,
    Scope,
    Story,
    Usage,
)

BASE = "/api/v1"


class Apps(Struct):
    """All apps."""

    apps: list[App]


class Functions(Struct):
    """All functions."""

    functions: list[FunctionStatus]


class Instances(Struct):
    """Instances that exist now."""

    instances: list[InstanceStatus]


class EndedInstances(Struct):
    """How many instances were ended."""

    ended: int


class Revisions(Struct):
    """The revisions that are kept, newest first."""

    revisions: list[Revision]


class Rollback(Struct, forbid_unknown_fields=True):
    """Which revision shall be live again; the one before the present one where none is named."""

    revision: str | None = None


class Layers(Struct):
    """The layers that are cached."""

    layers: list[Layer]


class Images(Struct):
    """The images of Docker's that the platform or a function uses, or could; none with another engine."""

    images: list[ImageStatus]


class Secrets(Struct):
    """The names of the secrets. Their values are never told."""

    secrets: list[str]


class SecretValue(Struct, forbid_unknown_fields=True):
    """The value of a secret."""

    value: str


class KeyInfo(Struct):
    """A key, without the key itself."""

    id: str
    name: str
    created: float  # seconds since the epoch
    scopes: tuple[Scope, ...]
    app: str | None  # the only one that it is good for
    expires: float | None  # seconds since the epoch


class Keys(Struct):
    """All keys."""

    keys: list[KeyInfo]


class NewKey(Struct, forbid_unknown_fields=True):
    """A key to be made: for everything, unless it says otherwise."""

    name: str
    scopes: tuple[Scope, ...] = (Scope.ADMIN,)
    app: str | None = None  # the only one that it shall be good for
    expires: float | None = None  # seconds since the epoch


class CreatedKey(KeyInfo):
    """A key that was made; `key` is told only this once."""

    key: str


class Audit(Struct):
    """The last entries of the audit log, oldest first."""

    entries: list[AuditEntry]


class EndedCalls(Struct):
    """Calls that have ended, oldest first."""

    invocations: list[Usage]


class Stories(Struct):
    """What is remembered of the calls of one request: several, where functions called each other."""

    stories: list[Story]


class Imports(Struct):
    """What a function's import is made of, each module after those that it imports itself."""

    imports: list[Imported]


class Guarantees(Struct):
    """What the engine promises on this machine, and what it can't keep."""

    guarantees: list[Guarantee]


@dataclass(frozen=True)
class Query:
    """One query parameter: its JSON type, default and bounds."""

    name: str
    type: str
    default: int | bool
    summary: str
    maximum: int | None = None


@dataclass(frozen=True)
class Operation:
    """One operation. `name` is that of its handler in control.py and its operationId.

    `answers` is None where the answer has no body; `problems` are the refusals beyond those of all.
    What is below /apps/{name} and /functions/{name} is for keys of that app only, or of all.
    """

    method: str
    path: str
    name: str
    summary: str
    answers: type[Struct] | None = None
    status: int = 200
    takes: type[Struct] | None = None
    optional_body: bool = False
    media_type: str = "application/json"
    query: tuple[Query, ...] = ()
    problems: tuple[str, ...] = ()
    scope: Scope = Scope.ADMIN  # that a key must have
    own: bool = False  # whether a key for one app gets what belongs to that app
    description: str = ""  # where the summary does not tell all


_FUNCTION = ("unknown-function",)
_DEPLOY = Scope.DEPLOY
_SHELL = (
    "This is a WebSocket. The caller's first message is text: a JSON object with `command`, an array of "
    "words (/bin/sh without), and `terminal`, an object with `kind` (such as xterm), `rows` and `columns` "
    "where it has one. The answer is text: `instance` and `revision`, or `problem`. From then on messages "
    "are binary. Their first byte is the kind. From the caller, 0: input; 1: no more input; 2: rows and "
    "columns, two bytes each, big-endian. To the caller, 0: output; 1: errors, without a terminal. The last "
    "message is text: `exit` with `code` and `reason`, or `problem`. The shell ends with the connection. "
    "What comes from a web page of another origin is refused."
)

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/apps", "list_apps", "List the apps.", Apps, scope=_DEPLOY, own=True),
    Operation("GET", "/apps/{name}", "get_app", "Show an app.", App, problems=("not-found",), scope=_DEPLOY),
    Operation(
        "DELETE",
        "/apps/{name}",
        "delete_app",
        "Delete an app: its functions, then its repository. Its documents stay.",
        status=204,
        scope=_DEPLOY,
        problems=("not-found",),
    ),
    Operation(
        "GET", "/functions", "list_functions", "List the functions.", Functions, scope=_DEPLOY, own=True
    ),
    Operation(
        "GET",
        "/functions/{name}",
        "get_function",
        "Show a function.",
        FunctionStatus,
        problems=_FUNCTION,
        scope=_DEPLOY,
    ),
    Operation(
        "DELETE",
        "/functions/{name}",
        "delete_function",
        "Delete a function with its revisions and logs; with the last one of an app, the app too.",
        status=204,
        problems=_FUNCTION,
        scope=_DEPLOY,
    ),
    Operation(
        "GET",
        "/instances",
        "list_instances",
        "List the instances of all functions.",
        Instances,
        scope=_DEPLOY,
        own=True,
    ),
    Operation(
        "GET",
        "/functions/{name}/instances",
        "list_function_instances",
        "List the instances of a function.",
        Instances,
        problems=_FUNCTION,
        scope=_DEPLOY,
    ),
    Operation(
        "DELETE",
        "/functions/{name}/instances",
        "scale_to_zero",
        "Let the instances of a function finish their calls, and end them.",
        EndedInstances,
        problems=_FUNCTION,
        scope=_DEPLOY,
    ),
    Operation(
        "GET",
        "/functions/{name}/revisions",
        "list_revisions",
        "List the revisions of a function that are kept, newest first.",
        Revisions,
        problems=_FUNCTION,
        scope=_DEPLOY,
    ),
    Operation(
        "POST",
        "/functions/{name}/rollback",
        "rollback",
        "Make a former revision live again.",
        Revision,
        takes=Rollback,
        optional_body=True,
        problems=("unknown-function", "not-found"),
        scope=_DEPLOY,
    ),
    Operation(
        "GET",
        "/functions/{name}/logs",
        "read_logs",
        "Read what a function printed, one JSON object a line.",
        LogLine,
        media_type="application/x-ndjson",
        query=(
            Query("tail", "integer", 100, "How many of the last lines to begin with.", maximum=100_000),
            Query("follow", "boolean", default=False, summary="Go on with each new line."),
        ),
        problems=_FUNCTION,
        scope=_DEPLOY,
    ),
    Operation(
        "GET",
        "/functions/{name}/invocations",
        "list_invocations",
        "List the latest calls of a function that have ended, oldest first.",
        EndedCalls,
        query=(
            Query("tail", "integer", 100, "How many of the latest calls.", maximum=10_000),
            Query("failed", "boolean", default=False, summary="Only those with a status of 500 or more."),
        ),
        problems=_FUNCTION,
        scope=_DEPLOY,
    ),
    Operation(
        "GET",
        "/requests/{id}",
        "explain_request",
        "Tell all that is remembered of the calls of one request, in their order.",
        Stories,
        problems=("not-found",),
        scope=_DEPLOY,
        own=True,
    ),
    Operation(
        "POST",
        "/functions/{name}/imports",
        "trace_imports",
        "Import a function once more, in a sandbox of its own, and tell what each module cost.",
        Imports,
        problems=("unknown-function", "invalid-request", "init-failed"),
        scope=_DEPLOY,
    ),
    Operation(
        "GET",
        "/functions/{name}/shell",
        "open_shell",
        "Run a command, or a shell, in a fresh sandbox of a function.",
        status=101,
        description=_SHELL,
        problems=_FUNCTION,
        scope=_DEPLOY,
    ),
    Operation(
        "DELETE",
        "/caches/{stage}",
        "empty_cache",
        "Empty the cache of one stage of a cold start (container, runtime, code, snapshot); it ends all.",
        status=204,
        problems=("not-found", "conflict"),
    ),
    Operation("GET", "/layers", "list_layers", "List the cached layers.", Layers),
    Operation(
        "GET", "/images", "list_images", "List the images that functions and the platform use.", Images
    ),
    Operation("GET", "/secrets", "list_secrets", "List the names of the secrets.", Secrets),
    Operation(
        "PUT",
        "/secrets/{name}",
        "put_secret",
        "Set a secret. Instances that are started from now on see the new value.",
        status=204,
        takes=SecretValue,
    ),
    Operation(
        "DELETE",
        "/secrets/{name}",
        "delete_secret",
        "Delete a secret.",
        status=204,
        problems=("not-found", "conflict"),
    ),
    Operation("GET", "/keys", "list_keys", "List the keys.", Keys),
    Operation("POST", "/keys", "create_key", "Make a key.", CreatedKey, status=201, takes=NewKey),
    Operation(
        "DELETE",
        "/keys/{id}",
        "delete_key",
        "Withdraw a key.",
        status=204,
        problems=("not-found", "conflict"),
    ),
    Operation(
        "GET",
        "/audit",
        "read_audit",
        "Read who did what.",
        Audit,
        query=(Query("tail", "integer", 100, "How many of the last entries.", maximum=10_000),),
    ),
    Operation(
        "GET",
        "/guarantees",
        "list_guarantees",
        "List what the engine promises on this machine, and what it can't keep.",
        Guarantees,
    ),
)
