"""Every Node of this machine runs functions, and those that can keep compiled code find it in the code layer."""

import json

import pytest

from tests.support.apps import App, call
from tests.support.nodes import nodes

MANIFEST = '[functions.{name}]\npath = "."\nruntime = "{name}"\naccess = "public"\nhandler = "handler.mjs"\ntimeout = "60s"\n'
HANDLER = """
import { accessSync, constants, readdirSync, realpathSync } from "node:fs";
import module from "node:module";
import { called } from "./large.mjs";

const folder = module.getCompileCacheDir?.();
const place = folder === undefined ? null : realpathSync(folder);
function writable(path) {
  try { accessSync(path, constants.W_OK); return true; } catch { return false; }
}
export default () => Response.json({
  called, version: process.versions.node, place,
  files: place && readdirSync(place).length, writable: place && writable(place),
});
"""
# Its cache must be worth keeping
LARGE = (
    "".join(f"export function f{n}(a) {{ return [a, a + {n}, '{n}'.repeat(3)]; }}\n" for n in range(400))
    + "export const called = ["
    + ", ".join(f"f{n}(1)" for n in range(400))
    + "].length;\n"
)


@pytest.mark.parametrize("node", nodes())
def test_a_function_runs_and_its_compiled_code_is_in_its_layer(up, node):
    files = {"handler.mjs": HANDLER, "large.mjs": LARGE, "pilotlight.toml": MANIFEST.format(name=node.name)}
    app = App.make(up, node.name, files)
    pushed = app.push()
    assert pushed.returncode == 0, pushed.stderr
    answer = json.loads(call(up, node.name).text)
    assert (answer["called"], answer["version"].partition(".")[0]) == (400, node.version)
    if int(node.version) < 22:
        assert "Compile ahead" not in pushed.stderr
        assert answer["place"] is None
    else:
        assert "Compile ahead" in pushed.stderr
        assert answer["place"].startswith("/function/.compile-cache/v")
        assert answer["files"] == 2
        assert not answer["writable"]


@pytest.mark.parametrize("node", nodes())
def test_a_function_that_cannot_be_loaded_in_a_build_still_starts_where_it_can(up, node):
    name = f"{node.name}-asks"
    handler = (
        "if (process.env.LEVEL === undefined) throw new Error('no LEVEL');\n"
        "export default () => new Response(process.env.LEVEL);\n"
    )
    manifest = MANIFEST.format(name=node.name).replace(f"s.{node.name}", f"s.{name}")
    files = {"handler.mjs": handler, "pilotlight.toml": manifest + 'env = { LEVEL = "info" }\n'}
    App.make(up, name, files).deploy()
    assert call(up, name).text == "info"
