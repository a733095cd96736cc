"""The names of Docker's images, in full as Docker reads them, and patterns by which an operator permits some.

`python` is docker.io/library/python:latest. A name is judged and used in that form alone: then Docker never
reads it otherwise than we did, such as for the beginning of an image's id.
"""

import re
from dataclasses import dataclass
from typing import Final

EXPECTED: Final = 'the name of an image, such as "python:3.12-slim"'

_LONGEST: Final = 255  # characters of a repository
_HUB: Final = "docker.io"
_OFFICIAL: Final = "library"
_ALIASES: Final = {"index.docker.io": _HUB}
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_REGISTRY: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]+)?")
_PART: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ID: Final = re.compile(r"(?:sha256:)?[0-9a-f]{64}")
_ANY: Final = "**"
_WILD: Final = re.compile(r"[a-z0-9._*-]+")  # the last part of a path, in a pattern
_WILD_TAG: Final = re.compile(r"[A-Za-z0-9_.*-]+")


@dataclass(frozen=True)
class ImageName:
    """A name in full. Where there is a digest, that alone says which image is meant, and the tag is empty."""

    repository: str  # with its registry
    tag: str
    digest: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


@dataclass(frozen=True)
class Pattern:
    """What an operator permits: repositories, and of each all, some tags, or one digest."""

    _repository: re.Pattern[str]
    _tag: re.Pattern[str] | None  # None for all tags and digests
    _digest: str

    def permits(self, name: ImageName) -> bool:
        """Tell whether an image of that name is meant."""
        if self._repository.fullmatch(name.repository) is None:
            return False
        if self._digest:
            return name.digest == self._digest
        # A tag beside a digest says nothing of what is pulled, so it can't be what permits that
        return self._tag is None or (not name.digest and self._tag.fullmatch(name.tag) is not None)


def read(text: str) -> ImageName:
    """Return the full name that Docker takes a name for. Raises ValueError, which says what it is not."""
    if _ID.fullmatch(text) is not None:
        raise ValueError(f"{text[:19]} is an id; name the image, as NAME:TAG or NAME@sha256:…")
    named, tag, digest = _taken_apart(text)
    registry, path = _registry(named)
    fits = _REGISTRY.fullmatch(registry) and _PATH.fullmatch(path)
    if (
        not fits
        or (tag is not None and not _TAG.fullmatch(tag))
        or (digest and not _DIGEST.fullmatch(digest))
    ):
        raise ValueError(f"{text[:80]!r} is not {EXPECTED}")
    repository = _repository(registry, path)
    if len(repository) > _LONGEST:
        raise ValueError(f"{text[:80]!r}… is longer than the name of an image may be")
    return ImageName(repository, "" if digest else tag or "latest", digest)


def patterns(text: str) -> tuple[Pattern, ...]:
    """Return the patterns of a list with commas, none of an empty one. Raises ValueError."""
    return tuple(_pattern(each.strip()) for each in text.split(",")) if text.strip() else ()


def _pattern(text: str) -> Pattern:
    """Read one: `*` stands for any characters of the last part or the tag, `**` as last part for any parts.

    Raises ValueError.
    """
    if text == _ANY:
        return Pattern(re.compile(".+"), None, "")
    named, tag, digest = _taken_apart(text)
    registry, path = _registry(named)
    above, _, last = path.rpartition("/")
    if named in ("*", _ANY):
        why = f"it could mean too much: {_ANY} is every image, library/* Docker's official ones"
    elif "*" in registry + above:
        why = "`*` may stand in the last part of a name and in its tag, nowhere else"
    elif (
        not _REGISTRY.fullmatch(registry)
        or not (not above or _PATH.fullmatch(above))
        or not (last == _ANY or (_WILD.fullmatch(last) and "**" not in last))
    ):
        why = "it is no pattern for images, such as python:3.* or registry.example.com/team/*"
    elif (tag is not None and (digest or not _WILD_TAG.fullmatch(tag))) or (
        digest and not _DIGEST.fullmatch(digest)
    ):
        why = "behind the name there may be :TAG, with `*` in it, or @sha256:…"
    else:
        repository = f"{registry}/{_ANY}" if path == _ANY else _repository(registry, path)
        some_tags = None if digest or tag in (None, "*") else _compiled(tag or "", "[A-Za-z0-9_.-]*")
        return Pattern(_compiled(repository, "[a-z0-9._-]*"), some_tags, digest)
    raise ValueError(f"{text!r}: {why}")


def _compiled(text: str, some: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(r"\*\*", "[a-z0-9._/-]+").replace(r"\*", some))


def _taken_apart(text: str) -> tuple[str, str | None, str]:
    """Return registry and path, tag, digest. What stands behind the last slash and a colon is the tag."""
    head, at, digest = text.partition("@")
    before, slash, last = head.rpartition("/")
    last, colon, tag = last.partition(":")
    return f"{before}{slash}{last}", tag if colon else None, digest if digest or not at else "none"


def _registry(named: str) -> tuple[str, str]:
    """Return the registry, and the path in it. Host names don't differ by their case; paths have none."""
    first, slash, rest = named.partition("/")
    registry = first.lower()
    if slash and ("." in first or ":" in first or registry == "localhost"):
        return _ALIASES.get(registry, registry), rest
    return _HUB, named


def _repository(registry: str, path: str) -> str:
    return f"{registry}/{_OFFICIAL}/{path}" if registry == _HUB and "/" not in path else f"{registry}/{path}"
