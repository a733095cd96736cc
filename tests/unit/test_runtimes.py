"""How runtimes recognise, check and declare the build of a function."""

from pathlib import Path

import pytest

from runtimes.declaration import Interpreter, choose, load_all

RUNTIMES = load_all()
PYTHON = Interpreter("python", "3.11", "/usr/bin/python3.11")
NODE = Interpreter("node", "20", "/usr/bin/node")


def write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_every_runtime_is_found_and_its_template_is_recognised():
    assert set(RUNTIMES) >= {"python", "node", "native"}
    for runtime in RUNTIMES.values():
        handler = runtime.recognise(runtime.template)
        assert handler is not None
        assert runtime.check(runtime.template, handler) is None
        manifest = (runtime.template / "pilotlight.toml").read_text()
        assert "[functions.__NAME__]" in manifest


def test_every_sample_is_recognised_by_one_runtime_alone():
    samples = [path.parent for path in (Path(__file__).parents[2] / "samples").glob("*/pilotlight.toml")]
    assert samples
    for sample in samples:
        assert len([r for r in RUNTIMES.values() if r.recognise(sample)]) == 1, sample


@pytest.mark.parametrize(
    ("files", "handler"),
    [
        ({"handler__py": ""}, "handler:handle"),
        ({"app__py": "app = 1"}, "app:app"),
        ({"app__py": "from other import app"}, "app:app"),
        ({"main__py": "async def handle(request): ..."}, "main:handle"),
        ({"main__py": "app: object = make()"}, "main:app"),
        ({"main__py": "print('a script')"}, None),
        ({"main__py": "this is no Python"}, None),
        ({"handler__txt": ""}, None),
    ],
)
def test_python_is_recognised_by_its_files(tmp_path, files, handler):
    assert RUNTIMES["python"].recognise(write(tmp_path, **files)) == handler


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("handler:handle", None),
        ("handler:app.wsgi", None),
        ("handler", "MODULE:NAME"),
        ("handler.py:handle", "handler/py.py"),
        ("other:handle", "other.py"),
        ("../x:handle", "MODULE:NAME"),
    ],
)
def test_a_python_handler_is_checked(tmp_path, handler, said):
    wrong = RUNTIMES["python"].check(write(tmp_path, handler__py=""), handler)
    assert (wrong is None) if said is None else (said in (wrong or ""))


def test_python_dependencies_come_from_both_files_and_from_what_they_include(tmp_path):
    folder = write(
        tmp_path,
        requirements__txt="-r more.txt\nflask\n",
        more__txt="click==8.1.0\n",
        pyproject__toml='[project]\nname = "x"\nversion = "1"\ndependencies = ["rich>=13"]\n',
    )
    wanted = RUNTIMES["python"].dependencies(folder, PYTHON)
    assert wanted is not None
    assert [name for name, _ in wanted.inputs] == ["requirements.txt", "more.txt", "pyproject.toml"]
    (step,) = wanted.steps
    assert step.network
    assert step.command[-5:] == ("install", "-r", "/source/requirements.txt", "--", "rich>=13")
    assert (step.tools[1].folder / "__main__.py").is_file()


@pytest.mark.parametrize("content", ["", "# nothing yet\n\n"])
def test_a_requirements_file_that_asks_for_nothing_makes_no_layer(tmp_path, content):
    assert RUNTIMES["python"].dependencies(write(tmp_path, requirements__txt=content), PYTHON) is None


def test_requirements_that_lie_in_the_folder_make_the_layer_depend_on_its_files(tmp_path):
    write(tmp_path, requirements__txt="./package\n", other__py="1")
    first = RUNTIMES["python"].dependencies(tmp_path, PYTHON)
    write(tmp_path, other__py="2")
    second = RUNTIMES["python"].dependencies(tmp_path, PYTHON)
    assert first is not None
    assert second is not None
    assert first.inputs != second.inputs


def test_node_dependencies_go_by_the_lock_file_where_there_is_one(tmp_path):
    if not RUNTIMES["node"].find():
        pytest.skip("this machine has no Node")
    write(tmp_path, package__json='{"dependencies": {"marked": "*"}}')
    without = RUNTIMES["node"].dependencies(tmp_path, NODE)
    (tmp_path / "package-lock.json").write_text("{}")
    with_lock = RUNTIMES["node"].dependencies(tmp_path, NODE)
    assert without is not None
    assert with_lock is not None
    assert ("install" in without.steps[0].command, "ci" in with_lock.steps[0].command) == (True, True)
    write(tmp_path, package__json='{"type": "module"}')
    assert RUNTIMES["node"].dependencies(tmp_path, NODE) is None


def test_a_node_without_npm_of_its_own_uses_another_ones(tmp_path, monkeypatch):
    from runtimes.node import declaration

    (tmp_path / "npm").touch()
    beside = Interpreter("node", "20", str(tmp_path / "node"))
    monkeypatch.setattr(declaration, "find", lambda: (beside,))
    write(tmp_path, package__json='{"dependencies": {"marked": "*"}}')
    bare = Interpreter("node", "22", "/nonexistent/bin/node", "/nonexistent")
    wanted = declaration.dependencies(tmp_path, bare)
    assert wanted is not None
    assert wanted.steps[0].command[:3] == (
        "/nonexistent/bin/node",
        "/tools/node-build/install.mjs",
        str(tmp_path / "npm"),
    )


@pytest.mark.parametrize(
    ("handler", "said"),
    [("handler.mjs", None), ("handler.mjs:named", None), ("other.mjs", "other.mjs"), ("handler", "FILE")],
)
def test_a_node_handler_is_checked(tmp_path, handler, said):
    wrong = RUNTIMES["node"].check(write(tmp_path, handler__mjs=""), handler)
    assert (wrong is None) if said is None else (said in (wrong or ""))


def test_a_native_program_must_be_executable(tmp_path):
    native = RUNTIMES["native"]
    write(tmp_path, server="#!/bin/sh\n")
    assert native.recognise(tmp_path) is None
    assert "chmod=+x" in (native.check(tmp_path, "server --fast") or "")
    (tmp_path / "server").chmod(0o755)
    assert native.recognise(tmp_path) == "server"
    assert native.check(tmp_path, "server --fast") is None
    assert native.check(tmp_path, "/bin/sh") is not None
    assert native.check(tmp_path, "../server") is not None


def test_the_newest_interpreter_is_chosen_unless_one_is_pinned():
    older = Interpreter("python", "3.9", "/usr/bin/python3.9")
    assert choose((older, PYTHON), "python") == PYTHON
    assert choose((older, PYTHON), "python3.9") == older
    assert choose((older, PYTHON), "python3.8") is None


def test_what_lies_in_the_systems_folders_is_chosen_before_what_somebody_has_installed():
    elsewhere = Interpreter("python", "3.13", "/home/me/x/bin/python3.13", "/home/me/x")
    older = Interpreter("python", "3.9", "/home/me/y/bin/python3.9", "/home/me/y")
    assert choose((elsewhere, PYTHON), "python") == PYTHON
    assert choose((elsewhere, PYTHON), "python3.13") == elsewhere
    assert choose((older, elsewhere), "python") == elsewhere


def test_the_interpreters_of_this_machine_run():
    found = RUNTIMES["python"].find()
    assert found
    assert all(Path(each.executable).is_file() for each in found)


def test_what_an_image_says_of_its_interpreter_is_read():
    python, node = RUNTIMES["python"].probe, RUNTIMES["node"].probe
    assert python is not None
    assert node is not None
    assert python.read(['["3.12", "/opt/python"]']) == Interpreter("python", "3.12", "/opt/python")
    assert node.read(['["22", "/opt/node"]']) == Interpreter("node", "22", "/opt/node")
    for said in ('["2.7", "/x"]', '["4.12", "/x"]', '["3.8", "/x"]'):
        with pytest.raises(ValueError, match="oldest"):
            python.read([said])
    with pytest.raises(ValueError, match="oldest"):
        node.read(['["16", "/x"]'])


@pytest.mark.parametrize(
    "said",
    [
        *("", "nonsense", "null", "7", "{}", '"ab"', "[" * 100_000, "[1, 2]", '["3.12"]', '["3.12", ""]'),
        *('["3.12", "python"]', '["3. 12", "/x"]', '["3.1_2", "/x"]', '["3.١٢", "/x"]', '["3.12\\n", "/x"]'),
    ],
)
@pytest.mark.parametrize("runtime", ["python", "node"])
def test_whatever_else_an_image_says_is_refused(runtime, said):
    probe = RUNTIMES[runtime].probe
    assert probe is not None
    with pytest.raises(ValueError, match="its"):
        probe.read([said])
