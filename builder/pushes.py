"""The pushes under way: whose turn it is, what each means, and that each is seen through or undone."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from builder import folders, publish
from builder.hookserver import Question, Terminal
from builder.metrics import Metrics
from builder.pipeline import Pipeline, Prepared
from builder.refs import decide
from builder.repository import ZERO, Repositories
from builder.source import Commit
from function_service.contract import PLATFORM, Actor
from pilotlight.ids import new_id
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)


@dataclass
class Push:
    """One push, from the request to its end."""

    app: str
    url: str  # of the gateway, as the pusher sees it
    by: Actor = PLATFORM
    id: str = field(default_factory=new_id)
    holds_turn: bool = False
    prepared: Prepared | None = None
    live: bool = False


@dataclass
class _Place:
    """One app that is being worked on: who has the turn, and how many are there."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    uncleared: bool = False  # as others were there when it was to be cleared


class Pushes:
    """Gives each app to one push at a time, and answers git's hooks."""

    def __init__(self, repositories: Repositories, pipeline: Pipeline, metrics: Metrics) -> None:
        self._repositories = repositories
        self._pipeline = pipeline
        self._metrics = metrics
        self._limits = repositories.limits
        self._places: dict[str, _Place] = {}
        self._pushes: dict[str, Push] = {}
        self._builds = asyncio.Semaphore(self._limits.builds)
        self._ends: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self, app: str, url: str, by: Actor = PLATFORM) -> AsyncIterator[Push]:
        """Begin a push: its repository is there within, and whatever it left half-done is cleared after."""
        push = Push(app, url, by)
        place = self._enter(app)
        self._pushes[push.id] = push
        try:
            await self._repositories.create(app)
            yield push
        finally:
            # runs to its end even if the request is cancelled: the next push waits for it
            end = asyncio.create_task(self._end(push, place), name=f"end of push {push.id}")
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)
            await asyncio.shield(end)

    @contextlib.asynccontextmanager
    async def reading(self, app: str) -> AsyncIterator[None]:
        """Have the repository of an app, if there is one, stay while it is read.

        One without any ref goes when a push or a start has no more use for it; whoever reads it just then
        would find nothing.
        """
        place = self._enter(app)
        try:
            yield
        finally:
            try:
                if place.uncleared and place.users == 1:
                    await self._clear(app, place)
            except Problem as problem:
                _log.error("What is left of the app %s was not cleared: %s", app, problem.detail)
            finally:
                self._leave(app, place)

    def _enter(self, app: str) -> _Place:
        place = self._places.setdefault(app, _Place())
        place.users += 1
        return place

    def _leave(self, app: str, place: _Place) -> None:
        place.users -= 1
        if place.users == 0:
            del self._places[app]

    async def _end(self, push: Push, place: _Place) -> None:
        try:
            if push.prepared is not None and not push.live:
                await self._make_live_if_moved(push.prepared, push.by)
            await self._clear(push.app, place)
        except Problem as problem:
            _log.error("The end of push %s to %s: %s", push.id, push.app, problem.detail)
        finally:
            del self._pushes[push.id]
            if push.holds_turn:
                place.turn.release()
            self._leave(push.app, place)

    async def _make_live_if_moved(self, prepared: Prepared, by: Actor) -> None:
        """Activate what was prepared if its branch has got there, though nobody was told."""
        if not self._repositories.exists(prepared.app):
            return
        branches = await self._repositories.branches(prepared.app)
        if branches.commits.get(prepared.branch) == prepared.commit:
            await publish.activate(self._pipeline.workshop.builds, prepared.app, prepared.commit, by)

    async def _clear(self, app: str, place: _Place) -> None:
        """Remove what a push that failed left: quarantined objects, and a repository without any ref."""
        place.uncleared = place.users > 1
        if place.uncleared or not self._repositories.exists(app):
            return
        await asyncio.to_thread(sweep, self._repositories.path(app))
        if not await self._repositories.is_empty(app):
            return
        # somebody may have come while git looked, who keeps the repository then
        place.uncleared = place.users > 1
        if not place.uncleared:
            await self._repositories.remove(app)

    @contextlib.asynccontextmanager
    async def alone(self, app: str) -> AsyncIterator[None]:
        """Have an app for oneself. Raises Problem `conflict` when a push takes too long."""
        place = self._enter(app)
        try:
            try:
                async with asyncio.timeout(self._limits.turn):
                    await place.turn.acquire()
            except TimeoutError:
                raise Problem(
                    "conflict", f"A push to the app {app!r} is still under way. Try again when it has ended."
                ) from None
            try:
                yield
            finally:
                place.turn.release()
        finally:
            self._leave(app, place)

    async def tidy(self, app: str) -> None:
        """Remove what pushes that failed have left of an app, unless another one is there already."""
        place = self._enter(app)
        try:
            await self._clear(app, place)
        finally:
            self._leave(app, place)

    async def delete(self, app: str) -> None:
        """Remove the repository of an app. Raises Problem `not-found`, `conflict`."""
        async with self.alone(app):
            if not self._repositories.exists(app):
                raise Problem(
                    "not-found", f"There is no repository {app!r}. `pilotlight list` shows the apps."
                )
            await self._repositories.remove(app)

    async def settle(self, grace: float) -> None:
        """Wait until the ends of all pushes were seen through, for `grace` seconds."""
        if self._ends:
            _, late = await asyncio.wait(self._ends, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def answer(self, question: Question, terminal: Terminal) -> bool:
        """Answer a hook: True lets git go on."""
        push = self._pushes.get(question.push)
        if push is None:
            await terminal.say("This push is not known to Pilotlight's builder any more. Push again.")
            return False
        try:
            # a little less than its request has, so that the pusher learns of it
            async with asyncio.timeout(self._limits.push - self._limits.grace):
                if question.hook == "pre-receive":
                    await self._before(push, question, terminal)
                else:
                    await self._after(push, question, terminal)
        except Problem as problem:
            await terminal.say(f"\n{problem.detail}")
        except TimeoutError:
            await terminal.say(f"\nThe push took longer than {self._limits.push:.0f} s and was broken off.")
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001  the boundary: the pusher must learn of it, and the log
            _log.exception("Push %s to %s failed", push.id, push.app)
            await terminal.say(f"\nPilotlight has made a mistake: {type(error).__name__}: {error}")
        else:
            return True
        if question.hook == "pre-receive":
            await terminal.say("The push is rejected, and nothing was changed: what ran before still runs.")
        return False

    async def _before(self, push: Push, question: Question, terminal: Terminal) -> None:
        """Do all that must succeed before the refs move. Raises Problem."""
        await self._take_turn(push, terminal)
        branches = await self._repositories.branches(push.app)
        decision = decide(push.app, question.updates, branches)
        if decision.refusal is not None:
            raise Problem("conflict", decision.refusal)
        for note in decision.notes:
            await terminal.say(note)
        if decision.deploy is None:
            return
        update = decision.deploy
        assert update.branch is not None  # noqa: S101  for mypy: only branches are deployed
        commit = self._commit(push.app, update.new, question.objects)
        await terminal.say(f"\nPilotlight deploys {push.app!r} at {update.new[:10]} ({update.branch})")
        if self._builds.locked():
            await terminal.say("Other apps are being built; waiting for them.")
        async with self._builds:
            with self._metrics.build():
                push.prepared = await self._pipeline.prepare(push.app, update.branch, commit, terminal.say)
        if decision.first is not None:
            await self._repositories.deploy_branch(push.app, decision.first)

    async def _take_turn(self, push: Push, terminal: Terminal) -> None:
        turn = self._places[push.app].turn
        if turn.locked():
            await terminal.say(f"Another push to {push.app!r} is under way; waiting for its end.")
        try:
            async with asyncio.timeout(self._limits.turn):
                await turn.acquire()
        except TimeoutError:
            raise Problem(
                "conflict", f"The other push did not end within {self._limits.turn:.0f} s. Push again later."
            ) from None
        push.holds_turn = True

    def _commit(self, app: str, commit: str, objects: str) -> Commit:
        """Return how to read a commit whose objects may still be in quarantine."""
        repository = self._repositories.path(app)
        environment = self._repositories.environment()
        if objects:
            if not Path(objects).resolve().is_relative_to((repository / "objects").resolve()):
                raise Problem("internal", f"The pushed objects are at an unexpected place: {objects}")
            environment["GIT_OBJECT_DIRECTORY"] = objects
            environment["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = str(repository / "objects")
        return Commit(("git", f"--git-dir={repository}"), environment, commit)

    async def _after(self, push: Push, question: Question, terminal: Terminal) -> None:
        """The refs have moved: switch traffic, and tell where the functions are. Raises Problem."""
        prepared = push.prepared
        if prepared is None:
            return
        moved = {update.branch: update.new for update in question.updates if update.new != ZERO}
        if moved.get(prepared.branch) != prepared.commit:
            await terminal.say(f"git did not move the branch {prepared.branch!r}, so nothing is deployed.")
            return
        try:
            await publish.activate(self._pipeline.workshop.builds, prepared.app, prepared.commit, push.by)
        except Problem as problem:
            raise Problem(
                problem.kind,
                f"The commit is stored, but can't go live: {problem.detail}\n"
                "It is tried again when Pilotlight starts the next time.",
            ) from problem
        push.live = True
        await terminal.say("\nLive now:")
        await terminal.say("\n".join(publish.addresses(push.url, prepared.revisions)))
        await terminal.say()


def sweep(repository: Path) -> None:
    """Remove the quarantined objects of pushes that were killed, while no push is under way."""
    for pattern in ("incoming-*", "tmp_objdir-*"):
        for folder in (repository / "objects").glob(pattern):
            folders.remove(folder)
