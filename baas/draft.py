"""What operations come to, one after the other, before anything is written: each sees what others did before.

A document that several of them change is written once, as it is in the end. Nothing here waits or writes.
"""

from dataclasses import replace
from typing import Final

from msgspec import structs

from baas.plan import Answer, plan, space_of
from baas.preconditions import PENDING
from baas.request import Action, Operation
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Entry, Write, size_of

MAX_WRITTEN: Final = 4 << 20
"""Bytes that the documents which one transaction writes may have together."""

Name = tuple[str, str]
"""A space, and a key in it."""


def name_of(operation: Operation) -> Name:
    """Return which document an operation is about."""
    return space_of(operation.app, operation.collection), operation.key


class Draft:
    """Operations that have been planned."""

    def __init__(self, *, shows: bool = True) -> None:
        """With `shows`, patches answer with their documents; a hundred of them would take much memory."""
        self._shows = shows
        self._answers: list[tuple[Name, Answer]] = []
        self._expected: dict[Name, int] = {}
        self._sizes: dict[Name, int] = {}  # of what stands there now
        self._changes: dict[Name, Write] = {}
        self._written = 0

    def changes(self, operation: Operation) -> bool:
        """Tell whether the document of an operation is changed already, and need not be read."""
        return name_of(operation) in self._changes

    def add(self, operation: Operation, entry: Entry | None) -> None:
        """Plan one more operation; `entry` is what the store has, unless it is changed already.

        Raises Problem.
        """
        name = name_of(operation)
        former = self._changes.pop(name, None)
        if former is None:
            self._expected.setdefault(name, entry.version if entry else ABSENT)
            self._sizes.setdefault(name, size_of(entry.key, entry.value) if entry else 0)
        else:
            entry = _as_it_will_be(former)
        step = plan(operation, entry)
        if isinstance(step, Answer):
            if former is not None:
                self._changes[name] = former
            self._answers.append((name, step))
            return
        write = step.write
        if former is not None and operation.ttl is None and operation.action in (
            Action.PATCH, Action.INCREMENT
        ):  # fmt: skip
            write = structs.replace(write, ttl=former.ttl)
        self._changes[name] = structs.replace(write, expect=self._expected[name])
        self._written += len(write.value or b"") - (len(former.value or b"") if former else 0)
        if self._written > MAX_WRITTEN:
            raise Problem(
                "too-large",
                f"With this one the documents of the transaction are larger than {MAX_WRITTEN} bytes "
                "together. Make several transactions of it.",
            )
        answer = step.answer
        if operation.action is Action.PATCH and not self._shows:
            answer = replace(answer, body=b"")
        self._answers.append((name, answer))

    @property
    def writes(self) -> list[Write]:
        """What is to be written, in the order of the last change of each document, and what must stand."""
        checks = [
            Write(space=name[0], key=name[1], value=None, expect=version, check=True)
            for name, version in self._expected.items()
            if name not in self._changes
        ]
        return checks + list(self._changes.values())

    @property
    def growth(self) -> int:
        """The bytes that are needed more than before, as `Store.size` counts them."""
        after = sum(
            size_of(write.key, write.value) for write in self._changes.values() if write.value is not None
        )
        return after - sum(self._sizes[name] for name in self._changes)

    def answers(self, versions: list[int]) -> list[Answer]:
        """Return the answers, given what the store has answered to the writes."""
        standing = {
            (write.space, write.key): version for write, version in zip(self.writes, versions, strict=True)
        }
        return [replace(answer, version=standing[name] or None) for name, answer in self._answers]


def _as_it_will_be(write: Write) -> Entry | None:
    if write.value is None:
        return None
    return Entry(write.key, write.value, PENDING, write.expires)
