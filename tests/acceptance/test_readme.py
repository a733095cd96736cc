"""README.md is true: its session runs as it stands there, its functions answer, its links lead somewhere."""

import json
import re
import shutil
import subprocess

import pytest

from tests.support.apps import App, call
from tests.support.platform import ROOT, Up, free_port

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)

PRELUDE = """
set -eux -o pipefail
trap 'kill %1; wait %1' EXIT
"""
WAIT = """
for _ in $(seq 600); do test -e "$PILOTLIGHT_DATA/platform.json" && break; sleep 0.1; done
"""


def language(name: str) -> str:
    (block,) = [text for tag, text in BLOCKS if tag == name]
    return block


def test_the_session_by_hand_runs_as_it_is_written(tmp_path):
    port = free_port()
    up = Up(tmp_path)
    (tmp_path / "gitconfig").write_text("[user]\n\tname = Test\n\temail = test@localhost\n")
    session = "\n".join(text for tag, text in BLOCKS if tag == "sh")
    session = session.replace("8080", str(port)).replace("pilotlight up &\n", f"pilotlight up &\n{WAIT}")
    # On a machine that can't keep a guarantee, saying so is what doctor is for
    session = re.sub(
        r"^pilotlight doctor.*$", "pilotlight doctor || test $? = 1", session, flags=re.MULTILINE
    )
    environment = {**up.environment(), "PILOTLIGHT_PORT": str(port), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", PRELUDE + session],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )

    assert done.returncode == 0, done.stderr
    assert f"Pilotlight is ready on http://127.0.0.1:{port}\n" in done.stdout
    assert "HTTP/1.1 200 OK" in done.stdout
    assert re.search(r"^Pilotlight-Start: cold\r?$", done.stdout, re.MULTILINE)
    assert re.search(r"^Server-Timing: wait;dur=.*handler;dur=", done.stdout, re.MULTILINE)
    assert '{"hello":"world"}' in done.stdout
    assert '{"good morning":"world"}' in done.stdout
    assert f"http://127.0.0.1:{port}/function/hello" in done.stderr, "the push prints the URL"
    assert "hello is at revision" in done.stdout
    assert "hello is deleted" in done.stdout
    assert "GITHUB_TOKEN" in done.stdout


@pytest.mark.parametrize(
    ("tag", "file"), [("python", "handler.py"), ("javascript", "handler.mjs"), ("native", "handler")]
)
def test_the_function_of_each_language_answers(up, tag, file):
    if tag == "javascript" and shutil.which("node") is None:
        pytest.skip("this machine has no Node")
    patient = (
        f'[functions.readme-{tag}]\npath = "."\ntimeout = "60s"\n'  # for machines on which Node takes long
    )
    App.make(up, f"readme-{tag}", {file: language(tag), "pilotlight.toml": patient}).deploy()
    answer = call(up, f"readme-{tag}")
    assert answer.status == 200, answer.text
    assert json.loads(answer.body) == {"hello": "world"}


def test_every_link_leads_to_a_file():
    links = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert [target for target in links if not (ROOT / target).exists()] == []
