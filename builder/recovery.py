"""What a builder does about the end of the one before it: half-done work goes, moved refs go live."""

import logging

from builder import folders, publish
from builder.pushes import Pushes, sweep
from builder.repository import Repositories
from function_service.contract import Builds
from pilotlight.datafolder import DataFolder
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)


def clear(data: DataFolder, repositories: Repositories) -> None:
    """Remove what builds and pushes had on the disk when the builder ended."""
    for folder in data.builds.iterdir():
        folders.remove(folder)
    for pattern in (".new-*", ".gone-*"):
        for folder in repositories.root.glob(pattern):
            folders.remove(folder)
    for app in repositories.apps():
        sweep(repositories.path(app))


async def catch_up(repositories: Repositories, pushes: Pushes, builds: Builds) -> None:
    """Activate each commit that its branch had reached; remove repositories that nothing ever reached."""
    for app in repositories.apps():
        try:
            await pushes.tidy(app)
            async with pushes.alone(app):
                await _catch_up(app, repositories, builds)
        except Problem as problem:
            _log.warning("The app %s was not brought up to date: %s", app, problem.detail)


async def _catch_up(app: str, repositories: Repositories, builds: Builds) -> None:
    if not repositories.exists(app):
        return
    branches = await repositories.branches(app)
    if branches.deployed is None:
        return
    commit = branches.commits[branches.deployed]
    if await publish.live_commit(builds, app) == commit:
        return
    try:
        await publish.activate(builds, app, commit)
    except Problem as problem:
        # its functions were deleted since, which is no fault: the next push brings them back
        if problem.kind != "not-found":
            raise
    else:
        _log.info("The app %s is live at %s now, which was pushed before the restart", app, commit[:10])
