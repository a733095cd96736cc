"""The images that functions name: found by the engine, and asked what they have for a runtime."""

import contextlib
import logging
import shlex
from collections.abc import AsyncGenerator, Iterable

from function_service.contract import Image, ImageBuild, ImageStatus, Job, Output, Revision
from function_service.engines.base import Engine, FoundImage, ImageSource
from function_service.printed import printed
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter, Probe, Runtime, load_all

_log = logging.getLogger(__name__)
_PROBE_WITHIN = 60.0  # seconds
_NOT_FOUND = (126, 127)  # the exit codes of what could not be started
_BY_DOCKERFILE = "Dockerfile"


def source(engine: Engine) -> ImageSource:
    """Return where the images of an engine are. Raises Problem `invalid-request` where it has none."""
    if engine.images is None:
        detail = "Images are Docker's, and this platform runs without it. Start it with --engine docker."
        raise Problem("invalid-request", detail)
    return engine.images


def refusal(engine: Engine, revision: Revision) -> str:
    """Return why a revision can't be started for the image that it needs; empty where it can."""
    image = revision.image
    if image is None:
        return ""
    if engine.images is None:
        return (
            f"{revision.config.name!r} runs in the image {image.name}, which takes Docker, and this platform "
            "runs without it now. Start it with --engine docker, or push without `image`."
        )
    named = image.bases if image.name == _BY_DOCKERFILE else (image.name,)
    why = next((why for name in named if (why := engine.images.refusal(name))), "")
    return why and f"{revision.config.name!r} is not started any more: {why}"


def check(engine: Engine, revision: Revision) -> None:
    """Raise Problem `init-failed` where there is a refusal."""
    why = refusal(engine, revision)
    if why:
        raise Problem("init-failed", why)


def tell_refused(engine: Engine, revisions: Iterable[Revision]) -> None:
    """Log which functions can't be started for their images, such as those permitted no more."""
    for revision in revisions:
        why = refusal(engine, revision)
        if why:
            _log.warning("action=refused function=%s detail=%r", revision.config.name, why)


async def resolve(engine: Engine, name: str, runtime: str) -> AsyncGenerator[Output | Image, None]:
    """Find an image and what it has for a runtime (see contract.Builds.image). Raises Problem."""
    found = None
    async with contextlib.aclosing(source(engine).find(name)) as items:
        async for item in items:
            match item:
                case Output():
                    yield item
                case FoundImage():
                    found = item
    if found is None:
        raise Problem("internal", f"The search for the image {name!r} ended without saying how.")
    declared = load_all()[runtime.rstrip("0123456789.")]
    if declared.probe is None:
        yield Image(
            name=name, id=found.id, runtime=runtime, executable="", env=found.env, source=found.source
        )
        return
    interpreter = await _interpreter(engine, name, found, runtime, declared, declared.probe)
    yield Image(
        name=name,
        id=found.id,
        runtime=interpreter.name,
        executable=interpreter.executable,
        env=found.env,
        source=found.source,
    )


async def build(engine: Engine, order: ImageBuild) -> AsyncGenerator[Output | Image, None]:
    """Build the image of a function (see contract.Builds.build_image). Raises Problem."""
    async with contextlib.aclosing(source(engine).build(order)) as items:
        async for item in items:
            match item:
                case Output():
                    yield item
                case FoundImage():
                    yield Image(
                        name=_BY_DOCKERFILE,
                        id=item.id,
                        runtime="native",
                        executable="",
                        env=item.env,
                        command=item.command,
                        folder=item.folder,
                        bases=item.bases,
                    )


async def listed(engine: Engine, revisions: Iterable[Revision]) -> list[ImageStatus]:
    """List the images that there are, and those that a revision needs and that are gone. Raises Problem."""
    if engine.images is None:
        return []
    names: dict[str, str] = {}
    users: dict[str, set[str]] = {}
    for revision in revisions:
        if revision.image is not None:
            names[revision.image.id] = revision.image.name
            users.setdefault(revision.image.id, set()).add(revision.config.name)
    found = [
        ImageStatus(
            id=each.id,
            name=each.name or names.get(each.id, ""),
            kind=each.kind,
            functions=sorted(users.pop(each.id, ())),
            size=each.size,
            created=each.created,
            present=True,
        )
        for each in await engine.images.known(users.keys())
    ]
    gone = [
        ImageStatus(
            id=id_,
            name=names[id_],
            kind="dockerfile" if names[id_] == _BY_DOCKERFILE else "named",
            functions=sorted(functions),
            size=0,
            created=0.0,
            present=False,
        )
        for id_, functions in users.items()
    ]
    return sorted([*found, *gone], key=lambda each: (each.kind, each.name, -each.created))


async def _interpreter(
    engine: Engine, name: str, found: FoundImage, runtime: str, declared: Runtime, probe: Probe
) -> Interpreter:
    """Return the interpreter of a runtime that an image has. Raises Problem `build-failed`."""
    command = probe.command(runtime)
    job = Job(
        runtime=runtime,
        image=found.id,
        command=command,
        mounts=(),
        env={name: found.env[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in found.env},
        folder="/tmp",  # noqa: S108  the container's own
        timeout=_PROBE_WITHIN,
    )
    lines, end = await printed(engine, job)
    if end.code or end.reason:
        why = f"`{shlex.join(command[:1])}` failed there ({end.reason or f'exit code {end.code}'})"
        if end.code in _NOT_FOUND:
            why = f"there is no `{command[0]}` in its PATH that can be run"
        raise _unfit(name, declared, "\n".join([f"{why}.", *lines[-5:]]))
    try:
        interpreter = probe.read(lines)
    except ValueError as error:
        raise _unfit(name, declared, f"{error}.") from error
    if runtime not in (interpreter.runtime, interpreter.name):
        raise _unfit(name, declared, f"it has {interpreter.name}, and `runtime` says {runtime}.")
    return interpreter


def _unfit(name: str, declared: Runtime, why: str) -> Problem:
    detail = f"The image {name} can't run {declared.title} functions: {why}"
    return Problem("build-failed", f"{detail}\nName another image, or install it in this one.")
