"""ETags and the conditions on them: If-Match and If-None-Match (RFC 9110, 13)."""

import re
from dataclasses import dataclass
from typing import Final, Self

from pilotlight.problems import Problem

_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_TAGS = re.compile(rf"[ \t,]*{_TAG.pattern}(?:[ \t]*,[ \t,]*{_TAG.pattern})*[ \t,]*")

ANY: Final = "*"

PENDING: Final = -1
"""The version of a document that an earlier operation of a transaction has changed: no tag is its own."""


def etag(version: int) -> str:
    """Return the strong entity tag of a document at this version."""
    return f'"{version}"'


@dataclass(frozen=True)
class Condition:
    """One of the two headers: tags as they were sent, or ANY."""

    tags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str, header: str | None) -> Self | None:
        """Return the condition, None where there is no such header. Raises Problem `invalid-request`."""
        if header is None:
            return None
        if header.strip() == ANY:
            return cls((ANY,))
        if not _TAGS.fullmatch(header):
            raise Problem(
                "invalid-request", f'{name}: {header!r} is not * and not a list of tags, as in "17", "18".'
            )
        return cls(tuple(_TAG.findall(header)))

    def holds(self, version: int | None, *, weakly: bool) -> bool:
        """Tell whether one of the tags is that of the document at this version (None: there is none).

        A weak tag equals nothing unless compared weakly (RFC 9110, 8.8.3.2).
        """
        if version is None:
            return False
        if self.tags == (ANY,):
            return True
        if version == PENDING:
            return False
        tags = [tag.removeprefix("W/") for tag in self.tags] if weakly else self.tags
        return etag(version) in tags


@dataclass(frozen=True)
class Preconditions:
    """What must be true of a document for a request to be carried out."""

    if_match: Condition | None = None
    if_none_match: Condition | None = None

    def check(self, version: int | None, *, reading: bool) -> bool:
        """Tell whether to go on; False is for a reader who has that version already (304).

        Raises Problem `precondition-failed`.
        """
        if self.if_match is not None and not self.if_match.holds(version, weakly=False):
            raise _lost(version)
        if self.if_none_match is not None and self.if_none_match.holds(version, weakly=True):
            if reading:
                return False
            raise _lost(version)
        return True


def _lost(version: int | None) -> Problem:
    if version is None:
        return Problem("precondition-failed", "There is no such document (any more). Nothing was changed.")
    if version == PENDING:
        return Problem(
            "precondition-failed", "An operation before it has changed the document. Nothing was changed."
        )
    return Problem(
        "precondition-failed",
        f"The document stands at {etag(version)}. Nothing was changed; read it again and decide anew.",
        etag=etag(version),
    )
