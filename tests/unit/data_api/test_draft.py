"""What several operations come to, before anything is written."""

import json
from typing import Any

import pytest

from baas.draft import Draft
from baas.request import MERGE_PATCH, Action, Operation
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, PLACE, Entry, Write


def operation(action: Action, value: Any = None, key: str = "k", **more: Any) -> Operation:
    body = b"" if value is None else json.dumps(value).encode()
    return Operation(app="a", collection="c", key=key, action=action, body=body, **more)


def test_a_document_that_is_changed_twice_is_written_once_from_what_stands_there() -> None:
    draft = Draft()
    draft.add(operation(Action.INCREMENT), Entry("k", b"1", 7, 99.5))
    assert draft.changes(operation(Action.GET))
    draft.add(operation(Action.INCREMENT), None)
    assert draft.writes == [Write(space="data/a/c", key="k", value=b"3", expect=7, expires=99.5)]
    assert [answer.version for answer in draft.answers([8])] == [8, 8]


def test_what_is_only_checked_has_to_stand_when_it_is_written() -> None:
    draft = Draft()
    draft.add(operation(Action.CHECK), Entry("k", b"1", 7))
    draft.add(operation(Action.PUT, 1, key="l"), None)
    assert draft.writes == [
        Write(space="data/a/c", key="k", value=None, expect=7, check=True),
        Write(space="data/a/c", key="l", value=b"1", expect=ABSENT),
    ]
    assert [(each.status, each.version) for each in draft.answers([7, 9])] == [(204, 7), (201, 9)]


def test_what_was_checked_and_is_changed_later_expects_what_was_checked() -> None:
    draft = Draft()
    draft.add(operation(Action.CHECK), Entry("k", b"1", 7))
    draft.add(operation(Action.PUT, 1), Entry("k", b"1", 8))  # it has changed meanwhile
    assert [write.expect for write in draft.writes] == [7]


def test_a_life_that_an_earlier_operation_gave_lasts() -> None:
    draft = Draft()
    draft.add(operation(Action.PUT, 1, ttl=5.0), None)
    draft.add(operation(Action.PATCH, 2, media_type=MERGE_PATCH), None)
    assert [(write.value, write.ttl) for write in draft.writes] == [(b"2", 5.0)]
    draft.add(operation(Action.PUT, 3), None)
    assert [(write.value, write.ttl) for write in draft.writes] == [(b"3", None)]


def test_made_and_deleted_it_takes_nothing() -> None:
    draft = Draft()
    draft.add(operation(Action.PUT, 1), None)
    assert draft.growth == 2 + PLACE
    draft.add(operation(Action.DELETE), None)
    assert draft.growth == 0
    assert [(write.value, write.expect) for write in draft.writes] == [(None, ABSENT)]
    with pytest.raises(Problem) as refusal:
        draft.add(operation(Action.DELETE), None)
    assert refusal.value.kind == "not-found"


def test_a_transaction_holds_no_document_that_its_answer_does_not_show() -> None:
    draft = Draft(shows=False)
    draft.add(operation(Action.PATCH, {"a": 1}, media_type=MERGE_PATCH), Entry("k", b'{"b":2}', 7))
    draft.add(operation(Action.INCREMENT, {"field": "/a"}), None)
    assert [answer.body for answer in draft.answers([8])] == [b"", b'{"value":2}']
