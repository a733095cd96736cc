"""The bare git repositories: where they lie, how git is started on them, and what their refs say.

Nothing is configured inside of a repository: every setting is handed to git with each command, so that
an old repository behaves as a new one, and nobody can change how ours behaves by changing a file in it.
"""

import asyncio
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder import folders
from builder.limits import Limits
from pilotlight.ids import short_id
from pilotlight.problems import Problem
from pilotlight.settings import inherited

ZERO: Final = "0" * 40
"""What stands for no object in a ref update."""

_GIT_DEADLINE: Final = 30.0
# what old but harmless commits in many real repositories have wrong with them
_TOLERATED = ("missingSpaceBeforeDate", "badTimezone", "zeroPaddedFilemode", "missingNameBeforeEmail")
_BRANCHES = "refs/heads/"
_OBJECT_HEADROOM = 32 << 20  # bytes that git takes at once beside an object


@dataclass(frozen=True)
class Update:
    """One ref that a push moves; ZERO stands for a ref that is not there before or after."""

    old: str
    new: str
    ref: str

    @property
    def branch(self) -> str | None:
        """The name of the branch, if it is one."""
        return self.ref.removeprefix(_BRANCHES) if self.ref.startswith(_BRANCHES) else None

    @property
    def deletes(self) -> bool:
        """Whether the ref goes away."""
        return self.new == ZERO


@dataclass(frozen=True)
class Branches:
    """The branches of a repository, and the one that is deployed (None where there is none yet)."""

    commits: dict[str, str]
    deployed: str | None


@dataclass(frozen=True)
class Repositories:
    """The folder with all repositories, and the settings that git gets."""

    root: Path
    limits: Limits

    @property
    def hooks(self) -> Path:
        """The folder with the hooks, for all repositories."""
        return self.root / ".hooks"

    @property
    def empty(self) -> Path:
        """An empty repository that all others are copied from."""
        return self.root / ".empty.git"

    def path(self, app: str) -> Path:
        """Return where the repository of an app lies, or would lie."""
        return self.root / f"{app}.git"

    def exists(self, app: str) -> bool:
        """Tell whether an app has a repository."""
        return self.path(app).is_dir()

    def apps(self) -> list[str]:
        """List the apps that have a repository."""
        return sorted(
            each.name.removesuffix(".git")
            for each in self.root.iterdir()
            if each.name.endswith(".git") and not each.name.startswith(".")
        )

    def environment(self) -> dict[str, str]:
        """Return the whole environment that git runs in."""
        config = {
            "core.hooksPath": str(self.hooks),
            "core.logAllRefUpdates": "false",
            "http.receivepack": "true",
            "http.uploadpack": "true",
            "receive.maxInputSize": str(self.limits.pack),
            "core.bigFileThreshold": str(self.limits.file),  # larger ones are never in memory as a whole
            "transfer.fsckObjects": "true",
            "receive.denyNonFastForwards": "false",
            "receive.denyDeletes": "false",
            "receive.autogc": "true",
            "gc.auto": "4000",
            "gc.autoDetach": "false",  # nothing of a push may run once the push has ended
            "safe.directory": "*",  # the folder is ours, also where it was restored as another user
            **{f"receive.fsck.{name}": "ignore" for name in _TOLERATED},
        }
        settings = {"GIT_CONFIG_COUNT": str(len(config))}
        for number, (key, value) in enumerate(config.items()):
            settings[f"GIT_CONFIG_KEY_{number}"] = key
            settings[f"GIT_CONFIG_VALUE_{number}"] = value
        return {
            **settings,
            **inherited("PATH"),
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.root),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            # Else who pushes refs/replace has another commit read, and deployed, than the one that is named
            "GIT_NO_REPLACE_OBJECTS": "1",
            # A pack of some kilobytes can hold an object that takes gigabytes once its deltas are applied
            "GIT_ALLOC_LIMIT": str(self.limits.file + _OBJECT_HEADROOM),
        }

    async def prepare(self) -> None:
        """Make what all repositories share. Raises Problem where git is missing."""
        if self.empty.is_dir():
            return
        fresh = self.root / f".new-{short_id()}"
        await self.git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(fresh))
        fresh.rename(self.empty)

    async def create(self, app: str) -> bool:
        """Make the repository of an app; return False if it is there already.

        Where the caller is cancelled, it goes on to its end first: a thread can't be called back.
        """
        if self.exists(app):
            return False
        making = asyncio.create_task(asyncio.to_thread(self._create, app), name=f"make {app}.git")
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait([making])
            raise

    def _create(self, app: str) -> bool:
        fresh = self.root / f".new-{short_id()}"
        try:
            shutil.copytree(self.empty, fresh)
            fresh.rename(self.path(app))
        except OSError:
            folders.remove(fresh)
            if self.exists(app):  # another push has made it meanwhile
                return False
            raise
        return True

    async def remove(self, app: str) -> None:
        """Remove the repository of an app: at once for everybody else, then from the disk."""
        gone = self.root / f".gone-{short_id()}"
        self.path(app).rename(gone)
        await asyncio.to_thread(folders.remove, gone)

    async def branches(self, app: str) -> Branches:
        """Return the branches and which of them is deployed."""
        text = await self.git(
            "for-each-ref", "--format=%(HEAD)%(objectname) %(refname)", _BRANCHES.rstrip("/"), app=app
        )
        commits: dict[str, str] = {}
        deployed = None
        for line in text.splitlines():
            commit, _, ref = line[1:].partition(" ")
            commits[ref.removeprefix(_BRANCHES)] = commit
            if line[0] == "*":
                deployed = ref.removeprefix(_BRANCHES)
        return Branches(commits, deployed)

    async def is_empty(self, app: str) -> bool:
        """Tell whether a repository has no ref at all."""
        return not await self.git("for-each-ref", "--count=1", app=app)

    async def deploy_branch(self, app: str, branch: str) -> None:
        """Make a branch the one that is deployed (and that a clone checks out)."""
        await self.git("symbolic-ref", "HEAD", _BRANCHES + branch, app=app)

    async def git(
        self,
        *arguments: str,
        app: str | None = None,
        env: Mapping[str, str] | None = None,
        within: float = _GIT_DEADLINE,
    ) -> str:
        """Run a git command for at most `within` seconds, and return what it prints.

        Raises Problem where it fails, TimeoutError.
        """
        repository = [] if app is None else [f"--git-dir={self.path(app)}"]
        try:
            process = await asyncio.create_subprocess_exec(
                "git",
                *repository,
                *arguments,
                env={**self.environment(), **(env or {})},
                cwd=self.root,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise Problem(
                "unavailable", "git is not installed on this machine. Install it (apt install git)."
            ) from error
        try:
            async with asyncio.timeout(within):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise Problem("internal", f"git {arguments[0]} failed: {err.decode(errors='replace').strip()}")
        return out.decode(errors="surrogateescape")
