"""What a push means for an app, decided from the refs alone: pure, no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass

from builder.repository import ZERO, Branches, Update


@dataclass(frozen=True)
class Decision:
    """What to do with a push.

    `refusal` says why it is refused, or is None. `deploy` is the update to deploy, or None. `notes` are
    told to the pusher. `first` is the branch that is to be the deployed one from now on.
    """

    refusal: str | None = None
    deploy: Update | None = None
    notes: tuple[str, ...] = ()
    first: str | None = None


def _described(update: Update) -> str:
    if update.branch is not None:
        return f"branch {update.branch!r}"
    if update.ref.startswith("refs/tags/"):
        return f"tag {update.ref.removeprefix('refs/tags/')!r}"
    return f"ref {update.ref!r}"


def decide(app: str, updates: Sequence[Update], branches: Branches) -> Decision:
    """Decide about the ref updates of one push, in the order in which git named them."""
    for update in updates:
        there = branches.commits.get(update.branch, ZERO) if update.branch else update.old
        if there != update.old:
            return Decision(
                f"The branch {update.branch!r} has moved meanwhile: another push came first. "
                "Fetch it, see what it changed, and push again."
            )
    deployed, first = branches.deployed, None
    if deployed is None:
        pushed = [update.branch for update in updates if update.branch and not update.deletes]
        if pushed:
            deployed = first = "main" if "main" in pushed else pushed[0]
    deploy = None
    notes = []
    for update in updates:
        what = _described(update)
        if update.branch is not None and update.branch == deployed:
            if update.deletes:
                return Decision(
                    f"The branch {deployed!r} is the one that is deployed, so it can't be deleted here. "
                    f"`pilotlight delete` removes a function, and the app {app!r} with its last one."
                )
            deploy = update
        elif update.deletes:
            notes.append(f"The {what} is deleted; nothing else changes.")
        elif deployed is None:
            notes.append(f"The {what} is stored, but not deployed: push a branch for that.")
        else:
            notes.append(f"The {what} is stored, but not deployed: the branch {deployed!r} is.")
    return Decision(deploy=deploy, notes=tuple(notes), first=first)
