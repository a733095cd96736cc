"""The layer with a function's own files: addressed by the files and by what they are made with.

It also holds the function's code in compiled form. Where only loading the code can make that (`CompileCache`
in `runtimes/declaration.py`), dependencies have a part in it, and so in the address. It lies here and not
beside them, since functions that share dependencies must not share what one of them has made.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder.dependencies import FORMAT, steps_digest
from builder.detect import Found
from builder.source import Tree
from builder.steps import Say, Workshop
from function_service.contract import Mount
from runtimes.declaration import CompileCache, Step

_NOTHING: Final = "c" + hashlib.sha256(FORMAT + b" nothing").hexdigest()[:40]
"""The layer of what brings its files along in an image: there is none in it."""


@dataclass(frozen=True)
class CodePlan:
    """What a layer of code is to be made from, and the digest that addresses it."""

    digest: str
    steps: tuple[Step, ...]
    cache: CompileCache | None
    dependencies: str | None


def plan(found: Found, tree: Tree, dependencies: str | None) -> CodePlan:
    """Return how to make the code layer of a function; `dependencies` is the digest of that layer."""
    if found.by_file:
        return CodePlan(_NOTHING, (), None, None)
    runtime, interpreter = found.runtime, found.interpreter
    steps = runtime.assemble(found.folder, interpreter)
    total = hashlib.sha256(FORMAT + f" code {interpreter.key}\0{tree.digest(found.path)}".encode())
    total.update(steps_digest(steps))
    cache = runtime.compile_cache(interpreter, found.handler) if runtime.compile_cache else None
    if cache is not None:
        total.update(steps_digest((cache.step,)) + f"{cache.folder}\0{dependencies}".encode())
    return CodePlan("c" + total.hexdigest()[:40], steps, cache, dependencies)


async def build(found: Found, wanted: CodePlan, workshop: Workshop, folder: Path, say: Say) -> None:
    """Make the layer in `folder` unless it is in the store. Raises Problem."""
    if await workshop.builds.has_layer(wanted.digest):
        if not found.by_file:
            await say("  code: kept (no file changed)")
        return
    await workshop.run(found, wanted.steps, folder, say)
    if wanted.cache is not None:
        await _compile(found, wanted, wanted.cache, workshop, folder, say)
    await workshop.builds.seal_layer(
        wanted.digest, str(folder), f"code of {found.name} for {found.interpreter.name}"
    )


async def _compile(
    found: Found, wanted: CodePlan, cache: CompileCache, workshop: Workshop, folder: Path, say: Say
) -> None:
    """Add the compile cache. Code of the function makes it, which can change none of the function's files."""
    seen = [Mount(str(folder), "/function")]
    if wanted.dependencies is not None:
        seen.append(Mount(str(workshop.layers / wanted.dependencies), "/dependencies"))
    made = folder.with_name(f"{folder.name}{cache.folder}")
    if await workshop.attempt(found, cache.step, made, tuple(seen), say) and any(made.iterdir()):
        made.rename(folder / cache.folder)
