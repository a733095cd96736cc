"""From built functions to revisions: what they are called, that they start, and when they go live."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from builder.detect import Found
from builder.steps import Say
from function_service.contract import PLATFORM, Access, Actor, Builds, FunctionConfig, Image, Revision
from pilotlight.problems import Problem

T = TypeVar("T")

_PATIENCE: Final = 20.0  # seconds for a function service that restarts just when a ref has moved


def revision(app: str, commit: str, found: Found, code: str, dependencies: str | None) -> Revision:
    """Return the revision of a function; its id depends on what it is, not on when it was pushed."""
    config = FunctionConfig(
        name=found.name, runtime=found.interpreter.name, handler=found.handler, **found.values
    )
    image = found.image if isinstance(found.image, Image) else None
    # What has no image is called as it was before there were any
    identity: tuple[object, ...] = (config, code, dependencies)
    if image is not None:  # wherever that came from
        identity = (*identity, msgspec.structs.replace(image, source=""))
    content = msgspec.json.encode(identity, order="deterministic")
    return Revision(
        id="r" + hashlib.sha256(content).hexdigest()[:12],
        app=app,
        config=config,
        code=code,
        dependencies=dependencies,
        image=image,
        commit=commit,
        created=time.time(),
    )


async def verify(builds: Builds, fresh: Revision, say: Say) -> None:
    """Start a revision once. Raises Problem `build-failed` with the function's real error."""
    started = time.monotonic()
    try:
        await builds.verify(fresh)
    except Problem as problem:
        printed = [str(line) for line in problem.extra.get("logs", ())]
        if printed:
            await say("  it printed:")
            await say("\n".join(f"    {line}" for line in printed))
        raise Problem(
            "build-failed", f"Function {fresh.config.name!r} does not start: {problem.detail}"
        ) from problem
    await say(f"  starts, in {(time.monotonic() - started) * 1000:.0f} ms: revision {fresh.id}")


async def activate(builds: Builds, app: str, commit: str, by: Actor = PLATFORM) -> None:
    """Make a prepared commit live; waits for a function service that is restarting. Raises Problem."""
    await _patiently(lambda: builds.activate(app, commit, by))


async def live_commit(builds: Builds, app: str) -> str | None:
    """Return the commit that is live; waits for a function service that is starting. Raises Problem."""
    return await _patiently(lambda: builds.commit(app))


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return await call()
        except Problem as problem:
            if problem.kind != "unavailable" or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.2)


def addresses(url: str, revisions: list[Revision]) -> list[str]:
    """Return a line for each function: where it is called."""
    width = max(len(each.config.name) for each in revisions)
    notes = {
        Access.KEY: " (with a key)",
        Access.PUBLIC: "",
        Access.INTERNAL: " (by other functions only)",
    }
    return [
        f"  {each.config.name:<{width}}  {url}/function/{each.config.name}{notes[each.config.access]}"
        for each in revisions
    ]
