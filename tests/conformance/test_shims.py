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


WORD = 'console.log("loaded"); export const word = "dependency";\n'
MODULES = {
    "plain": 'import { word } from "./word.mjs"; export default () => new Response(word);\n',
    "awaiting": 'const { word } = await import("./word.mjs"); export default () => new Response(word);\n',
    "common": 'const { word } = require("./word.cjs"); module.exports = () => new Response(word);\n',
    "named": 'export { word } from "./word.mjs"; const f = () => new Response("dependency");\n'
    'export { f as "module.exports", f as default };\n',
}


@pytest.mark.parametrize("interpreter", nodes())
@pytest.mark.parametrize("kind", MODULES)
def test_node_loads_modules_of_every_kind_once_and_without_a_word(interpreter, kind, tmp_path):
    handler = "handler.cjs" if kind == "common" else "handler.mjs"
    (tmp_path / handler).write_text(MODULES[kind])
    (tmp_path / "word.mjs").write_text(WORD)
    (tmp_path / "word.cjs").write_text('console.log("loaded"); exports.word = "dependency";\n')
    subject = conformance.Subject((interpreter.executable, str(NODE_SHIM)), tmp_path, handler)
    with conformance.running(subject) as shim, shim.connect() as connection:
        assert connection.ask("GET", "/").body == b"dependency"
        assert [line for line in shim.output.splitlines() if not line.startswith("\x1e")] == ["loaded"]


@pytest.mark.parametrize("interpreter", nodes())
@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("export default {;\n", "SyntaxError"),
        ("import { nope } from './word.mjs'; export default nope;\n", "handler.mjs:1"),
        ("import { nope } from './word.mjs'; export default nope;\n", "export named 'nope'"),
        ("import nope from './deeper.mjs'; await nope;\n", "export named 'nope'"),
        ("console.log('loaded'); export default JSON.parse('{');\n", "SyntaxError"),
        ("console.log('loaded'); throw new RangeError('too far');\n", "RangeError: too far"),
        ("await null; throw new RangeError('too far');\n", "handler.mjs:1"),
        ("import './broken.cjs'; export default () => null;\n", "broken.cjs:1"),
        ("import './absent.mjs'; export default () => null;\n", "imports 'absent.mjs', which is not there"),
    ],
)
def test_node_says_why_a_module_cannot_be_loaded_and_tries_it_once(interpreter, text, because, tmp_path):
    (tmp_path / "handler.mjs").write_text(text)
    (tmp_path / "broken.cjs").write_text("console.log('loaded'); throw new Error('broken');\n")
    (tmp_path / "word.mjs").write_text(WORD)
    (tmp_path / "deeper.mjs").write_text("export { nope as default } from './word.mjs';\n")
    subject = conformance.Subject((interpreter.executable, str(NODE_SHIM)), tmp_path, "handler.mjs")
    conformance.check_refused(subject, because)
    with conformance.Shim(subject) as shim:
        shim.attach()
        shim.process.wait(20)
        assert shim.output.count("loaded\n") <= 1
