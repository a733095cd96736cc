"""Builds install from the indexes that whoever starts the platform has configured for pip and npm at home."""

from pathlib import Path

import pytest

from runtimes.declaration import load_all
from tests.support.apps import App, call
from tests.support.platform import Up, family, left_behind
from tests.support.registry import PASSWORD, TOKEN, USER, Registry

PYTHON = {
    "handler.py": "import sys, private_thing\ndef handle(request):\n"
    "    return '%d.%d %s' % (*sys.version_info[:2], private_thing.NAME)\n",
    "requirements.txt": "private-thing\n",
}
NODE = {
    "handler.mjs": "import thing from 'private-thing';\nexport default () => new Response(thing);\n",
    "package.json": '{"private": true, "dependencies": {"private-thing": "1.0.0"}}\n',
}


@pytest.fixture(scope="module")
def registry():
    with Registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def up(tmp_path_factory, registry):
    folder = tmp_path_factory.mktemp("private")
    home = folder / "home"
    (home / ".config/pip").mkdir(parents=True)
    (home / ".config/pip/pip.conf").write_text(
        f"[global]\nindex-url = http://{USER}:{PASSWORD}@{registry.place}/simple\n"
    )
    (home / ".npmrc").write_text(
        f"registry={registry.url}/npm/\n//{registry.place}/npm/:_authToken={TOKEN}\nstrict-ssl=false\n"
    )
    for name in (".pyenv", ".nvm", ".local"):
        if (Path.home() / name).exists():
            (home / name).symlink_to(Path.home() / name)
    for path in (home, home / ".config", home / ".npmrc"):
        path.chmod(0o700)  # nobody else may read them
    with pytest.MonkeyPatch.context() as patch, Up(folder / "platform") as up:
        patch.setenv("HOME", str(home))
        up.stop()
        up.start()
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []
        log = up.log.read_text()
        assert PASSWORD not in log
        assert TOKEN not in log


@pytest.mark.parametrize("python", [i.name for i in load_all()["python"].find()])
def test_python_packages_come_from_the_private_index_under_every_interpreter(up, python):
    name = python.replace(".", "-")
    App.make(
        up, name, {**PYTHON, "pilotlight.toml": f'[functions.{name}]\npath = "."\nruntime = "{python}"\n'}
    ).deploy()
    assert call(up, name).text == f"{python.removeprefix('python')} from the private index"


@pytest.mark.skipif(not load_all()["node"].find(), reason="this machine has no Node")
def test_node_packages_come_from_the_private_registry(up, registry):
    before = registry.refused
    patient = '[functions.node-thing]\npath = "."\ntimeout = "60s"\n'  # for machines on which Node takes long
    app = App.make(up, "node-thing", {**NODE, "pilotlight.toml": patient})
    done = app.push()
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stderr
    assert call(up, "node-thing").text == "from the private registry"
    assert registry.refused == before
