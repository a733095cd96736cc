"""The image that a function names: looked at once a push, so that its builds and instances have the same."""

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from builder.detect import Found
from builder.steps import Say
from function_service.contract import Builds, Image, Output
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


async def settle(found: Found, builds: Builds, say: Say) -> Found:
    """Return the function with its image and the interpreter in it; as it is where it names none.

    Raises Problem `build-failed`.
    """
    if not isinstance(found.image, str):
        return found
    try:
        image = await _image(found.image, found.interpreter.name, builds, say)
    except Problem as problem:
        if problem.kind not in ("build-failed", "invalid-request"):
            raise
        detail = f"Function {found.name!r} can't run in the image {found.image}: {problem.detail}"
        raise Problem("build-failed", detail) from problem
    version = image.runtime.removeprefix(found.runtime.name)
    interpreter = Interpreter(found.runtime.name, version, image.executable, image=image.id)
    return replace(found, interpreter=interpreter, image=image)


async def _image(name: str, runtime: str, builds: Builds, say: Say) -> Image:
    # what a client returns is a generator, and leaving it early must end a pull at once
    stream = cast("AsyncGenerator[Output | Image]", builds.image(name, runtime))
    async with contextlib.aclosing(stream):
        async for event in stream:
            match event:
                case Image():
                    return event
                case Output(line):
                    await say(f"  {line}")
    raise Problem("internal", f"The search for the image {name} ended without saying how.")
