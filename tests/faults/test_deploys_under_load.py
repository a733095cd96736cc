"""Many pushes in a row while the function is called: no call fails, each is answered by a revision that was live.

CI pushes 10 times. The long form: `PILOTLIGHT_DRILL_PUSHES=50 pytest tests/faults/test_deploys_under_load.py`.
"""

import os
import time
from collections.abc import Iterator

import pytest

from tests.support.apps import App
from tests.support.load import Client, Load, Outcome
from tests.support.platform import Up, family, left_behind

PUSHES = int(os.environ.get("PILOTLIGHT_DRILL_PUSHES", "10"))
MANIFEST = '[functions.changing]\npath = "."\nmax_instances = 4\n'


def number(which: int) -> dict[str, str]:
    return {
        "handler.py": f"def handle(request):\n    return '{which}'\n",
        "pilotlight.toml": MANIFEST,
    }


@pytest.fixture
def up(tmp_path) -> Iterator[Up]:
    with Up(tmp_path / "platform") as up:
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []


def test_no_call_fails_during_pushes_and_each_answer_is_of_a_revision_that_was_live(up: Up) -> None:
    app = App.make(up, "changing", number(0))
    pushed = [(0.0, 0.0)]  # when each push began, and when its end was told
    app.deploy()
    key = up.platform.key
    assert key is not None

    def call(asking: Client, name: str) -> Outcome:
        return asking.ask("POST", "/function/changing", name.encode())

    with Load(up.url, key, [call] * 3) as load:
        load.wait(5)
        for which in range(1, PUSHES + 1):
            app.commit(number(which))
            begun = time.monotonic()
            app.deploy()
            pushed.append((begun, time.monotonic()))
        load.wait(5, since=time.monotonic())

    seen: dict[int, set[str]] = {}
    for _, outcome in load.all():
        assert outcome.status == 200, str(outcome)
        which = int(outcome.body)
        seen.setdefault(which, set()).add(outcome.headers["pilotlight-revision"])
        assert outcome.ended >= pushed[which][0], f"{which} answered before it was pushed"
        replaced = pushed[which + 1][1] if which < PUSHES else float("inf")
        assert outcome.begun <= replaced, f"{which} answered a call that came after {which + 1} was live"
    assert PUSHES in seen
    assert all(len(revisions) == 1 for revisions in seen.values()), seen
