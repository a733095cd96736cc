"""What is decided about an operation, given what stands there."""

import json
from typing import Any

import pytest

from baas.documents import MAX_DOCUMENT
from baas.plan import Answer, Change, plan
from baas.preconditions import Condition, Preconditions
from baas.request import JSON_PATCH, MERGE_PATCH, Action, Operation
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Entry

ENTRY = Entry("k", b'{"n":1}', 7)


def operation(action: Action, body: Any = None, **more: Any) -> Operation:
    if not isinstance(body, bytes):
        body = b"" if body is None else json.dumps(body).encode()
    return Operation(app="app", collection="things", key="k", action=action, body=body, **more)


def change(action: Action, entry: Entry | None, body: Any = None, **more: Any) -> Change:
    step = plan(operation(action, body, **more), entry)
    assert isinstance(step, Change)
    return step


def refusal(action: Action, entry: Entry | None, body: Any = None, **more: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        plan(operation(action, body, **more), entry)
    return caught.value


def conditions(if_match: str | None = None, if_none_match: str | None = None) -> Preconditions:
    return Preconditions(
        Condition.parse("If-Match", if_match), Condition.parse("If-None-Match", if_none_match)
    )


class TestReading:
    def test_a_document_is_answered_as_it_is_kept(self) -> None:
        assert plan(operation(Action.GET), ENTRY) == Answer(200, b'{"n":1}', 7)

    def test_what_is_not_there_is_not_found(self) -> None:
        assert refusal(Action.GET, None).kind == "not-found"

    @pytest.mark.parametrize("tags", ['"7"', 'W/"7"', '"1", "7"', "*", '"1",,W/"7"'])
    def test_a_reader_who_has_it_is_told_so(self, tags: str) -> None:
        assert plan(operation(Action.GET, preconditions=conditions(None, tags)), ENTRY) == Answer(
            304, version=7
        )

    @pytest.mark.parametrize("tags", ['"8"', '"77"', 'W/"1"', '""'])
    def test_a_reader_who_has_another_version_gets_this_one(self, tags: str) -> None:
        step = plan(operation(Action.GET, preconditions=conditions(None, tags)), ENTRY)
        assert isinstance(step, Answer)
        assert step.status == 200


class TestWriting:
    def test_a_put_expects_what_was_seen(self) -> None:
        created = change(Action.PUT, None, {"a": 1})
        assert (created.write.space, created.write.key) == ("data/app/things", "k")
        assert (created.write.expect, created.write.value, created.answer.status) == (ABSENT, b'{"a":1}', 201)
        replaced = change(Action.PUT, ENTRY, {"a": 1})
        assert (replaced.write.expect, replaced.answer.status) == (7, 204)

    def test_a_creation_answers_its_key(self) -> None:
        step = change(Action.CREATE, None, [1], ttl=5.0)
        assert (step.write.expect, step.write.ttl, step.answer.status) == (ABSENT, 5.0, 201)
        assert (json.loads(step.answer.body), step.answer.created) == ({"key": "k"}, "k")

    def test_a_deletion_deletes_what_was_seen(self) -> None:
        step = change(Action.DELETE, ENTRY)
        assert (step.write.value, step.write.expect, step.answer.status) == (None, 7, 204)
        assert refusal(Action.DELETE, None).kind == "not-found"

    @pytest.mark.parametrize("action", [Action.PUT, Action.DELETE])
    def test_if_match_holds_for_the_version_only(self, action: Action) -> None:
        change(action, ENTRY, 1, preconditions=conditions('"7"'))
        change(action, ENTRY, 1, preconditions=conditions("*"))
        change(action, ENTRY, 1, preconditions=conditions('"6", "7"'))
        for tags, entry in [('"8"', ENTRY), ('W/"7"', ENTRY), ('"7"', None), ("*", None)]:
            assert refusal(action, entry, 1, preconditions=conditions(tags)).kind == "precondition-failed"

    def test_a_lost_race_is_told_with_the_present_version(self) -> None:
        assert refusal(Action.PUT, ENTRY, 1, preconditions=conditions('"6"')).extra == {"etag": '"7"'}

    def test_if_none_match_creates_only(self) -> None:
        change(Action.PUT, None, 1, preconditions=conditions(None, "*"))
        change(Action.PUT, ENTRY, 1, preconditions=conditions(None, '"6"'))
        for tags in ("*", '"7"', 'W/"7"'):
            lost = refusal(Action.PUT, ENTRY, 1, preconditions=conditions(None, tags))
            assert lost.kind == "precondition-failed"

    @pytest.mark.parametrize("header", ["7", '"7', '"7" "8"', '*, "7"', "", 'w/"7"', '"a"b"'])
    def test_a_malformed_condition_is_refused(self, header: str) -> None:
        with pytest.raises(Problem) as caught:
            conditions(header)
        assert caught.value.kind == "invalid-request"


class TestDocuments:
    @pytest.mark.parametrize(
        "body", [b"null", b"0", b'""', b"[]", b' {"a" : "\xc3\xbc"} ', b"-1.5e3", b"12345678901234567890"]
    )
    def test_any_json_value_is_a_document(self, body: bytes) -> None:
        value = change(Action.PUT, None, body).write.value
        assert value is not None
        assert json.loads(value) == json.loads(body)

    @pytest.mark.parametrize(
        "body",
        [b"", b" ", b"{", b"{'a':1}", b"NaN", b"[Infinity]", b"1e999", b"\xff", b"\xef\xbb\xbf1", b'"\\ud83d"', b"1 2",
         b"9" * 5000, b"[" * 100_000, b'{"a":1,}', "1".encode("utf-16")],
    )  # fmt: skip
    def test_anything_else_is_refused(self, body: bytes) -> None:
        problem = refusal(Action.PUT, None, body)
        assert problem.kind == "invalid-request"
        assert len(problem.detail) < 300

    def test_a_document_has_a_largest_size(self) -> None:
        change(Action.PUT, None, b'"%b"' % (b"x" * (MAX_DOCUMENT - 2)))
        assert refusal(Action.PUT, None, b'"%b"' % (b"x" * (MAX_DOCUMENT - 1))).kind == "too-large"

    def test_a_patch_can_not_outgrow_it(self) -> None:
        entry = Entry("k", b'{"a":"%b"}' % (b"x" * (MAX_DOCUMENT - 100)), 1)
        assert refusal(Action.PATCH, entry, {"b": "y" * 200}, media_type=MERGE_PATCH).kind == "too-large"


class TestPatching:
    def test_both_kinds_answer_the_new_document(self) -> None:
        merged = change(Action.PATCH, ENTRY, {"m": 2}, media_type=MERGE_PATCH)
        assert (merged.write.value, merged.write.expect) == (b'{"n":1,"m":2}', 7)
        assert (merged.answer.status, merged.answer.body) == (200, b'{"n":1,"m":2}')
        operations = [{"op": "remove", "path": "/n"}]
        assert change(Action.PATCH, ENTRY, operations, media_type=JSON_PATCH).write.value == b"{}"

    def test_there_must_be_a_document(self) -> None:
        assert "PUT it first" in refusal(Action.PATCH, None, {}, media_type=MERGE_PATCH).detail

    def test_a_deep_document_is_refused_and_not_a_fault(self) -> None:
        deep = b'{"a":' * 900 + b"1" + b"}" * 900
        entry = Entry("k", deep, 1)
        for media_type, body in [
            (MERGE_PATCH, deep),
            (JSON_PATCH, [{"op": "copy", "from": "", "path": "/b"}]),
        ]:
            try:
                plan(operation(Action.PATCH, body, media_type=media_type), entry)
            except Problem as problem:
                assert problem.kind == "invalid-request"  # noqa: PT017  either is right, by Python's own limits


class TestTimeToLive:
    ENTRY = Entry("k", b"1", 7, 1060)

    def test_a_put_sets_it_anew_or_ends_it(self) -> None:
        assert change(Action.PUT, self.ENTRY, 1, ttl=5.0).write.ttl == 5.0
        assert change(Action.PUT, self.ENTRY, 1).write.ttl is None

    @pytest.mark.parametrize(("action", "body"), [(Action.PATCH, 2), (Action.INCREMENT, None)])
    def test_a_change_in_part_keeps_it_unless_told(self, action: Action, body: Any) -> None:
        media_type = MERGE_PATCH if action is Action.PATCH else ""
        kept = change(action, self.ENTRY, body, media_type=media_type).write
        assert (kept.ttl, kept.expires) == (None, 1060)
        assert change(action, self.ENTRY, body, media_type=media_type, ttl=5.0).write.ttl == 5.0
        assert change(action, Entry("k", b"1", 7), body, media_type=media_type).write.expires is None


class TestIncrementing:
    @pytest.mark.parametrize(
        ("document", "body", "result", "value"),
        [
            (None, None, 1, 1),
            (None, {"by": 5}, 5, 5),
            (None, {"field": "/hits"}, {"hits": 1}, 1),
            (41, {}, 42, 42),
            (41, {"by": -41}, 0, 0),
            (1, {"by": 0.5}, 1.5, 1.5),
            ({"a": {"n": 1}}, {"field": "/a/n", "by": 2}, {"a": {"n": 3}}, 3),
            ({"a": {}}, {"field": "/a/n"}, {"a": {"n": 1}}, 1),
            ({"a": [1, 2]}, {"field": "/a/1"}, {"a": [1, 3]}, 3),
        ],
    )
    def test_it_adds(self, document: Any, body: Any, result: Any, value: Any) -> None:
        entry = None if document is None else Entry("k", json.dumps(document).encode(), 7)
        step = change(Action.INCREMENT, entry, body)
        assert step.write.value is not None
        assert json.loads(step.write.value) == result
        assert (step.answer.status, json.loads(step.answer.body)) == (200, {"value": value})

    @pytest.mark.parametrize(
        ("document", "body", "kind"),
        [
            ("text", {}, "conflict"),
            (True, {}, "conflict"),
            ({"a": None}, {"field": "/a"}, "conflict"),
            ({}, {"field": "/a/b"}, "conflict"),
            ([1], {"field": "/1"}, "conflict"),
            ([1], {"field": "/-"}, "conflict"),
            ("text", {"field": "/a"}, "conflict"),
            (None, {"field": "/a/b"}, "conflict"),
            ((1 << 63) - 1, {}, "conflict"),
            (1e308, {"by": 1e308}, "conflict"),
            (1, {"by": "1"}, "invalid-request"),
            (1, {"by": True}, "invalid-request"),
            (1, {"by": None}, "invalid-request"),
            (1, {"by": 10**100}, "invalid-request"),
            (1, {"to": 1}, "invalid-request"),
            (1, {"field": "n"}, "invalid-request"),
            (1, {"field": 1}, "invalid-request"),
            (1, [1], "invalid-request"),
            (1, b"{", "invalid-request"),
        ],
    )
    def test_it_refuses(self, document: Any, body: Any, kind: str) -> None:
        entry = None if document is None else Entry("k", json.dumps(document).encode(), 7)
        assert refusal(Action.INCREMENT, entry, body).kind == kind
