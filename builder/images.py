"""The image of a function, settled once a push: one that it names, or that its Dockerfile builds."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

from builder.dependencies import FORMAT
from builder.detect import Found
from builder.source import Tree
from builder.steps import Say, Shown, Workshop
from function_service.contract import Image, ImageBuild, Output
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_REFUSALS: Final = ("build-failed", "invalid-request")


async def settle(found: Found, tree: Tree, workshop: Workshop, say: Say) -> Found:
    """Return the function with its image and the interpreter in it; as it is where it has none.

    Raises Problem `build-failed`.
    """
    builds = workshop.builds
    if found.by_file:
        await say(f"{found.name}: {found.runtime.name}, by its {found.handler}")
        why = f"Function {found.name!r} can't be built by its {found.handler}"
        order = _order(found, tree, workshop)
        image = await _image(builds.build_image(order), why, Shown(workshop.limits, say))
    elif isinstance(found.image, str):
        why = f"Function {found.name!r} can't run in the image {found.image}"
        looking = builds.image(found.image, found.interpreter.name)
        image = await _image(looking, why, Shown(workshop.limits, say, "  "))
    else:
        return found
    version = image.runtime.removeprefix(found.runtime.name)
    interpreter = Interpreter(found.runtime.name, version, image.executable, image=image.id)
    return replace(found, interpreter=interpreter, image=image)


def _order(found: Found, tree: Tree, workshop: Workshop) -> ImageBuild:
    limits = workshop.limits
    return ImageBuild(
        folder=str(found.folder),
        digest=f"{FORMAT.decode()}-{tree.digest(found.path)[:24]}",
        memory=limits.memory,
        cpu=limits.cpu,
        timeout=limits.image,
        growth=limits.output,
    )


async def _image(events: AsyncIterator[Output | Image], why: str, shown: Shown) -> Image:
    """Return the image that a stream ends with, and show what it tells before. Raises Problem."""
    # what a client returns is a generator, and leaving it early must end a pull or a build at once
    stream = cast("AsyncGenerator[Output | Image]", events)
    try:
        async with contextlib.aclosing(stream):
            async for event in stream:
                match event:
                    case Image():
                        return event
                    case Output(line):
                        await shown.line(line)
    except Problem as problem:
        if problem.kind not in _REFUSALS:
            raise
        raise Problem("build-failed", f"{why}: {problem.detail}") from problem
    raise Problem("internal", f"{why}: it ended without saying how.")
