"""A platform that is used and killed in random order, beside a model of what must be true of it.

CI runs a few histories, the same each time. A long random run, some seconds for each history:
`PILOTLIGHT_DRILL_EXAMPLES=300 pytest tests/faults/test_model.py`. A history that fails is printed; it is not
shrunk, as chance has its part in when a process dies.
"""

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.apps import App
from tests.support.load import Client, Load, Outcome
from tests.support.platform import (
    READY,
    Process,
    Up,
    family,
    free_port,
    kill,
    left_behind,
    service,
    wait_until,
)

EXAMPLES = int(os.environ.get("PILOTLIGHT_DRILL_EXAMPLES", "0"))
CI = settings(max_examples=5, stateful_step_count=14, derandomize=True)
LONG = settings(max_examples=max(1, EXAMPLES), stateful_step_count=40)
PROFILE = settings(
    LONG if EXAMPLES else CI,
    phases=[Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
PATIENCE = 60.0
MAY_PASS = ("", "unavailable", "crashed")
"""The causes with which a request may fail when a process was killed just before; it is asked again then."""

NAMES = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["k", "l"])
SERVICES = st.sampled_from(["gateway", "function-service", "builder", "baas"])


@dataclass
class Function:
    """What must be true of a function."""

    app: App
    head: str = ""  # the text that was committed last
    order: list[str] = field(default_factory=list)  # revisions, as pushes made them live, the latest first
    texts: dict[str, str] = field(default_factory=dict)  # by revision
    most: dict[str, int] = field(default_factory=dict)  # max_instances by revision
    least: dict[str, int] = field(default_factory=dict)
    live: str = ""  # a revision; empty where the function is not there


class Machine(RuleBasedStateMachine):
    """One history. Each has functions and documents of its own."""

    up: Up  # set by the test
    numbers = itertools.count()

    @initialize()
    def begin(self) -> None:
        self.name = f"e{next(self.numbers)}"
        key = self.up.platform.key
        assert key is not None
        self.key = key
        self.client = Client(self.up.url, key)
        self.tokens = itertools.count()
        self.functions = {name: Function(self.repository(f"{self.name}-{name}")) for name in ("a", "b")}
        self.documents: dict[str, bytes] = {}
        self.counter = 0
        self.began = True
        for name in self.functions:
            self.push(name, "one", 0, 2)

    def repository(self, name: str) -> App:
        app = App(self.up, self.up.folder / "apps" / name)
        app.folder.mkdir(parents=True)
        app.git("init", "--quiet", "--initial-branch=main")
        address = self.up.url.replace("http://", f"http://x:{self.key}@")
        app.git("remote", "add", "pilotlight", f"{address}/git/{name}.git")
        return app

    # asking

    def full(self, name: str) -> str:
        return f"{self.name}-{name}"

    def clearly(self, method: str, path: str, body: bytes | None = None) -> Outcome:
        """Ask until there is an answer that does not say "try again": for what may be done twice."""

        def answered() -> Outcome | None:
            outcome = self.client.ask(method, path, body)
            assert outcome.error or outcome.status < 500, f"no cause: {outcome}"
            return None if outcome.status in (0, 502, 503) and outcome.error in MAY_PASS else outcome

        return wait_until(answered, PATIENCE)

    def status(self, name: str) -> dict | None:
        outcome = self.clearly("GET", f"/api/v1/functions/{self.full(name)}")
        assert outcome.status in (200, 404), str(outcome)
        return json.loads(outcome.body) if outcome.status == 200 else None

    def call_once(self, name: str) -> Outcome:
        function, token = self.functions[name], f"t{next(self.tokens)}"
        outcome = self.clearly("POST", f"/function/{self.full(name)}", token.encode())
        if not function.live:
            assert (outcome.status, outcome.error) == (404, "unknown-function"), str(outcome)
            return outcome
        assert outcome.status == 200, str(outcome)
        assert outcome.headers["pilotlight-revision"] == function.live
        assert json.loads(outcome.body) == [function.texts[function.live], token]
        return outcome

    # functions

    @rule(
        name=NAMES,
        text=st.sampled_from(["one", "two", "three"]),
        least=st.sampled_from([0, 0, 0, 1]),
        most=st.integers(1, 3),
    )
    def push(self, name: str, text: str, least: int, most: int) -> None:
        function = self.functions[name]
        manifest = (
            f'[functions.{self.full(name)}]\npath = "."\nmin_instances = {least}\nmax_instances = {most}\n'
            'timeout = "20s"\n'
        )
        files = {
            "handler.py": f"def handle(request):\n    return [{text!r}, request.body.decode()]\n",
            "pilotlight.toml": manifest,
        }
        content = json.dumps(files)
        if content == function.head:
            return  # there is nothing to commit
        function.app.commit(files)
        function.head = content
        done = function.app.push()
        if done.returncode != 0:
            # Refused, as something was just being restarted: what ran before still runs, or the new one does
            assert "unavailable" in done.stderr or "503" in done.stderr or "remote" in done.stderr, (
                done.stderr
            )
            wait_until(self.is_ready, PATIENCE)
            done = function.app.push()
        assert done.returncode == 0, done.stderr
        told = self.status(name)
        assert told is not None
        assert (
            told["commit"] == function.app.git("rev-parse", "HEAD").stdout.strip()
            or told["revision"] == function.live
        )
        revision = told["revision"]
        assert function.texts.setdefault(revision, text) == text
        function.most[revision], function.least[revision] = most, least
        if revision != function.live:
            function.order = [revision, *(each for each in function.order if each != revision)]
        function.live = revision

    @rule(name=NAMES)
    def call(self, name: str) -> None:
        self.call_once(name)

    @rule(name=NAMES, number=st.integers(2, 6))
    def call_at_once(self, name: str, number: int) -> None:
        function = self.functions[name]
        if not function.live:
            return
        outcomes: list[Outcome] = []

        def one() -> None:
            client = Client(self.up.url, self.key)
            outcomes.append(client.ask("POST", f"/function/{self.full(name)}", b"x"))
            client.close()

        wait_until(self.is_ready, PATIENCE)
        threads = [threading.Thread(target=one) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        text = function.texts[function.live]
        assert all(each.status == 200 and json.loads(each.body) == [text, "x"] for each in outcomes), [
            str(each) for each in outcomes
        ]
        assert len({each.headers["pilotlight-instance"] for each in outcomes}) <= function.most[function.live]

    @rule(name=NAMES)
    def scale_to_zero(self, name: str) -> None:
        outcome = self.clearly("DELETE", f"/api/v1/functions/{self.full(name)}/instances")
        assert outcome.status == (200 if self.functions[name].live else 404), str(outcome)

    @rule(name=NAMES)
    def roll_back(self, name: str) -> None:
        function = self.functions[name]
        before = function.order[function.order.index(function.live) + 1 :] if function.live else []
        outcome = self.client.ask("POST", f"/api/v1/functions/{self.full(name)}/rollback")
        if outcome.error in MAY_PASS and not outcome.well:
            told = self.status(name)  # it was done, or was not
            live = told["revision"] if told is not None else ""
            assert live in {function.live, *before[:1]}
            function.live = live
        elif not before:
            assert outcome.status == 404, str(outcome)
        else:
            assert outcome.status == 200, str(outcome)
            assert json.loads(outcome.body)["id"] == before[0]
            function.live = before[0]

    @rule(name=NAMES, really=st.sampled_from([False, False, True]))
    def delete(self, name: str, really: bool) -> None:
        function = self.functions[name]
        if not really:
            return  # most histories are of functions that are there
        outcome = self.client.ask("DELETE", f"/api/v1/functions/{self.full(name)}")
        if outcome.error in MAY_PASS and not outcome.well:
            outcome = self.clearly("DELETE", f"/api/v1/apps/{self.full(name)}")
            assert outcome.status in (204, 404), str(outcome)
        else:
            assert outcome.status == (204 if function.live else 404), str(outcome)
        function.live, function.order = "", []

    # documents

    @rule(key=KEYS, value=st.integers(0, 9), only=st.sampled_from(["", "new", "the one seen", "one before"]))
    def put(self, key: str, value: int, only: str) -> None:
        path = f"/data/v1/things/{key}?app={self.name}"
        seen = self.clearly("GET", path)
        assert (seen.status, seen.body) == (
            (200, self.documents[key]) if key in self.documents else (404, seen.body)
        ), str(seen)
        headers = {
            "new": {"If-None-Match": "*"},
            "the one seen": {"If-Match": seen.headers.get("etag", '"0"')},
            "one before": {"If-Match": '"1"'},
        }.get(only, {})
        lost = (only == "new") == (key in self.documents) if only in ("new", "the one seen") else bool(only)
        body = json.dumps(value).encode()
        outcome = self.client.ask("PUT", path, body, headers)
        if outcome.error in MAY_PASS and not outcome.well:
            now = self.clearly("GET", path)  # it was written, or was not
            possible = {self.documents.get(key)} | (set() if lost else {body})
            assert (now.body if now.status == 200 else None) in possible, str(now)
            if now.status == 200:
                self.documents[key] = now.body
        elif lost:
            assert outcome.status == 412, str(outcome)
        else:
            assert outcome.status == (204 if key in self.documents else 201), str(outcome)
            self.documents[key] = body

    @rule()
    def count(self) -> None:
        path = f"/data/v1/things/counter?app={self.name}"
        outcome = self.client.ask("POST", path.replace("counter", "counter/increment"))
        if outcome.error in MAY_PASS and not outcome.well:
            now = self.clearly("GET", path)
            found = int(now.body) if now.status == 200 else 0
            assert found in (self.counter, self.counter + 1)
            self.counter = found
        else:
            self.counter += 1
            assert json.loads(outcome.body) == {"value": self.counter}

    # kills

    def is_ready(self) -> bool:
        return self.client.ask("GET", "/readyz").status == 200

    @rule(name=SERVICES, wait=st.booleans())
    def kill_a_service(self, name: str, wait: bool) -> None:
        process = wait_until(lambda: self.process(name), PATIENCE)
        below = family(process.pid)
        kill(process)
        wait_until(lambda: not any(each.lives for each in below), PATIENCE)
        if wait:
            wait_until(self.is_ready, PATIENCE)

    def process(self, name: str) -> Process | None:
        """Return the process of a service; None while it is being restarted."""
        try:
            return service(self.up, name)
        except StopIteration:
            return None

    @rule(name=NAMES)
    def kill_its_instances(self, name: str) -> None:
        outcome = self.clearly("GET", f"/api/v1/functions/{self.full(name)}/instances")
        if outcome.status == 200:
            for each in json.loads(outcome.body)["instances"]:
                kill(*self.listening(f"/{each['id']}"))

    def listening(self, path: str) -> set[Process]:
        """Return the processes that hold a listening socket of an instance, but the function service."""
        parent = self.process("function-service")
        inodes = {
            f"socket:[{line.split()[6]}]"
            for line in Path("/proc/net/unix").read_text().splitlines()
            if path in line and str(self.up.data.instances) in line
        }
        found = set()
        for each in family(parent.pid) - {parent} if parent is not None else ():
            try:
                links = {str(link.readlink()) for link in Path(f"/proc/{each.pid}/fd").iterdir()}
            except OSError:
                continue  # it has ended
            if links & inodes:
                found.add(each)
        return found

    @rule(name=NAMES, killed=SERVICES)
    def kill_under_load(self, name: str, killed: str) -> None:
        function = self.functions[name]
        if not function.live:
            return
        text = function.texts[function.live]

        def call(client: Client, token: str) -> Outcome:
            outcome = client.ask("POST", f"/function/{self.full(name)}", token.encode())
            if outcome.well:
                assert json.loads(outcome.body) == [text, token]
            else:
                assert outcome.error in MAY_PASS, str(outcome)
            return outcome

        with Load(self.up.url, self.key, [call, call]) as load:
            load.wait(2)
            kill(wait_until(lambda: self.process(killed), PATIENCE))
            load.wait(3, since=time.monotonic())

    @rule()
    def kill_everything(self) -> None:
        processes = family(self.up.process.pid)
        kill(*processes)
        self.up.process.wait()
        assert self.up.start().startswith(READY), self.up.log.read_text()[-2000:]
        assert [each for each in processes if each.lives] == []

    # what is true after each step, and at the end

    @precondition(lambda self: getattr(self, "began", False))
    @invariant()
    def no_build_is_left(self) -> None:
        wait_until(lambda: not list(self.up.data.builds.iterdir()), PATIENCE)

    def teardown(self) -> None:
        if not getattr(self, "began", False):
            return
        wait_until(self.is_ready, PATIENCE)
        for name, function in self.functions.items():
            self.call_once(name)
            told = self.status(name)
            assert (told["revision"] if told is not None else "") == function.live
            if function.live:
                least = function.least[function.live]
                wait_until(lambda name=name, least=least: len(self.instances(name)) >= least, PATIENCE)
                assert self.clearly("DELETE", f"/api/v1/apps/{self.full(name)}").status in (204, 404)
            assert self.clearly("POST", f"/function/{self.full(name)}").status == 404
        found = self.clearly("GET", f"/data/v1/things?app={self.name}")
        kept = {
            each["key"]: json.dumps(each["value"]).encode() for each in json.loads(found.body)["documents"]
        }
        assert kept == self.documents | ({"counter": str(self.counter).encode()} if self.counter else {})
        wait_until(
            lambda: not any(self.full(name) in repr(self.everything()) for name in self.functions), PATIENCE
        )
        self.client.close()

    def instances(self, name: str) -> list[dict]:
        outcome = self.clearly("GET", f"/api/v1/functions/{self.full(name)}/instances")
        return json.loads(outcome.body)["instances"] if outcome.status == 200 else []

    def everything(self) -> list[object]:
        """What the platform still has of functions: instances, functions, repositories."""
        instances = json.loads(self.clearly("GET", "/api/v1/instances").body)
        functions = json.loads(self.clearly("GET", "/api/v1/functions").body)
        return [instances, functions, [each.name for each in self.up.data.repositories.iterdir()]]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with Up(tmp_path / "platform", ("--port", str(free_port()))) as up:
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []


@pytest.mark.timeout(7200 if EXAMPLES else 600)
def test_whatever_happens_in_whatever_order_the_platform_is_as_the_model_says(up: Up) -> None:
    class OnThisPlatform(Machine):
        pass

    OnThisPlatform.up = up
    run_state_machine_as_test(OnThisPlatform, settings=PROFILE)
