"""What a function's import is made of: told by its runtime, in a sandbox like that of a build."""

from function_service.contract import Imported, Job, Mount, Revision
from function_service.engines.base import Engine
from function_service.layers.store import LayerStore
from function_service.printed import printed
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter, Runtime

_LAST_LINES = 20


async def trace(
    revision: Revision,
    runtime: Runtime,
    interpreter: Interpreter,
    engine: Engine,
    layers: LayerStore,
    secrets: dict[str, str],
) -> list[Imported]:
    """Import a revision once more, and tell what each module cost. Raises Problem.

    It sees its environment and secrets as an instance does, but neither data nor network.
    """
    config = revision.config
    if runtime.imports is None:
        raise Problem("invalid-request", f"{runtime.title} can't tell what the imports of a function cost.")
    mounts = [Mount(str(layers.path(revision.code)), "/function")]
    if revision.dependencies is not None:
        mounts.append(Mount(str(layers.path(revision.dependencies)), "/dependencies"))
    job = Job(
        runtime=config.runtime,
        image=interpreter.image,
        command=runtime.imports.command(interpreter, config.handler),
        mounts=tuple(mounts),
        env={
            **config.env,
            **{name: secrets[name] for name in config.secrets if name in secrets},
            "PILOTLIGHT_FUNCTION": config.name,
            "PILOTLIGHT_REVISION": revision.id,
        },
        folder="/function",
        memory=config.memory,
        timeout=config.timeout,
    )
    lines, end = await printed(engine, job)
    if end.code or end.reason:
        said = [line for line in lines if not line.startswith("import time:")][-_LAST_LINES:]
        detail = f"Its import failed: {end.reason or f'exit code {end.code}'}."
        raise Problem("init-failed", detail, logs=said)
    return [
        Imported(name=each.name, depth=each.depth, own=each.own, total=each.total)
        for each in runtime.imports.read(lines)
    ]
