"""Which call a line belongs to, and what is told of a request."""

from pathlib import Path

import pytest

from function_service import stories
from function_service.contract import LogLine, Usage
from function_service.logs import LogBook
from function_service.stories import CallsByInstance


def call(
    request: str, started: float, duration: float = 1.0, instance: str = "i", function: str = "f"
) -> Usage:
    return Usage(function, "r", instance, request, started, duration, 200, cold=False)


def line(time: float, instance: str = "i", text: str = "") -> LogLine:
    return LogLine(time=time, instance=instance, line=text)


@pytest.mark.parametrize(
    ("time", "instance", "expected"),
    [
        (9.9, "i", None),  # before any call, while it was started
        (10.0, "i", "one"),
        (11.05, "i", "one"),  # what was printed at the very end is read a little later
        (11.5, "i", None),  # between two calls
        (20.2, "i", "two"),
        (20.2, "j", "other"),
        (20.2, "k", None),
    ],
)
def test_a_line_belongs_to_the_call_that_its_instance_was_busy_with(
    time: float, instance: str, expected: str | None
) -> None:
    known = CallsByInstance([call("two", 20.0), call("one", 10.0), call("other", 20.0, instance="j")])
    found = known.at(instance, time)
    assert (found and found.request_id) == expected


def test_what_is_printed_as_several_calls_go_on_belongs_to_none_of_them() -> None:
    known = CallsByInstance([call("one", 10.0, 5.0), call("two", 12.0, 1.0)])
    assert [found and found.request_id for found in (known.at("i", t) for t in (11.0, 12.5, 14.0))] == [
        "one",
        None,
        "one",
    ]


def test_a_line_whose_request_is_known_belongs_to_no_other_one(tmp_path: Path) -> None:
    known = CallsByInstance([call("one", 10.0, 5.0)])
    said = LogLine(time=11.0, instance="i", line="", request="two")
    assert known.named(said) is said
    book = LogBook(tmp_path)
    book.calls.append("f", [call("one", 10.0, 5.0), call("two", 9.0, 1.0)])
    book.append("f", [said])
    assert [len(lines) for request in ("one", "two") for _, lines in stories.find(request, book)] == [0, 1]


def test_a_call_that_got_no_instance_has_no_lines() -> None:
    assert CallsByInstance([call("one", 10.0, instance="")]).at("", 10.5) is None


def test_a_request_is_found_in_all_functions_that_it_went_through_with_the_lines_of_each(
    tmp_path: Path,
) -> None:
    book = LogBook(tmp_path)
    book.calls.append("inner", [call("q", 10.2, 0.5, "j", "inner")])
    book.calls.append("outer", [call("else", 8.0), call("q", 10.0, 1.0, "i", "outer")])
    book.append("outer", [line(9.0, "i", "before"), line(10.1, "i", "during"), line(12.0, "i", "after")])
    book.append("inner", [line(10.3, "j", "inside")])
    found = [(c.function, [each.line for each in lines]) for c, lines in stories.find("q", book)]
    assert found == [("outer", ["during"]), ("inner", ["inside"])]


def test_the_name_of_a_request_is_no_part_of_another_one(tmp_path: Path) -> None:
    book = LogBook(tmp_path)
    book.calls.append("f", [call("abc", 1.0), call('"quoted"', 2.0)])
    assert stories.find("ab", book) == []
    assert [c.request_id for c, _ in stories.find('"quoted"', book)] == ['"quoted"']


def test_of_a_request_with_very_many_calls_the_latest_are_told(tmp_path: Path) -> None:
    book = LogBook(tmp_path)
    book.calls.append("f", [call("same", float(number)) for number in range(250)])
    book.append("f", [line(0.5), line(249.5)])
    found = stories.find("same", book)
    assert [each.started for each, _ in found] == [float(number) for number in range(150, 250)]
    assert [len(lines) for _, lines in found] == [0] * 99 + [1]
