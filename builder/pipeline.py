"""The walk of one push, from a commit that git has received to revisions that are prepared.

Everything happens before the ref moves; `pushes.py` decides whether a push deploys and does what follows.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from builder import assemble, dependencies, folders, images, manifest, publish
from builder.detect import Found, Languages, detect, has_image_file
from builder.limits import Limits
from builder.source import Commit, Tree, extract
from builder.steps import Say, Workshop
from function_service.contract import Image, Revision
from pilotlight.ids import short_id
from pilotlight.problems import Problem


@dataclass(frozen=True)
class Prepared:
    """A commit whose revisions the function service has; it goes live once the branch has moved."""

    app: str
    branch: str
    commit: str
    revisions: list[Revision]


@dataclass(frozen=True)
class Pipeline:
    """Turns commits into prepared revisions. `folder` is where builds happen."""

    folder: Path
    workshop: Workshop
    languages: Callable[[], Awaitable[Languages]]

    async def prepare(self, app: str, branch: str, commit: Commit, say: Say) -> Prepared:
        """Build what a commit changes, see that it starts, and store the revisions.

        Leaves nothing in the builds folder, however it ends. Raises Problem.
        """
        work = self.folder / short_id()
        work.mkdir(mode=0o755)
        try:
            walk = _Walk(app, commit, work, self.workshop, say)
            return Prepared(app, branch, commit.id, await walk.prepare(await self.languages()))
        finally:
            # a push that is broken off must not leave its folder, so this is seen through
            await asyncio.shield(asyncio.to_thread(folders.remove, work))


@dataclass(frozen=True)
class _Walk:
    """One commit on its way, in its own work folder."""

    app: str
    commit: Commit
    work: Path
    workshop: Workshop
    say: Say

    async def prepare(self, languages: Languages) -> list[Revision]:
        """Return the revisions of all functions of the commit, which are stored."""
        builds, limits, source = self.workshop.builds, self.workshop.limits, self.work / ".source"
        tree = await _extract(self.commit, source, limits)
        named = {} if tree.manifest is None else manifest.parse(tree.manifest)
        functions = await asyncio.to_thread(detect, self.app, source, named, languages, limits)
        _refuse_escapes(functions, tree)
        await builds.claim(self.app, [found.name for found in functions])
        live = {each.config.name: each for each in await builds.current(self.app)}
        revisions = [await self._function(found, tree, live.get(found.name)) for found in functions]
        for name in sorted(live.keys() - {found.name for found in functions}):
            await self.say(f"{name}: is not in this commit, and will be removed")
        await builds.prepare(self.app, self.commit.id, revisions)
        return revisions

    async def _function(self, found: Found, tree: Tree, present: Revision | None) -> Revision:
        """Return the revision of one function, built and tried unless it is present as it is."""
        found = await images.settle(found, tree, self.workshop, self.say)
        needs = await asyncio.to_thread(dependencies.plan, found, self.workshop.index)
        code = await asyncio.to_thread(assemble.plan, found, tree, needs.digest if needs else None)
        fresh = publish.revision(self.app, self.commit.id, found, code.digest, code.dependencies)
        if present is not None and present.id == fresh.id:
            await self.say(f"{found.name}: unchanged")
            return present
        where = f" in {found.image.name}" if isinstance(found.image, Image) else ""
        if not found.by_file:  # else it has said so before its image was built
            await self.say(f"{found.name}: {found.interpreter.name}{where}, {found.handler}")
            if has_image_file(found.runtime, found.folder):
                file = found.runtime.image_file
                await self.say(f'  its {file} is not used (with handler = "{file}" in the manifest it is)')
        work = self.work / found.name
        work.mkdir(mode=0o755)
        if needs is not None:
            await dependencies.build(found, needs, self.workshop, work / "dependencies", self.say)
        await assemble.build(found, code, self.workshop, work / "code", self.say)
        await publish.verify(self.workshop.builds, fresh, self.say)
        return fresh


async def _extract(commit: Commit, into: Path, limits: Limits) -> Tree:
    """Read the commit in a thread, which is told to end, and waited for, when the push is broken off."""
    stop = threading.Event()
    reading = asyncio.ensure_future(asyncio.to_thread(extract, commit, into, limits, stop))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(Problem):
            await reading
        raise


def _refuse_escapes(functions: list[Found], tree: Tree) -> None:
    lines = [
        f"{link!r} is a symbolic link that leads out of the function {found.name!r}. "
        "Put a copy of its target there."
        for found in functions
        for link in tree.escaping(found.path)
    ]
    if lines:
        raise Problem("build-failed", "\n".join(lines))
