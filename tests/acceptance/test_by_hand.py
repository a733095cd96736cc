"""The daily commands against a real platform, beyond what README.md shows."""

import json
import subprocess
import time

from tests.support.apps import App, call
from tests.support.platform import PROGRAM

HELLO = {"handler.py": "def handle(request):\n    print('said', request.path)\n    return 'hello'\n"}


def test_list_shows_each_function_with_its_address(up):
    App.make(up, "shown", HELLO).deploy()
    done = up.run("list")
    assert f"{up.url}/function/shown" in done.stdout
    (found,) = [each for each in json.loads(up.run("list", "--json").stdout) if each["name"] == "shown"]
    assert found["app"] == "shown"


def test_ps_shows_an_instance_while_there_is_one(up):
    App.make(up, "running", HELLO).deploy()
    call(up, "running")
    (found,) = [each for each in json.loads(up.run("ps", "--json").stdout) if each["function"] == "running"]
    assert found["id"] in up.run("ps").stdout


def test_a_call_starts_cold_then_warm_and_cold_again_from_zero(up):
    App.make(up, "sleeper", HELLO).deploy()
    starts = [call(up, "sleeper").headers["pilotlight-start"] for _ in range(2)]
    up.platform.call("DELETE", "/api/v1/functions/sleeper/instances")
    starts.append(call(up, "sleeper").headers["pilotlight-start"])
    assert starts == ["cold", "warm", "cold"]


def test_logs_show_what_was_printed_and_follow_what_comes(up):
    App.make(up, "talker", HELLO).deploy()
    call(up, "talker/one")
    follower = subprocess.Popen(
        [*PROGRAM, "logs", "talker", "-f"], env=up.environment(), stdout=subprocess.PIPE, text=True
    )
    with follower:
        assert follower.stdout.readline().rstrip().endswith("said /one")
        call(up, "talker/two")
        assert follower.stdout.readline().rstrip().endswith("said /two")
        follower.send_signal(2)
        assert follower.wait(10) == 130
    assert "said /two" in up.run("logs", "talker", "--tail", "1").stdout
    assert "said /one" not in up.run("logs", "talker", "--tail", "1").stdout


def test_what_a_function_prints_cannot_change_the_screen(up):
    """Neither where its log is shown, nor in the story of a call."""
    source = (
        "import os\ndef handle(request):\n"
        "    print('before\\x1b[2J\\x1b]0;x\\x07after', flush=True)\n"
        "    os._exit(3)\n"
    )
    App.make(up, "painter", {"handler.py": source}).deploy()
    answer = call(up, "painter")
    shown = [up.run("logs", "painter"), up.run("explain", answer.headers["x-request-id"])]
    assert ["before [2J ]0;x after" in each.stdout for each in shown] == [True, True]
    assert ["\x1b" in each.stdout + each.stderr for each in shown] == [False, False]
    assert "\\u001b[2J" in up.run("logs", "painter", "--json").stdout


def test_invoke_sends_method_header_path_and_body(up):
    echo = (
        "def handle(request):\n"
        "    return f\"{request.method} {request.path} {request.headers.get('x-colour')} {request.text}\"\n"
    )
    App.make(up, "echo", {"handler.py": echo}).deploy()
    done = up.run("invoke", "echo", "-X", "PUT", "-d", "the body", "-H", "X-Colour: red", "--path", "/a/b")
    assert done.stdout == "PUT /a/b red the body"
    assert "200 OK · cold start" in done.stderr
    assert up.run("invoke", "echo", "-d", "@-", stdin="from stdin").stdout == "POST / None from stdin"
    unknown = up.run("invoke", "nobody")
    assert unknown.returncode == 1
    assert "404" in unknown.stderr


def test_rollback_takes_the_start_of_a_revision(up):
    app = App.make(up, "versions", {"handler.py": "def handle(request):\n    return 'one'\n"})
    app.deploy()
    (first,) = [
        each["revision"] for each in json.loads(up.run("list", "--json").stdout) if each["name"] == "versions"
    ]
    app.commit({"handler.py": "def handle(request):\n    return 'two'\n"})
    app.deploy()
    assert call(up, "versions").text == "two"
    done = up.run("rollback", "versions", first[:10])
    assert done.returncode == 0, done.stderr
    assert call(up, "versions").text == "one"
    unknown = up.run("rollback", "versions", "zzzz")
    assert unknown.returncode == 1
    assert first in unknown.stderr
    kept = json.loads(up.run("revisions", "versions", "--json").stdout)
    assert [each["id"] for each in kept if each["live"]] == [first]
    assert len(kept) == 2
    (shown,) = [line for line in up.run("revisions", "versions").stdout.splitlines() if "yes" in line]
    assert shown.startswith(f"{first}  ")
    assert up.run("revisions", "nobody").returncode == 1


def test_invoke_and_logs_print_json_for_machines(up):
    answer = (
        "def handle(request):\n"
        "    print('said it')\n"
        "    body = b'\\xff' if request.path == '/binary' else 'text'\n"
        "    return 418, body\n"
    )
    App.make(up, "machine", {"handler.py": answer}).deploy()
    done = up.run("invoke", "machine", "--json")
    assert done.returncode == 1, "a status from 400 on is a failure for scripts"
    told = json.loads(done.stdout)
    assert (told["status"], told["body"], told["headers"]["pilotlight-start"]) == (418, "text", "cold")
    assert (
        json.loads(up.run("invoke", "machine", "--json", "--path", "binary").stdout)["body_base64"] == "/w=="
    )
    first, second = map(json.loads, up.run("logs", "machine", "--json").stdout.splitlines())
    assert first["line"] == second["line"] == "said it"
    assert first["time"] < second["time"]


def test_a_shell_completes_the_names_of_functions(up):
    App.make(up, "completed", HELLO).deploy()
    script = (
        "source <(pilotlight completion bash); COMP_WORDS=(pilotlight logs comp); COMP_CWORD=2;"
        "_pilotlight_completion pilotlight; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["bash", "-c", script], env=up.environment(), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("completed\n", "")


def test_a_deleted_function_is_gone_and_its_name_free(up):
    App.make(up, "passing", HELLO).deploy()
    assert up.run("delete", "passing").returncode == 0
    assert call(up, "passing").status == 404
    App.make(up, "successor", HELLO | {"pilotlight.toml": '[functions.passing]\npath = "."\n'}).deploy()
    assert call(up, "passing").status == 200


def test_keys_work_until_they_are_deleted(up):
    made = up.run("keys", "create", "laptop")
    key = made.stdout.strip()
    assert key
    assert key not in made.stderr
    (listed,) = [
        each for each in json.loads(up.run("keys", "list", "--json").stdout) if each["name"] == "laptop"
    ]
    platform = up.platform
    platform.key = key
    assert "functions" in platform.get("/api/v1/functions")
    assert up.run("keys", "delete", listed["id"]).returncode == 0
    deadline = time.monotonic() + 10  # the gateway is told by an event
    while True:
        with platform.request("GET", "/api/v1/functions") as answer:
            if answer.status == 403:
                return
        assert time.monotonic() < deadline


def test_a_secret_reaches_the_function_that_names_it(up):
    files = {
        "handler.py": "import os\ndef handle(request):\n    return os.environ['TOKEN']\n",
        "pilotlight.toml": '[functions.keeper]\npath = "."\nsecrets = ["TOKEN"]\n',
    }
    assert up.run("secrets", "set", "TOKEN", stdin="from stdin\n").returncode == 0
    App.make(up, "keeper", files).deploy()
    assert call(up, "keeper").text == "from stdin"
    assert up.run("secrets", "list").stdout.split() == ["TOKEN"]
    in_use = up.run("secrets", "delete", "TOKEN")
    assert in_use.returncode == 1
    assert "keeper" in in_use.stderr


def test_deploy_takes_a_folder_of_another_repository_and_again(up, tmp_path):
    source = tmp_path / "source"
    source.mkdir()

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=source, env=up.environment(), capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(text: str) -> str:
        folder = source / "functions" / "taken"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "handler.py").write_text(f"def handle(request):\n    return {text!r}\n")
        (source / "README").write_text("not a part of it")
        git("add", ".")
        git("commit", "--quiet", "-m", text)
        return git("rev-parse", "HEAD")

    git("init", "--quiet", "--initial-branch=trunk")
    first = commit("one")
    git("tag", "v1")
    commit("two")
    words = ("deploy", "--path", "functions/taken", "--from")
    for address, ref, text in [
        (f"file://{source}", "trunk", "two"),
        (str(source), "v1", "one"),
        (str(source), "HEAD", "two"),
        (str(source), first[:10], "one"),
    ]:
        done = up.run(*words, address, "--ref", ref)
        assert done.returncode == 0, done.stderr
        assert "Pilotlight deploys 'taken'" in done.stderr
        assert call(up, "taken").text == text
    missing = up.run("deploy", "--from", str(source), "--path", "no/such")
    assert missing.returncode == 1
    assert "There are: functions" in missing.stderr
    no_ref = up.run(*words, str(source), "--ref", "v9")
    assert no_ref.returncode == 1
    assert "v9" in no_ref.stderr


def test_the_key_is_in_no_url_and_in_a_file_for_its_owner_alone(up):
    app = App.make(up, "private", HELLO)
    key = up.data.admin_key.read_text().strip()
    assert key not in (app.folder / ".git" / "config").read_text()
    assert app.git("remote", "get-url", "pilotlight").stdout.strip() == f"{up.url}/git/private.git"
    holder = app.folder / ".git" / "pilotlight-key"
    kept = holder.read_text()
    assert "Authorization: Bearer pl_" in kept
    assert key not in kept, "it is good for everything, the repository needs less"
    assert holder.stat().st_mode & 0o777 == 0o600
    (made,) = [
        each for each in json.loads(up.run("keys", "list", "--json").stdout) if each["app"] == "private"
    ]
    assert made["scopes"] == ["deploy"]
    again = up.run("remote", "add", cwd=app.folder)
    assert again.returncode == 0
    assert holder.read_text() == kept
    up.run("keys", "delete", made["id"])
    assert up.run("remote", "add", cwd=app.folder).returncode == 0
    assert holder.read_text() != kept
    (anew,) = [
        each for each in json.loads(up.run("keys", "list", "--json").stdout) if each["app"] == "private"
    ]
    assert anew["id"] != made["id"]
    assert app.git("config", "--get-all", "include.path").stdout.split() == ["pilotlight-key"]


def test_doctor_tells_of_the_platform_that_runs(up):
    done = up.run("doctor", "--json")
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert found["git over HTTP"]["kept"]
    assert found["port"]["reason"] == f"the platform runs at {up.url}"
    assert done.returncode == (0 if all(each["kept"] or not each["needed"] for each in found.values()) else 1)
