"""Which interpreter runs a revision: one of this machine, or that of the image which the revision names."""

import re
from collections.abc import Iterable
from typing import Final

from function_service.contract import Image, Revision
from runtimes.declaration import Interpreter

_NAME: Final = re.compile(r"([a-z]+)([0-9.]*)")


def in_image(image: str, runtime: str, executable: str = "", *, whole: bool = False) -> Interpreter:
    """Return the interpreter `runtime`, such as "python3.12", of the image with that id."""
    match = _NAME.fullmatch(runtime)
    if match is None:
        raise ValueError(f"{runtime!r} names no runtime")
    return Interpreter(match[1], match[2], executable, image=image, whole=whole)


def of(revision: Revision, present: Iterable[Interpreter]) -> Interpreter | None:
    """Return the interpreter of a revision; None where it is to be one of this machine, which lacks it."""
    if revision.image is not None:
        return of_image(revision.image)
    return next((each for each in present if each.name == revision.config.runtime), None)


def of_image(image: Image) -> Interpreter:
    """Return the interpreter of an image."""
    return in_image(image.id, image.runtime, image.executable, whole=bool(image.command))


def key(revision: Revision) -> str:
    """Return the key (see Interpreter) of a revision's interpreter, whether this machine has it or not."""
    return revision.config.runtime if revision.image is None else of_image(revision.image).key
