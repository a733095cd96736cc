"""Which images functions may run in, and be built from: those that the operator names (`--images`).

Names are judged in full (pilotlight/image_names.py), and dockerd is asked by that form alone: what it would
take for the beginning of an id, or for another repository, is never what was permitted.
"""

from typing import Final

from function_service.engines.docker import bases
from function_service.engines.docker.image import REPOSITORY as HOST
from pilotlight import image_names
from pilotlight.problems import Problem

BUILT: Final = "pilotlight-function"
"""The repository of the images that functions have built."""

FETCHED: Final = "pilotlight-fetched"
"""The repository of those that came from other machines, or were pulled because these have them."""

_OURS: Final = (HOST, BUILT, FETCHED)
_SHOWN: Final = 20  # patterns


class Permitted:
    """What an operator's list says. Where there is none, all may be named that is on this machine."""

    def __init__(self, listed: str) -> None:
        """Raises ValueError for what is no list."""
        self._listed = listed
        self._patterns = image_names.patterns(listed)

    def refusal(self, name: str) -> str:
        """Return why functions may not name this image; empty where they may."""
        try:
            image = image_names.read(name)
        except ValueError as error:
            return f"{error}."
        if image.repository in [image_names.read(each).repository for each in _OURS]:
            return f"{name} is one of the platform's own images, which no function may name."
        if not self._patterns or _base(image) or any(each.permits(image) for each in self._patterns):
            return ""
        patterns = self._listed.split(",")
        shown = ", ".join(each.strip() for each in patterns[:_SHOWN]) + (
            " …" if len(patterns) > _SHOWN else ""
        )
        return (
            f"The image {name} is not among those that this platform permits: {shown}. "
            "Name one of these, or have the operator add it to --images (docs/DOCKER.md)."
        )

    def full(self, name: str) -> str:
        """Return the name by which dockerd is asked. Raises Problem where there is a refusal."""
        why = self.refusal(name)
        if why:
            raise Problem("build-failed", why)
        return str(image_names.read(name))

    def absent(self, name: str) -> Problem | None:
        """Return what there is to say where a permitted image is not on this machine; None to pull it."""
        base = _base(image_names.read(name))
        if base:
            remedy = f"Its operator makes it: pilotlight images build {base}"
            return Problem("build-failed", f"The image {name} is not on this machine. {remedy}")
        if self._patterns:
            return None
        return Problem(
            "build-failed",
            f"The image {name} is not on this machine, and none is pulled, as its operator has named none. "
            f"Have him bring it (docker pull {name}), or name it (--images '{name}', see docs/DOCKER.md).",
        )


def _base(image: image_names.ImageName) -> str:
    """Return the runtime of which this is the base image, which is made on this machine and never pulled."""
    return next((of for of, name in bases.NAMES.items() if image_names.read(name) == image), "")
