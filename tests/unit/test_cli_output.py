"""Tables, ages and sizes."""

import pytest

from cli import output, receipts


def test_a_table_aligns_its_columns():
    assert (
        output.table(("NAME", "CALLS"), [("hello", "7"), ("a", "12")])
        == "NAME   CALLS\nhello      7\na         12"
    )


def test_what_a_function_has_printed_does_nothing_to_the_terminal():
    said = "a\tb\r\n\x1b[2J\x1b]0;title\x07gone\u202e\x9b31m"
    assert output.harmless(said) == "a   b\n [2J ]0;title gone  31m"
    assert output.harmless("naïve 日本 ✓") == "naïve 日本 ✓"


def test_an_id_that_begins_with_a_digit_is_no_number():
    assert (
        output.table(("ID", "AGE"), [("01m8", "5 s"), ("2x", "12 s")]) == "ID     AGE\n01m8   5 s\n2x    12 s"
    )


def test_a_table_without_rows_is_its_heads():
    assert output.table(("NAME", "CALLS"), []) == "NAME  CALLS"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (200000, "2 d"), (-5, "0 s")],
)
def test_ages_are_rounded_to_one_unit(seconds, text):
    assert output.ago(1000.0, 1000.0 + seconds) == text


@pytest.mark.parametrize(
    ("reason", "remedy", "text"),
    [
        ("it is so", "Do that.", "it is so. Do that."),
        ("It is so.", "Do that.", "It is so. Do that."),
        ("2.47", "", "2.47"),
        ("", "", ""),
    ],
)
def test_a_reason_and_its_remedy_are_told_apart(reason, remedy, text):
    assert output.with_remedy(reason, remedy) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (3 << 20, "3.0 MB"), (5 << 40, "5120.0 GB")],
)
def test_sizes_use_powers_of_1024(count, text):
    assert output.size(count) == text


def test_a_receipt_is_read_from_the_headers():
    receipt = receipts.read(
        {"Pilotlight-Start": "cold", "Server-Timing": "wait;dur=0.5, container;dur=1, handler;dur=2.25"}
    )
    assert receipt.start == "cold"
    assert receipt.stages == {"wait": 0.5, "container": 1.0, "handler": 2.25}
    assert str(receipt) == "cold start; in ms: wait 0.5, container 1.0, handler 2.2"


def test_an_answer_without_receipt_has_an_empty_one():
    assert receipts.read({}) == receipts.Receipt("", {})
