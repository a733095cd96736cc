"""A stranger's Dockerfile, as dockerd gets it: judged, and written anew so that it can't be read otherwise.

dockerd would do more for its author than a build of ours may: fetch from any address (`ADD`, and the triggers
of a base image), or whatever a later version brings. So only instructions that are known here get through,
each on one line, and every image is named by its id, as it was looked at.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from function_service.engines.docker import litter

_MOST: Final = 200  # instructions
_LONGEST: Final = 64 << 10  # characters of one
_KNOWN: Final = frozenset(
    [
        "FROM",
        "RUN",
        "CMD",
        "LABEL",
        "MAINTAINER",
        "EXPOSE",
        "ENV",
        "ADD",
        "COPY",
        "ENTRYPOINT",
        "VOLUME",
        "USER",
        "WORKDIR",
        "ARG",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "SHELL",
        "ONBUILD",
    ]
)
_INSTRUCTION: Final = re.compile(r"([A-Za-z]+)(?:[ \t]+(.*))?")
_DIRECTIVE: Final = re.compile(r"#[ \t]*escape[ \t]*=", re.IGNORECASE)
_FROM: Final = re.compile(r"(\S+)(?:[ \t]+AS[ \t]+([A-Za-z0-9][A-Za-z0-9_.-]*))?", re.IGNORECASE)
_OPTION: Final = re.compile(r"--(chown|from)=([A-Za-z0-9_.:/@${}-]+)")  # nothing that could be read otherwise
_VARIABLE: Final = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_ARGUMENT: Final = re.compile(r"([A-Za-z_]\w*)=(\"[^\"\\$]*\"|'[^'\\$]*'|[^\s\"'\\$]*)")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:@-]{0,399}")
_PLAIN: Final = re.compile(r"[^:$\"'\\`<>\[\]{}]+")  # a path: nothing that could be, or become, an address
_EMPTY: Final = "scratch"


class Mistaken(ValueError):  # noqa: N818  what the author reads, not a fault
    """The Dockerfile can't be built here; the text says which line, why, and what to do."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, whose first line has that number."""

    line: int
    word: str  # in capitals
    rest: str
    image: str = ""  # that it names, unless that is a stage or `scratch`


@dataclass(frozen=True)
class Recipe:
    """A Dockerfile that may be built: `images` are all that it needs, by their names."""

    instructions: tuple[Instruction, ...]
    images: tuple[str, ...]

    def text(self, ids: Mapping[str, str], label: str) -> str:
        """Return what dockerd shall build, given the ids of the images; all that it makes has the label."""
        lines = []
        for each in self.instructions:
            rest = each.rest
            if each.image:
                before = "--from=" if each.word == "COPY" else ""
                rest = rest.replace(f"{before}{each.image}", f"{before}{ids[each.image]}", 1)
            lines.append(f"{each.word} {rest}".rstrip())
            if each.word in ("FROM", "LABEL"):  # again, where one of theirs may have changed it
                lines.append(litter.label(label))
        return "\n".join([*lines, ""])


def read(text: str) -> Recipe:
    """Judge a Dockerfile. Raises Mistaken."""
    found = _instructions(text)
    first = next((each for each in found if each.word != "ARG"), None)
    if first is None or first.word != "FROM":
        raise Mistaken("It must begin with FROM (only ARG may come before).")
    if len(found) > _MOST:
        raise Mistaken(f"It has {len(found)} instructions; at most {_MOST} may be in one.")
    arguments: dict[str, str] = {}
    stages: list[str] = []  # their names, the present one last
    judged = []
    for each in found:
        instruction = each
        match each.word:
            case "ARG" if not stages:
                arguments |= _argument(each)
            case "FROM":
                instruction = replace(each, rest=_substituted(each, arguments))
                image, stage = _from(instruction)
                if image != _EMPTY and image.lower() not in stages:
                    instruction = replace(instruction, image=image)
                stages.append(stage.lower())
            case "COPY":
                named, _ = _options(each, "chown", "from")
                if "from" in named and not _is_stage(named["from"], stages[:-1]):
                    instruction = replace(each, image=_image(each, named["from"]))
            case "ADD":
                _judge_add(each)
            case "RUN" if each.rest.startswith("--"):
                raise _wrong(each, "RUN with options needs BuildKit, which is not used here. Leave them out")
            case "ONBUILD":
                raise _wrong(each, "ONBUILD is for images that others begin with. Leave it out")
        judged.append(instruction)
    return Recipe(tuple(judged), tuple(dict.fromkeys(each.image for each in judged if each.image)))


def _wrong(instruction: Instruction, why: str) -> Mistaken:
    return Mistaken(f"Line {instruction.line}: {why}.")


def _instructions(text: str) -> list[Instruction]:
    """Split it as dockerd does: lines that end in a backslash go on, comments and empty ones don't count."""
    found: list[Instruction] = []
    begun, first = "", 0
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        body = line.removesuffix("\r").rstrip(" \t")
        stripped = body.lstrip(" \t")
        if not found and not begun and _DIRECTIVE.match(stripped):
            raise Mistaken(f"Line {number}: another escape character than \\ is for Windows. Leave it out.")
        if not stripped or stripped.startswith("#"):
            continue
        if any((ord(each) < 32 or each.isspace()) and each not in " \t" for each in stripped):
            raise Mistaken(f"Line {number}: there is a control character or an odd space in it. Take it out.")
        goes_on = body.endswith("\\")
        first = first if begun else number
        begun += body[:-1] if goes_on else body
        if len(begun) > _LONGEST:
            raise Mistaken(f"Line {first}: the instruction is longer than {_LONGEST >> 10} KB.")
        if not goes_on:
            found.append(_instruction(first, begun))
            begun = ""
    if begun.strip():
        found.append(_instruction(first, begun))
    return found


def _instruction(line: int, text: str) -> Instruction:
    parts = _INSTRUCTION.fullmatch(text.strip(" \t"))
    word = parts[1].upper() if parts is not None else ""
    if parts is None or word not in _KNOWN:
        shown = text.split(maxsplit=1)[0][:40] if text.split() else ""
        raise Mistaken(
            f"Line {line}: {shown!r} is no instruction. What only BuildKit knows is not built here."
        )
    # What is joined of several lines may end in one backslash more, which would go on with the next line
    return Instruction(line, word, (parts[2] or "").strip(" \t").rstrip("\\"))


def _argument(instruction: Instruction) -> dict[str, str]:
    """Return the default of an ARG before the first FROM; without one it has no value here."""
    parts = _ARGUMENT.fullmatch(instruction.rest)
    return {} if parts is None else {parts[1]: parts[2].strip("\"'")}


def _substituted(instruction: Instruction, arguments: Mapping[str, str]) -> str:
    def value(variable: re.Match[str]) -> str:
        name = variable[1] or variable[2]
        if name not in arguments:
            raise _wrong(
                instruction, f"${name} has no value. Give it one: ARG {name}=… before the first FROM"
            )
        return arguments[name]

    return _VARIABLE.sub(value, instruction.rest)


def _from(instruction: Instruction) -> tuple[str, str]:
    """Return the image that a stage begins with, and the stage's name, if any."""
    if instruction.rest.startswith("--"):
        raise _wrong(instruction, "FROM with options builds for other machines. Leave them out")
    parts = _FROM.fullmatch(instruction.rest)
    if parts is None:
        raise _wrong(instruction, "expected FROM IMAGE, or FROM IMAGE AS NAME")
    return _image(instruction, parts[1]), parts[2] or ""


def _image(instruction: Instruction, name: str) -> str:
    if _IMAGE.fullmatch(name) is None or ".." in name:
        raise _wrong(instruction, f"{name[:80]!r} is not the name of an image")
    return name


def _is_stage(name: str, done: Sequence[str]) -> bool:
    """Tell whether COPY takes this for a stage that was built before, given the names of these."""
    return name.lower() in done or name in map(str, range(len(done)))


def _options(instruction: Instruction, *known: str) -> tuple[dict[str, str], str]:
    """Return the options before the paths, and the rest. Raises Mistaken.

    dockerd takes quotes and backslashes out of them, and some bytes of letters for spaces.
    """
    found: dict[str, str] = {}
    rest = instruction.rest
    while rest.startswith("--"):
        word, _, rest = rest.replace("\t", " ").partition(" ")
        rest = rest.lstrip(" ")
        option = _OPTION.fullmatch(word)
        if option is None or option[1] not in known or option[1] in found:
            takes = " and ".join(f"--{name}=…" for name in known)
            why = f"{word[:40]!r} is no option here. {instruction.word} takes {takes}, each once, unquoted"
            raise _wrong(instruction, why)
        found[option[1]] = option[2]
    return found, rest


def _judge_add(instruction: Instruction) -> None:
    """Refuse an ADD that could fetch something: dockerd would do that, wherever it can get."""
    _, rest = _options(instruction, "chown")
    words = rest.split()
    if rest.startswith("["):
        try:
            words = [str(word) for word in json.loads(rest)]
        except ValueError:
            words = [rest]
    if not words or not all(_PLAIN.fullmatch(word) for word in words):
        why = "ADD takes plain paths of the folder only, since nothing is fetched here. Commit the file"
        raise _wrong(instruction, f"{why}, or use COPY")
