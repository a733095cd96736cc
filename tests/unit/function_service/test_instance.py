"""The states of an instance, and what is said of one that ended."""

from pathlib import Path
from typing import Any

import pytest

from function_service.contract import Stages
from function_service.engines.base import End, Sandbox
from function_service.instance import Instance, State, explain
from tests.support.fleet import NODE, revision

S = State
STEPS = {
    (S.STARTING, S.IDLE), (S.STARTING, S.ENDED), (S.IDLE, S.LEASED), (S.IDLE, S.ENDED),
    (S.LEASED, S.IDLE), (S.LEASED, S.DRAINING), (S.LEASED, S.ENDED), (S.DRAINING, S.ENDED),
}  # fmt: skip
WAYS = {
    S.STARTING: [], S.IDLE: [S.IDLE], S.LEASED: [S.IDLE, S.LEASED],
    S.DRAINING: [S.IDLE, S.LEASED, S.DRAINING], S.ENDED: [S.ENDED],
}  # fmt: skip


def instance(way: list[State]) -> Instance:
    ended: Any = None
    sandbox = Sandbox("i", NODE, Path("i.sock"), Stages(), -1, ended, None)
    made = Instance(sandbox, revision(), 0.0, Stages(), 0.0)
    for state in way:
        made.become(state)
    return made


@pytest.mark.parametrize("before", list(State))
@pytest.mark.parametrize("after", list(State))
def test_only_steps_of_the_table_can_be_made(before: State, after: State) -> None:
    made = instance(WAYS[before])
    assert made.state is before
    if (before, after) in STEPS:
        made.become(after)
        assert made.state is after
    else:
        with pytest.raises(RuntimeError, match=f"can't become {after}: it went starting"):
            made.become(after)
        assert made.state is before


@pytest.mark.parametrize("state", list(State))
def test_predicates_say_what_may_be_done(state: State) -> None:
    made = instance(WAYS[state])
    assert made.can_serve is (state is S.IDLE)
    assert made.held is (state in (S.LEASED, S.DRAINING))


def test_the_history_is_bounded_and_keeps_its_beginning_and_its_end() -> None:
    made = instance([S.IDLE, *[S.LEASED, S.IDLE] * 500])
    assert len(made.history) < 20
    assert (made.history[0], made.history[-1]) == (S.STARTING, S.IDLE)


@pytest.mark.parametrize(
    ("end", "kind", "words"),
    [
        (End(0, None, False, 0), "crashed", "exited with code 0"),
        (End(3, None, False, 0), "crashed", "exited with code 3"),
        (End(None, 11, False, 0), "crashed", "signal 11"),
        (End(139, None, False, 0), "crashed", "signal 11"),
        (End(None, 9, True, 100 << 20), "out-of-memory", "limit of 64 MB (it had reached 100 MB)"),
        (End(1, None, True, 0), "out-of-memory", "limit of 64 MB. Use less, or raise `memory`"),
    ],
)
def test_the_cause_of_an_end_is_explained(end: End, kind: str, words: str) -> None:
    told, detail = explain(end, 64 << 20)
    assert told == kind
    assert words in detail
