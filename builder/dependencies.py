"""The layer with what a function depends on: addressed by its inputs, shared by all that have the same."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder.detect import Found
from builder.package_index import PackageIndex
from builder.steps import Say, Workshop
from runtimes.declaration import Dependencies, Step

FORMAT: Final = b"1"
"""Changes when the same inputs would no longer make the same layers."""


@dataclass(frozen=True)
class DependenciesPlan:
    """What a layer of dependencies is to be made from, and the digest that addresses it."""

    digest: str
    steps: tuple[Step, ...]
    files: tuple[str, ...]


def steps_digest(steps: tuple[Step, ...]) -> bytes:
    """Return a digest of commands and their environment."""
    return hashlib.sha256(
        repr([(step.command, sorted(step.env.items()), step.network) for step in steps]).encode()
    ).digest()


def plan(found: Found, index: PackageIndex) -> DependenciesPlan | None:
    """Return how to make the dependencies of a function; None where it has none."""
    wanted: Dependencies | None = found.runtime.dependencies(found.folder, found.interpreter)
    if wanted is None:
        return None
    total = hashlib.sha256(FORMAT + f" dependencies {found.interpreter.key}\0".encode())
    for name, content in wanted.inputs:
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    total.update(steps_digest(wanted.steps))
    # the same names can mean other packages on another index
    total.update(repr(index.identity).encode())
    return DependenciesPlan(
        "d" + total.hexdigest()[:40], wanted.steps, tuple(name for name, _ in wanted.inputs)
    )


async def build(found: Found, wanted: DependenciesPlan, workshop: Workshop, folder: Path, say: Say) -> None:
    """Make the layer in `folder` unless it is in the store. Raises Problem."""
    if await workshop.builds.has_layer(wanted.digest):
        await say(f"  dependencies: kept ({', '.join(wanted.files)} did not change)")
        return
    await workshop.run(found, wanted.steps, folder, say)
    files = ", ".join(wanted.files)
    await workshop.builds.seal_layer(
        wanted.digest, str(folder), f"dependencies for {found.interpreter.name} from {files}"
    )
