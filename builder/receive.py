"""The git remote: the routes of smart HTTP, and git's own `http-backend` behind them."""

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import unquote

import msgspec
from aiohttp import web

from builder.cgi import Running, run
from builder.metrics import Metrics
from builder.pushes import Pushes
from builder.repository import Repositories
from builder.room import Room
from function_service.contract import PLATFORM, Actor
from pilotlight.ids import NAME_RULE, is_name
from pilotlight.problems import Problem
from pilotlight.server_name import sign_before_sending

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PUSH: Final = "git-receive-pack"
FETCH: Final = "git-upload-pack"
_HOST = re.compile(r"[A-Za-z0-9.\-\[\]:]{1,300}")

# What `git http-backend` starts, without git itself between it and us: see `_TIED` in cgi.py
_BACKEND: Final = ("sh", "-c", 'exec "$(git --exec-path)/git-http-backend"')


class GitRemote:
    """The handlers. Whoever may reach the socket may push: the gateway asks for the key."""

    def __init__(self, repositories: Repositories, pushes: Pushes, hooks: str, metrics: Metrics) -> None:
        self._repositories = repositories
        self._pushes = pushes
        self._hooks = hooks  # the path of the socket that hooks ask
        self._metrics = metrics
        self._running = Running(repositories.limits)
        self._room = Room(repositories)

    def application(self) -> web.Application:
        """Return the routes."""
        app = web.Application(middlewares=[_problems])
        app.on_response_prepare.append(sign_before_sending)
        app.router.add_get("/git/{app}.git/info/refs", self.refs)
        app.router.add_post("/git/{app}.git/" + PUSH, self.push)
        app.router.add_post("/git/{app}.git/" + FETCH, self.fetch)
        app.router.add_delete("/repositories/{app}", self.delete)
        app.router.add_get("/metrics", self.metrics)
        return app

    async def refs(self, request: web.Request) -> web.StreamResponse:
        """Tell a client which refs there are, before it pushes or fetches."""
        app = _app(request)
        service = request.query.get("service")
        if service not in {PUSH, FETCH}:
            raise Problem("forbidden", f"Only {PUSH} and {FETCH} are served, over git's smart HTTP protocol.")
        if service == PUSH:  # where it is refused here, git shows the reason
            await self._room.make(app)
        async with self._pushes.reading(app):
            if self._repositories.exists(app):
                return await self._git(request, f"{app}.git")
        if service == FETCH:
            raise _unknown(app)
        # the repository is made once something comes; until then its refs are those of an empty one
        return await self._git(request, self._repositories.empty.name)

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """Send what a clone or fetch asks for."""
        app = _app(request)
        async with self._pushes.reading(app):
            if not self._repositories.exists(app):
                raise _unknown(app)
            return await self._git(request, f"{app}.git")

    async def push(self, request: web.Request) -> web.StreamResponse:
        """Take a push; git's hooks build and deploy it on the way."""
        app = _app(request)
        await self._room.make(app)
        async with self._pushes.open(app, _url(request), _pusher(request)) as push:
            extra = {"PILOTLIGHT_PUSH": push.id, "PILOTLIGHT_HOOKS": self._hooks}
            return await self._git(request, f"{app}.git", extra)

    async def delete(self, request: web.Request) -> web.Response:
        """Remove a repository."""
        await self._pushes.delete(_app(request))
        return web.Response(status=204)

    async def metrics(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """Tell what was counted."""
        return web.Response(
            body=self._metrics.text(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _git(
        self, request: web.Request, repository: str, extra: dict[str, str] | None = None
    ) -> web.StreamResponse:
        # what stands behind the repository's name is one of the three routes
        path = f"/{repository}/{request.path.split('.git/', 1)[1]}"
        environment = {
            **self._repositories.environment(),
            "GIT_PROJECT_ROOT": str(self._repositories.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            **(extra or {}),
        }
        async with self._running.one():
            return await run(_BACKEND, environment, request, self._repositories.limits)


def _app(request: web.Request) -> str:
    app = request.match_info["app"]
    if not is_name(app):
        raise Problem("invalid-request", f"{app!r} can't name an app. Use {NAME_RULE}.")
    return app


def _unknown(app: str) -> Problem:
    return Problem("not-found", f"There is no app {app!r} here. The first push makes it.")


def _pusher(request: web.Request) -> Actor:
    """Return who pushes, as the gateway tells it."""
    try:
        return msgspec.json.decode(unquote(request.headers.get("Pilotlight-By", "")), type=Actor)
    except msgspec.DecodeError:
        return PLATFORM


def _url(request: web.Request) -> str:
    """Return the gateway's URL as the client wrote it."""
    scheme = "https" if request.headers.get("X-Forwarded-Proto") == "https" else "http"
    host = request.headers.get("X-Forwarded-Host") or request.headers.get("Host") or "127.0.0.1"
    return f"{scheme}://{host if _HOST.fullmatch(host) else '127.0.0.1'}"


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn refusals into answers."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        problem = Problem("method-not-allowed", f"{request.method} is not allowed here; use {allowed}.")
    except web.HTTPNotFound:
        problem = Problem("not-found", f"There is nothing at {request.path}. A git remote is /git/APP.git.")
    except Problem as refusal:
        problem = refusal
    except ConnectionError:
        raise  # the client is gone; aiohttp ends the connection
    except Exception as error:  # noqa: BLE001  the boundary: a fault must reach the log and the client
        _log.exception("%s %s failed", request.method, request.path)
        problem = Problem("internal", f"The builder failed: {type(error).__name__}: {error}")
    if problem.status >= 500:
        _log.error("%s %s: %s", request.method, request.path, problem.detail)
    return answer(problem, from_git=request.headers.get("User-Agent", "").startswith("git/"))


def answer(problem: Problem, *, from_git: bool) -> web.Response:
    """Return a refusal as a problem document; as plain text for git, which shows its user only that."""
    headers = problem.headers()
    if from_git:
        headers["Content-Type"] = "text/plain; charset=utf-8"
        return web.Response(status=problem.status, body=problem.detail.encode() + b"\n", headers=headers)
    return web.Response(status=problem.status, body=msgspec.json.encode(problem.document()), headers=headers)
