"""The layer with a function's own files: addressed by the files and by what they are made with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from builder.dependencies import FORMAT, steps_digest
from builder.detect import Found
from builder.source import Tree
from builder.steps import Say, Workshop
from runtimes.declaration import Step


@dataclass(frozen=True)
class CodePlan:
    """What a layer of code is to be made from, and the digest that addresses it."""

    digest: str
    steps: tuple[Step, ...]


def plan(found: Found, tree: Tree) -> CodePlan:
    """Return how to make the code layer of a function."""
    steps = found.runtime.assemble(found.folder, found.interpreter)
    total = hashlib.sha256(FORMAT + f" code {found.interpreter.name}\0{tree.digest(found.path)}".encode())
    total.update(steps_digest(steps))
    return CodePlan("c" + total.hexdigest()[:40], steps)


async def build(found: Found, wanted: CodePlan, workshop: Workshop, folder: Path, say: Say) -> None:
    """Make the layer in `folder` unless it is in the store. Raises Problem."""
    if await workshop.builds.has_layer(wanted.digest):
        await say("  code: kept (no file changed)")
        return
    await workshop.run(found, wanted.steps, folder, say)
    await workshop.builds.seal_layer(
        wanted.digest, str(folder), f"code of {found.name} for {found.interpreter.name}"
    )
