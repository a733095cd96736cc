"""Every shim keeps the contract of runtimes/contract.md, under every interpreter that this machine has."""

import os
import subprocess
from pathlib import Path

import pytest

from runtimes import conformance
from runtimes.declaration import load_all
from tests.support.nodes import nodes

RUNTIMES = Path(conformance.__file__).parent
NODE_SHIM = RUNTIMES / "node/shim/shim.mjs"


def commands():
    loaded = load_all()
    for interpreter in loaded["python"].find():
        shim = RUNTIMES / "python/shim/pilotlight_shim.py"
        yield interpreter, (interpreter.executable, "-I", "-S", str(shim))
    for interpreter in loaded["node"].find():
        yield interpreter, (interpreter.executable, str(NODE_SHIM))


def answering():
    for interpreter, command in commands():
        for subject in conformance.subjects(command, RUNTIMES / interpreter.runtime / "conformance"):
            yield pytest.param(subject, id=f"{interpreter.name}-{subject.handler}")


def refused():
    for interpreter, command in commands():
        folder = RUNTIMES / interpreter.runtime / "conformance"
        for subject, because in conformance.refused(command, folder):
            yield pytest.param(subject, because, id=f"{interpreter.name}-{subject.handler}")


@pytest.mark.parametrize("subject", list(answering()))
@pytest.mark.parametrize("check", list(conformance.checks().values()), ids=list(conformance.checks()))
def test_a_shim_keeps_the_clause(subject, check):
    check(subject)


@pytest.mark.parametrize(("subject", "because"), list(refused()))
def test_a_shim_says_why_a_function_cannot_be_loaded(subject, because):
    conformance.check_refused(subject, because)


WHERE = """
import { realpathSync } from "node:fs";
import module from "node:module";

const folder = module.getCompileCacheDir?.();
export default () => new Response(folder === undefined ? "nowhere" : realpathSync(folder));
"""
COMPILES = """
const module = require("node:module");
module.enableCompileCache(process.argv[1]);
console.log(module.getCompileCacheDir());
"""


@pytest.mark.parametrize("interpreter", nodes())
@pytest.mark.parametrize("kept", [True, False])
def test_node_looks_for_compiled_code_where_the_build_has_put_it(interpreter, kept, tmp_path):
    caches = int(interpreter.version) >= 22
    (tmp_path / "handler.mjs").write_text(WHERE)
    (tmp_path / "tmp").mkdir()
    version = "v1-some"
    if caches:
        command = (interpreter.executable, "-e", COMPILES, str(tmp_path / "tmp"))
        made = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        version = made.name.removesuffix(f"-{os.getuid()}")
    layer = tmp_path / ".compile-cache" / version
    if kept:
        layer.mkdir(parents=True)
    command = ("/usr/bin/env", f"TMPDIR={tmp_path}/tmp", interpreter.executable, str(NODE_SHIM))
    subject = conformance.Subject(command, tmp_path, "handler.mjs")
    with conformance.running(subject) as shim, shim.connect() as connection:
        said = connection.ask("GET", "/").body.decode()
    assert said == (str(layer) if caches and kept else "nowhere")
