"""What is told of a call afterwards: by `invocations`, `explain` and `logs`."""

import json

import pytest

from runtimes.declaration import load_all
from tests.support.apps import App, call

HANDLER = """
import time
def handle(request):
    print("got", request.path, flush=True)
    if request.path == "/sleep":
        time.sleep(30)
    if request.path == "/die":
        import os
        os._exit(3)
    return "fine"
"""


NODE_HANDLER = """
console.log("loaded");
export default function handle(request) {
  console.log("got", new URL(request.url).pathname);
  return new Response("fine");
}
"""


def ask(up, target, request, *, key=True):
    return call(up, target, key=key, headers={"X-Request-Id": request})


def explain(up, request):
    """Return the only story of a request, as JSON, and as it is told."""
    (story,) = json.loads(up.run("explain", request, "--json").stdout)
    return story, up.run("explain", request).stdout


def test_a_cold_and_a_warm_call_are_told_apart_with_what_they_printed(up):
    App.make(up, "told", {"handler.py": HANDLER}).deploy()
    assert ask(up, "told/one?secret=1", "told-cold").status == 200
    assert ask(up, "told/two", "told-warm").status == 200
    cold, text = explain(up, "told-cold")
    assert cold["call"]["cold"]
    assert cold["call"]["path"] == "/one"  # no query
    assert [line["line"] for line in cold["lines"]] == ["got /one"]
    assert "Cold: waited" in text
    assert "Answered 200" in text
    assert "got /one" in text
    warm, text = explain(up, "told-warm")
    assert not warm["call"]["cold"]
    assert [line["line"] for line in warm["lines"]] == ["got /two"]
    assert "Warm:" in text
    listed = json.loads(up.run("invocations", "told", "--json").stdout)
    assert [each["request_id"] for each in listed] == ["told-cold", "told-warm"]
    assert "told-warm" in up.run("invocations", "told", "--tail", "1").stdout


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"handler.py": HANDLER}, id="python"),
        pytest.param(
            {"handler.mjs": NODE_HANDLER},
            id="node",
            marks=pytest.mark.skipif(not load_all()["node"].find(), reason="this machine has no Node"),
        ),
    ],
)
def test_lines_of_the_log_name_their_requests(up, files, request):
    name = f"tied-{request.node.callspec.id}"
    patient = f'[functions.{name}]\npath = "."\ntimeout = "60s"\n'
    App.make(up, name, {**files, "pilotlight.toml": patient}).deploy()
    for number in range(3):
        assert ask(up, f"{name}/x", f"{name}-{number}").status == 200
    explain(up, f"{name}-2")  # by then all are reported
    lines = [json.loads(line) for line in up.run("logs", name, "--json").stdout.splitlines()]
    told = [(line.get("request", ""), line["line"]) for line in lines if line["line"] != "loaded"]
    assert told == [(f"{name}-{number}", "got /x") for number in range(3)]
    assert f"{name}-2" in up.run("logs", name).stdout


def test_a_call_that_ends_its_process_tells_its_exit_code(up):
    App.make(up, "dying", {"handler.py": HANDLER}).deploy()
    assert ask(up, "dying/die", "dying-1").status == 502
    story, text = explain(up, "dying-1")
    assert (story["call"]["status"], story["call"]["problem"]) == (502, "crashed")
    assert "exited with code 3" in text
    assert "got /die" in text
    assert "dying-1" in up.run("invocations", "dying", "--failed").stdout


def test_a_call_that_ran_out_of_time_tells_what_for(up):
    manifest = '[functions.late]\naccess = "public"\ntimeout = "500ms"\n'
    App.make(up, "late", {"late/handler.py": HANDLER, "pilotlight.toml": manifest}).deploy()
    assert ask(up, "late/sleep", "late-1").status == 504
    story, text = explain(up, "late-1")
    assert story["call"]["problem"] == "timeout"
    assert "timeout of 0.5 s" in text
    assert "ran longer than the timeout" in story["instance_end"]


def test_a_request_that_nobody_remembers_is_said_so(up):
    done = up.run("explain", "never-sent")
    assert done.returncode == 1
    assert "X-Request-Id" in done.stderr


def test_a_call_that_found_no_way_in_is_not_remembered(up):
    App.make(up, "closed", {"handler.py": HANDLER}).deploy()
    assert ask(up, "closed", "stranger", key=False).status == 401
    assert ask(up, "closed", "known").status == 200
    explain(up, "known")
    assert [c["request_id"] for c in json.loads(up.run("invocations", "closed", "--json").stdout)] == [
        "known"
    ]
