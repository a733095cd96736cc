"""The book of logs: bounded, followed live, forgotten when told."""

import asyncio
import shutil
from pathlib import Path

import pytest

from function_service import logs
from function_service.contract import LogLine, Usage
from function_service.logs import LogBook


def line(number: int, text: str = "") -> LogLine:
    return LogLine(time=float(number), instance="i", line=text or str(number))


def test_the_last_lines_are_told_oldest_first(tmp_path: Path) -> None:
    book = LogBook(tmp_path)
    book.append("f", [line(n) for n in range(5)])
    assert [entry.line for entry in book.tail("f", 3)] == ["2", "3", "4"]
    assert book.tail("f", 0) == []
    assert book.tail("other", 3) == []


def test_what_is_kept_is_bounded_and_goes_on_over_the_two_files(tmp_path: Path) -> None:
    book = LogBook(tmp_path, 20_000)
    for number in range(1000):
        book.append("f", [line(number, f"{number} " + "x" * 50)])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 25_000
    kept = [int(entry.line.split()[0]) for entry in book.tail("f", 1000)]
    assert kept == list(range(kept[0], 1000))
    assert len(kept) > 90


def test_a_line_that_was_cut_off_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    book = LogBook(tmp_path)
    book.append("f", [line(1)])
    with (tmp_path / "f.jsonl").open("ab") as file:
        file.write(b'{"time":2,"inst')
    assert [entry.line for entry in book.tail("f", 10)] == ["1"]


def test_lines_without_room_are_lost_and_that_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = LogBook(tmp_path / "book")
    shutil.rmtree(tmp_path / "book")
    book.append("f", [line(1)])
    book.append("f", [line(2)])
    assert caplog.text.count("Logs of functions are being lost") == 1


async def test_a_follower_gets_what_was_and_what_comes(tmp_path: Path) -> None:
    book = LogBook(tmp_path)
    book.append("f", [line(1), line(2)])
    stream = book.read("f", 1, follow=True)
    assert (await anext(stream)).line == "2"
    following = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    book.append("g", [line(9)])
    book.append("f", [line(3), line(4)])
    assert (await following).line == "3"
    assert (await anext(stream)).line == "4"
    await stream.aclose()
    assert book._followers == {}


async def test_a_slow_follower_misses_the_oldest_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_FOLLOWER", 10)
    book = LogBook(tmp_path)
    stream = book.read("f", 0, follow=True)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    book.append("f", [line(n) for n in range(100)])
    assert (await first).line == "90"
    assert [(await anext(stream)).line for _ in range(9)] == [str(n) for n in range(91, 100)]
    await stream.aclose()


async def test_without_following_the_stream_ends(tmp_path: Path) -> None:
    book = LogBook(tmp_path)
    book.append("f", [line(1)])
    assert [entry.line async for entry in book.read("f", 5, follow=False)] == ["1"]


def test_what_is_deleted_is_gone_and_others_stay(tmp_path: Path) -> None:
    book = LogBook(tmp_path)
    for name in ("f", "g", "h"):
        book.append(name, [line(1)])
        book.calls.append(name, [Usage(name, "r", "i", "q", 0.0, 0.1, 200, cold=False)])
    book.delete_others(name for name in ("h", "i"))
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.jsonl"))] == [
        "calls/h.jsonl",
        "h.jsonl",
    ]
