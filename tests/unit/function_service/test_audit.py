"""The audit log: nothing is lost, nothing is forged, and it stays within its size."""

import asyncio
import json
from pathlib import Path

import pytest

from function_service.audit import AuditLog
from function_service.contract import PLATFORM, Actor
from pilotlight.problems import Problem

BY = Actor(key="k1", name="laptop", address="192.0.2.1", request_id="r1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


async def succeed() -> int:
    return 7


async def refuse() -> None:
    raise Problem("not-found", "There is no such thing.")


async def test_an_entry_tells_who_did_what_from_where_and_what_came_of_it(path: Path) -> None:
    log = AuditLog(path)
    assert await log.during("key.create", BY, succeed(), {"key": "ci"}) == 7
    with pytest.raises(Problem, match="no such thing"):
        await log.during("key.delete", BY, refuse(), {"id": "k9"})
    first, second = map(json.loads, path.read_text().splitlines())
    assert first.pop("time") <= second.pop("time")
    by = {"key": "k1", "name": "laptop", "address": "192.0.2.1", "request_id": "r1"}
    assert first == {"action": "key.create", "outcome": "done", "by": by, "details": {"key": "ci"}}
    assert second["outcome"] == "refused: not-found"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_no_name_can_forge_a_line(path: Path) -> None:
    log = AuditLog(path)
    evil = 'x"}\n{"time":1,"action":"key.delete","outcome":"done","by":{},"details":{}}\n\r\u2028\x1b[2J'
    await log.write("function.delete", Actor(name=evil, request_id=evil), {"function": evil})
    assert path.read_bytes().count(b"\n") == 1
    (entry,) = await log.tail(10)
    assert (entry.action, entry.details["function"]) == ("function.delete", evil)


async def test_texts_of_callers_are_cut(path: Path) -> None:
    log = AuditLog(path)
    await log.write("function.delete", Actor(address="a" * 9999), {"function": "f" * 9999})
    assert len(path.read_bytes()) < 700


async def test_what_a_killed_process_left_spoils_no_other_line(path: Path) -> None:
    log = AuditLog(path)
    await log.write("one", PLATFORM, {})
    with path.open("ab") as file:
        file.write(b'{"time": 1.0, "act')
    await log.write("two", PLATFORM, {})
    assert [entry.action for entry in await log.tail(10)] == ["one", "two"]


async def test_it_is_bounded_and_told_in_order_across_its_files(path: Path) -> None:
    log = AuditLog(path, 4000)
    for number in range(100):
        await log.write(str(number), PLATFORM, {})
    files = sorted(path.parent.iterdir())
    assert len(files) in (9, 10)
    assert all(each.stat().st_size < 600 and each.stat().st_mode & 0o777 == 0o600 for each in files)
    actions = [int(entry.action) for entry in await log.tail(1000)]
    assert actions == list(range(actions[0], 100))
    assert [entry.action for entry in await log.tail(2)] == ["98", "99"]
    assert await log.tail(0) == []


async def test_a_caller_who_goes_stops_neither_the_work_nor_its_entry(path: Path) -> None:
    log = AuditLog(path)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go_on.wait()

    call = asyncio.create_task(log.during("function.delete", BY, work(), {}))
    await begun.wait()
    call.cancel()
    await asyncio.wait([call])
    go_on.set()
    await log.close()
    assert [entry.outcome for entry in await log.tail(10)] == ["done"]


async def test_a_log_that_cannot_be_written_is_told_to_the_caller(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "gone" / "audit.jsonl")
    with pytest.raises(Problem, match="could not be written to the audit log") as caught:
        await log.during("key.create", BY, succeed(), {})
    assert caught.value.kind == "unavailable"
