"""What goes wrong gets a clear answer that names the cause and the remedy."""

import json
import re
import threading

import pytest

from tests.support.apps import App, call


def handler(body: str) -> dict[str, str]:
    return {"handler.py": f"def handle(request):\n    {body}\n"}


def manifest(name: str, **values: object) -> dict[str, str]:
    """Return a pilotlight.toml for the function in the top folder."""
    lines = [
        f"[functions.{name}]",
        'path = "."',
        *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
    ]
    return {"pilotlight.toml": "\n".join(lines) + "\n"}


def problem(answer) -> dict:
    assert answer.headers["content-type"] == "application/problem+json"
    document = json.loads(answer.body)
    assert document["status"] == answer.status
    return document


def rejection(app: App) -> str:
    """Push, which must be rejected, and return what the platform said."""
    done = app.push()
    assert done.returncode != 0
    assert "[remote rejected]" in done.stderr
    return "\n".join(line.removeprefix("remote: ").rstrip() for line in done.stderr.splitlines())


def test_an_unknown_function_is_404(up):
    answer = call(up, "nobody")
    assert (answer.status, answer.headers["pilotlight-error"]) == (404, "unknown-function")
    assert "nobody" in problem(answer)["detail"]


def test_a_call_without_a_key_is_401_and_with_a_wrong_one_403(up):
    App.make(up, "locked", handler("return 'open'")).deploy()
    answer = call(up, "locked", key=False)
    assert (answer.status, answer.headers["pilotlight-error"]) == (401, "key-required")
    assert "Bearer" in answer.headers["www-authenticate"]
    platform = up.platform
    platform.key = "wrong"
    with platform.request("GET", "/function/locked") as response:
        assert response.status == 403
    assert call(up, "locked").text == "open"


def test_the_command_line_says_where_the_key_comes_from(up, monkeypatch):
    monkeypatch.setenv("PILOTLIGHT_KEY", "wrong")
    environment = {**up.environment(), "PILOTLIGHT_KEY": "wrong"}
    monkeypatch.setattr(type(up), "environment", lambda self: environment)
    done = up.run("list")
    assert done.returncode == 1
    assert "PILOTLIGHT_KEY" in done.stderr


def test_a_body_over_the_limit_is_413(up):
    App.make(up, "small", handler("return str(len(request.body))")).deploy()
    assert call(up, "small", method="POST", body=b"x" * 1000).text == "1000"
    answer = call(up, "small", method="POST", body=b"x" * ((1 << 20) + 1))
    assert (answer.status, answer.headers["pilotlight-error"]) == (413, "too-large")


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("no-handle", "print('nothing here')\n", "handle"),
        ("no-function", "handle = 3\n", "handle"),
        ("bad-import", "import no_such_module\ndef handle(request): return ''\n", "no_such_module"),
        ("bad-syntax", "def handle(request)\n    return ''\n", "handler.py"),
        ("exits", "import sys\nsys.exit('I never start')\n", "I never start"),
    ],
)
def test_a_function_that_cannot_start_is_rejected_with_its_own_error(up, name, source, said):
    assert said in rejection(App.make(up, name, {"handler.py": source}))
    assert call(up, name).status == 404


def test_a_handler_that_raises_is_a_500_of_the_function(up):
    App.make(up, "raises", handler("raise ValueError('secret detail')")).deploy()
    answer = call(up, "raises")
    assert answer.status == 500
    assert "pilotlight-error" not in answer.headers
    assert "ValueError" in answer.text
    assert "secret detail" in up.run("logs", "raises").stdout


def test_a_result_that_cannot_be_encoded_names_its_type(up):
    App.make(up, "odd", handler("return object()")).deploy()
    answer = call(up, "odd")
    assert answer.status == 500
    assert "object" in answer.text


def test_a_handler_that_exits_is_502_with_its_last_words(up):
    App.make(up, "leaves", handler("print('my last words', flush=True); import os; os._exit(3)")).deploy()
    answer = call(up, "leaves")
    assert (answer.status, answer.headers["pilotlight-error"]) == (502, "crashed")
    assert "my last words" in json.dumps(problem(answer))


def test_a_handler_that_never_returns_is_dead_before_504_is_sent(up):
    files = handler("import time\n    while True: time.sleep(0.01)") | manifest("endless", timeout="500ms")
    App.make(up, "endless", files).deploy()
    answer = call(up, "endless")
    assert (answer.status, answer.headers["pilotlight-error"]) == (504, "timeout")
    assert "500" in answer.text or "0.5" in answer.text
    assert [each for each in json.loads(up.run("ps", "--json").stdout) if each["function"] == "endless"] == []


def test_a_handler_that_takes_too_much_memory_is_told_the_limit(up):
    if "memory limit" in up.log.read_text():
        pytest.skip("this machine can't limit memory")
    files = handler("return str(len(bytearray(200 << 20)))") | manifest("greedy", memory="64MB")
    App.make(up, "greedy", files).deploy()
    answer = call(up, "greedy")
    assert (answer.status, answer.headers["pilotlight-error"]) == (502, "out-of-memory")
    assert "64" in problem(answer)["detail"]


def test_a_program_that_never_opens_its_port_is_rejected(up):
    files = {"handler": "#!/bin/sh\necho waiting for nothing\nsleep 1000\n"}
    said = rejection(App.make(up, "deaf", files | manifest("deaf", timeout="1s")))
    assert "PORT" in said or "port" in said


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour": "red"}, ("colour",)),
        ({"memory": "lots"}, ("memory", "lots")),
        ({"runtime": "cobol"}, ("runtime", "cobol", "python")),
        ({"concurrency": 0}, ("concurrency", "0")),
    ],
)
def test_a_bad_manifest_names_key_value_and_what_was_expected(up, values, words):
    (key,) = values
    name = f"bad-{key}"
    said = rejection(App.make(up, name, handler("return ''") | manifest(name, **values)))
    assert [word for word in words if word not in said] == []


def test_a_manifest_that_names_a_function_twice_is_rejected(up):
    text = '[functions.twin]\npath = "."\n[functions.twin]\npath = "."\n'
    assert "twin" in rejection(App.make(up, "twin", handler("return ''") | {"pilotlight.toml": text}))


def test_a_name_that_another_app_owns_is_rejected(up):
    App.make(up, "owner", handler("return 'mine'") | manifest("owned")).deploy()
    said = rejection(App.make(up, "thief", handler("return 'stolen'") | manifest("owned")))
    assert "owned" in said
    assert "owner" in said
    assert call(up, "owned").text == "mine"


def test_a_push_without_functions_is_rejected(up):
    said = rejection(App.make(up, "empty", {"notes.txt": "nothing to run"}))
    assert re.search(r"no function", said, re.IGNORECASE)


def test_a_dependency_that_does_not_exist_is_rejected_with_its_name(up):
    files = handler("return ''") | {"requirements.txt": "pilotlight-has-no-such-package-8472==1.0\n"}
    assert "pilotlight-has-no-such-package-8472" in rejection(App.make(up, "needy", files))


def test_a_rejected_push_leaves_what_ran(up):
    app = App.make(up, "steady", handler("return 'first'"))
    app.deploy()
    app.commit({"handler.py": "import no_such_module\n"})
    assert "no_such_module" in rejection(app)
    assert call(up, "steady").text == "first"
    app.commit(handler("return 'second'"))
    app.deploy()
    assert call(up, "steady").text == "second"


def test_two_pushes_at_once_end_with_one_of_them_live(up):
    app = App.make(up, "race", handler("return 'start'"))
    app.deploy()
    results = []

    def push(number: int) -> None:
        other = App(up, app.folder.with_name(f"race-{number}"))
        app.git("clone", "--quiet", str(app.folder), str(other.folder))
        other.commit(handler(f"return 'from {number}'"))
        other.git("remote", "add", "pilotlight", f"{up.url}/git/race.git")
        assert up.run("remote", "add", "--app", "race", cwd=other.folder).returncode == 0
        results.append((number, other.push().returncode))

    threads = [threading.Thread(target=push, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number, code in results if code == 0]
    assert len(winners) == 1
    assert call(up, "race").text == f"from {winners[0]}"
