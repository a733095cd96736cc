"""The control API: each operation of operations.py, carried out by the function service."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar, cast
from urllib.parse import quote

import msgspec
from aiohttp import web

from function_service.contract import App, Control, FunctionStatus, Key, LogLine, Scope, Vault
from gateway.admission import Caller
from gateway.openapi import document
from gateway.operations import (
    BASE,
    OPERATIONS,
    Apps,
    Audit,
    CreatedKey,
    EndedCalls,
    EndedInstances,
    Functions,
    Guarantees,
    Images,
    Imports,
    Instances,
    KeyInfo,
    Keys,
    Layers,
    NewKey,
    Operation,
    Query,
    Revisions,
    Rollback,
    Secrets,
    SecretValue,
    Stories,
)
from gateway.relay import Builder, Elsewhere
from gateway.routing import Routes
from gateway.shells import Shells
from pilotlight.ids import NAME_RULE, is_name
from pilotlight.problems import Problem

CALLER = web.RequestKey("caller", Caller)
"""Who asks, in each request that needs a key."""

_ANSWERING = ("read_logs", "open_shell")  # whose handlers answer by themselves
_SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_END_OF_TIME = 253402300800.0  # seconds since the epoch; what can be written as a date ends there

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
S = TypeVar("S", bound=msgspec.Struct)


class ControlApi:
    """The handlers, by the names that operations.py gives them. Each returns what is to be encoded."""

    def __init__(
        self, control: Control, vault: Vault, builder: Builder, routes: Routes, elsewhere: Elsewhere
    ) -> None:
        self._elsewhere = elsewhere
        self._control = control
        self._vault = vault
        self._builder = builder
        self._routes = routes
        self._following: set[asyncio.Timeout] = set()
        self._shells = Shells(control, routes)
        self._document = msgspec.json.format(msgspec.json.encode(document()), indent=2)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the control API."""
        routes = [web.get(f"{BASE}/openapi.json", self._openapi)]
        for operation in OPERATIONS:
            handler = getattr(self, operation.name)
            answer = handler if operation.name in _ANSWERING else _encoded(operation, handler)
            routes.append(
                web.route(operation.method, BASE + operation.path, self._allowed(operation, answer))
            )
        return routes

    def _allowed(self, operation: Operation, answer: Answer) -> Answer:
        async def allowed(request: web.Request) -> web.StreamResponse:
            caller = _caller(request)
            app = caller.key.app
            if app is not None and not operation.own:
                app = self._app(operation, request)
            caller.demand(operation.scope, app)
            return await answer(request)

        return allowed

    def _app(self, operation: Operation, request: web.Request) -> str | None:
        """Return the app that a request is about, None where it is about none. Raises `unknown-function`."""
        if operation.path.startswith("/apps/{name}"):
            return request.match_info["name"]
        if operation.path.startswith("/functions/{name}"):
            return self._routes.find(request.match_info["name"]).app
        return None

    def close(self) -> None:
        """End the logs that are being followed, at a line's end, and the shells."""
        self._shells.close()
        now = asyncio.get_running_loop().time()
        for following in self._following:
            following.reschedule(now)

    async def _openapi(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002
        return web.Response(body=self._document, content_type="application/json")

    async def list_apps(self, request: web.Request) -> Apps:
        """GET /apps."""
        caller = _caller(request)
        return Apps([app for app in await self._control.apps() if caller.sees(app.name)])

    async def get_app(self, request: web.Request) -> App:
        """GET /apps/{name}."""
        name = request.match_info["name"]
        for app in await self._control.apps():
            if app.name == name:
                return app
        raise Problem("not-found", f"There is no app named {name[:80]!r}. `pilotlight list` shows all.")

    async def delete_app(self, request: web.Request) -> None:
        """DELETE /apps/{name}."""
        app = await self.get_app(request)
        for function in app.functions:
            await self._control.delete_function(function, _caller(request).actor)
        await self._delete_repository(app.name)

    async def _delete_repository(self, app: str) -> None:
        status, body = await self._builder.ask("DELETE", f"/repositories/{quote(app, safe='')}")
        if status >= 400 and status != 404:
            raise Problem(
                "unavailable",
                f"The functions of {app!r} are deleted, but the builder could not delete its repository (it "
                f"answered {status}: {body[:200].decode(errors='replace')}). Delete it again.",
            )

    async def list_functions(self, request: web.Request) -> Functions:
        """GET /functions."""
        caller = _caller(request)
        found = {each.name: each for each in await self._control.functions() if caller.sees(each.app)}
        for body in await self._elsewhere.ask(request):
            for there in msgspec.json.decode(body, type=Functions).functions:
                if (here := found.get(there.name)) is not None:
                    both = {"instances": here.instances + there.instances, "calls": here.calls + there.calls}
                    found[there.name] = msgspec.structs.replace(here, **both)
        return Functions(list(found.values()))

    async def get_function(self, request: web.Request) -> FunctionStatus:
        """GET /functions/{name}."""
        name = request.match_info["name"]
        for function in await self._control.functions():
            if function.name == name:
                return function
        raise Problem(
            "unknown-function",
            f"There is no function named {name[:80]!r}. `pilotlight list` shows those there are.",
        )

    async def delete_function(self, request: web.Request) -> None:
        """DELETE /functions/{name}."""
        function = await self.get_function(request)
        if await self._control.delete_function(function.name, _caller(request).actor):
            # without this, a push of the same commit would be "up to date" and deploy nothing
            await self._delete_repository(function.app)

    async def list_instances(self, request: web.Request) -> Instances:
        """GET /instances."""
        caller = _caller(request)
        found = await self._control.instances(None)
        for body in await self._elsewhere.ask(request):
            found += msgspec.json.decode(body, type=Instances).instances
        return Instances([each for each in found if caller.sees(self._routes.app(each.function))])

    async def list_function_instances(self, request: web.Request) -> Instances:
        """GET /functions/{name}/instances."""
        return Instances(await self._control.instances(request.match_info["name"]))

    async def scale_to_zero(self, request: web.Request) -> EndedInstances:
        """DELETE /functions/{name}/instances."""
        name = request.match_info["name"]
        return EndedInstances(await self._control.scale_to_zero(name, _caller(request).actor))

    async def list_revisions(self, request: web.Request) -> Revisions:
        """GET /functions/{name}/revisions."""
        return Revisions(await self._control.revisions(request.match_info["name"]))

    async def rollback(self, request: web.Request) -> msgspec.Struct:
        """POST /functions/{name}/rollback."""
        wanted = await _body(request, Rollback, optional=True)
        name = request.match_info["name"]
        return await self._control.rollback(name, wanted.revision, _caller(request).actor)

    async def read_logs(self, request: web.Request) -> web.StreamResponse:
        """GET /functions/{name}/logs, line by line."""
        (operation,) = (each for each in OPERATIONS if each.name == "read_logs")
        tail, follow = (_query(request, each) for each in operation.query)
        name = request.match_info["name"]
        if follow:
            await self._control.instances(name)  # raises while there still is a status to set
        else:
            await self._control.revisions(name)
        others = [] if follow else await self._elsewhere.ask(request)
        if others:
            return await self._all_logs(name, int(tail), others)
        response = web.StreamResponse(headers={"Content-Type": operation.media_type})
        response.enable_chunked_encoding()
        await response.prepare(request)
        lines = cast("AsyncGenerator[LogLine, None]", self._control.logs(name, int(tail), bool(follow)))
        try:
            async with asyncio.timeout(None) as following, aclosing(lines):
                self._following.add(following)
                try:
                    async for line in lines:
                        await response.write(msgspec.json.encode(line) + b"\n")
                finally:
                    self._following.discard(following)
        except TimeoutError:
            pass  # the gateway is shutting down: `close` made the time run out
        await response.write_eof()
        return response

    async def _all_logs(self, name: str, tail: int, others: list[bytes]) -> web.Response:
        """Return the latest lines of all machines."""
        lines = [line async for line in self._control.logs(name, tail, False)]
        for body in others:
            lines += msgspec.json.Decoder(LogLine).decode_lines(body)
        latest = sorted(lines, key=lambda line: line.time)[-tail:] if tail else []
        (operation,) = (each for each in OPERATIONS if each.name == "read_logs")
        return web.Response(
            body=msgspec.json.Encoder().encode_lines(latest), headers={"Content-Type": operation.media_type}
        )

    async def list_invocations(self, request: web.Request) -> EndedCalls:
        """GET /functions/{name}/invocations."""
        (operation,) = (each for each in OPERATIONS if each.name == "list_invocations")
        tail, failed = (_query(request, each) for each in operation.query)
        found = await self._control.invocations(request.match_info["name"], int(tail), bool(failed))
        if others := await self._elsewhere.ask(request):
            for body in others:
                found += msgspec.json.decode(body, type=EndedCalls).invocations
            found = sorted(found, key=lambda call: call.started + call.duration)[-int(tail) :] if tail else []
        return EndedCalls(found)

    async def explain_request(self, request: web.Request) -> Stories:
        """GET /requests/{id}."""
        caller = _caller(request)
        others = [
            story
            for body in await self._elsewhere.ask(request)
            for story in msgspec.json.decode(body, type=Stories).stories
        ]
        try:
            found = others + await self._control.story(request.match_info["id"])
        except Problem:
            if not others:
                raise
            found = others
        found.sort(key=lambda story: story.call.started)
        shown = [each for each in found if caller.sees(self._routes.app(each.call.function))]
        if not shown:
            raise Problem("not-found", f"No call of this request was to the app {caller.key.app!r}.")
        return Stories(shown)

    async def open_shell(self, request: web.Request) -> web.StreamResponse:
        """GET /functions/{name}/shell, a WebSocket."""
        return await self._shells.answer(request, request.match_info["name"], _caller(request))

    async def trace_imports(self, request: web.Request) -> Imports:
        """POST /functions/{name}/imports."""
        return Imports(await self._control.imports(request.match_info["name"]))

    async def empty_cache(self, request: web.Request) -> None:
        """DELETE /caches/{stage}."""
        await self._control.empty(request.match_info["stage"], _caller(request).actor)

    async def list_layers(self, request: web.Request) -> Layers:  # noqa: ARG002
        """GET /layers."""
        return Layers(await self._control.layers())

    async def list_images(self, request: web.Request) -> Images:  # noqa: ARG002
        """GET /images."""
        return Images(await self._control.images())

    async def list_secrets(self, request: web.Request) -> Secrets:
        """GET /secrets."""
        return Secrets(await self._vault.secrets(_caller(request).actor))

    async def put_secret(self, request: web.Request) -> None:
        """PUT /secrets/{name}."""
        name = request.match_info["name"]
        if not _SECRET_NAME.fullmatch(name):
            raise Problem(
                "invalid-request",
                f"{name[:80]!r} can't name a secret: functions see it as a variable of the environment. Use "
                "letters, digits and underscores, no digit first.",
            )
        secret = await _body(request, SecretValue)
        if "\0" in secret.value:
            raise Problem("invalid-request", "The value holds a NUL character, which the environment can't.")
        await self._vault.put_secret(name, secret.value, _caller(request).actor)

    async def delete_secret(self, request: web.Request) -> None:
        """DELETE /secrets/{name}."""
        await self._vault.delete_secret(request.match_info["name"], _caller(request).actor)

    async def list_keys(self, request: web.Request) -> Keys:  # noqa: ARG002
        """GET /keys."""
        return Keys([KeyInfo(*_told(key)) for key in await self._vault.keys()])

    async def create_key(self, request: web.Request) -> CreatedKey:
        """POST /keys."""
        wanted = await _body(request, NewKey)
        _check_key(wanted)
        key, secret = await self._vault.create_key(
            wanted.name,
            tuple(dict.fromkeys(wanted.scopes)),
            wanted.app,
            wanted.expires,
            _caller(request).actor,
        )
        return CreatedKey(*_told(key), secret)

    async def delete_key(self, request: web.Request) -> None:
        """DELETE /keys/{id}."""
        await self._vault.delete_key(request.match_info["id"], _caller(request).actor)

    async def read_audit(self, request: web.Request) -> Audit:
        """GET /audit."""
        (operation,) = (each for each in OPERATIONS if each.name == "read_audit")
        return Audit(await self._vault.audit(int(_query(request, operation.query[0]))))

    async def list_guarantees(self, request: web.Request) -> Guarantees:  # noqa: ARG002
        """GET /guarantees."""
        return Guarantees(await self._control.guarantees())


def _caller(request: web.Request) -> Caller:
    """Return who asks; the application has found out."""
    return request[CALLER]


def _told(key: Key) -> tuple[str, str, float, tuple[Scope, ...], str | None, float | None]:
    """Return what is told of a key."""
    return key.id, key.name, key.created, key.scopes, key.app, key.expires


def _encoded(operation: Operation, handler: Callable[[web.Request], Awaitable[Any]]) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        result = await handler(request)
        if operation.answers is None:
            return web.Response(status=operation.status)
        return web.Response(
            status=operation.status,
            body=msgspec.json.encode(result) + b"\n",
            content_type=operation.media_type,
        )

    return answer


def _check_key(wanted: NewKey) -> None:
    """Raise Problem `invalid-request` for a key that can't be."""
    if not 0 < len(wanted.name) <= 100 or not wanted.name.isprintable():
        raise Problem("invalid-request", "The name of a key must have 1 to 100 characters, all printable.")
    if not wanted.scopes:
        raise Problem("invalid-request", f"A key needs a scope: {', '.join(Scope)}.")
    if wanted.app is not None and not is_name(wanted.app):
        raise Problem("invalid-request", f"{wanted.app[:80]!r} can't name an app. Use {NAME_RULE}.")
    if wanted.app is not None and Scope.ADMIN in wanted.scopes:
        raise Problem(
            "invalid-request",
            "A key with the scope admin is good for everything, so it can't be for one app. Choose invoke, "
            "deploy or data, or name no app.",
        )
    if wanted.expires is not None and not time.time() < wanted.expires < _END_OF_TIME:
        raise Problem("invalid-request", "A key has to expire in the future, before the year 10000.")


async def _body(request: web.Request, kind: type[S], *, optional: bool = False) -> S:
    """Read the JSON body. Raises Problem that names what was expected."""
    data = await request.read()
    if optional and not data.strip():
        data = b"{}"
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        members = ", ".join(f'"{field.encode_name}"' for field in msgspec.structs.fields(kind))
        raise Problem(
            "invalid-request", f"The body must be a JSON object with the member {members}: {error}."
        ) from error


def _query(request: web.Request, query: Query) -> int | bool:
    """Read a query parameter. Raises Problem that names what was expected."""
    text = request.query.get(query.name)
    if text is None:
        return query.default
    if query.type == "boolean":
        if text in ("true", "false"):
            return text == "true"
        expected = "true or false"
    else:
        if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= (query.maximum or 0):
            return int(text)
        expected = f"a whole number from 0 to {query.maximum}"
    raise Problem("invalid-request", f"?{query.name}= must be {expected}, and was {text[:40]!r}.")
