"""What a zygote makes immortal is not written to any more by who uses it; what is made later lives as ever."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from function_service.engines.embedded import immortal
from runtimes.declaration import Interpreter
from runtimes.python import declaration
from tests.support.platform import ROOT

INTERPRETERS = [pytest.param(each, id=each.name) for each in declaration.find()]
on_each = pytest.mark.parametrize("interpreter", INTERPRETERS)


def knows_immortals(interpreter: Interpreter) -> bool:
    script = "import sys; print((3, 12) <= sys.version_info < (3, 15) and not sys.abiflags)"
    return run(interpreter, script) == ["True"]


def run(interpreter: Interpreter, script: str) -> list[str]:
    """Run a script in an interpreter, which must end well; return the lines that it prints."""
    command = [interpreter.executable, "-I", "-S", "-c"]
    command.append(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


PREPARED = """
import asyncio, gc, json, logging, weakref
from function_service.engines.embedded import immortal

class Thing:
    pass

def handle(request, kind=("a", 3.5)):
    return "some text of ours", request, 1234.5

things = [{str(number): [number + 1000]} for number in range(1000)]
gc.collect()
count = immortal.immortalise()
gc.freeze()
"""


@on_each
def test_what_was_there_is_not_counted_any_more(interpreter: Interpreter) -> None:
    lines = run(
        interpreter,
        f"""{PREPARED}
kinds = [json, json.loads, json.loads.__code__, asyncio.Future, Thing, things, things[9], things[9]["9"]]
kinds += [things[9]["9"][0], handle.__defaults__, *handle.__code__.co_consts[1:], logging.root]
for each in kinds:
    before = sys.getrefcount(each)
    held = [each] * 1000
    print(sys.getrefcount(each) - before)
    del held
    print(sys.getrefcount(each) - before)
print(count > 10_000)
""",
    )
    immortals = knows_immortals(interpreter)
    assert set(lines[:-1]) == ({"0"} if immortals else {"0", "1000"})
    assert lines[-1] == str(immortals)


@on_each
def test_what_is_made_later_is_freed_as_ever(interpreter: Interpreter) -> None:
    lines = run(
        interpreter,
        f"""{PREPARED}
made = Thing()
made.other = Thing()
ends = [weakref.ref(made), weakref.ref(made.other)]
things[5] = made
del made
print([end() is None for end in ends])
things[5] = None
print([end() is None for end in ends])
made = Thing()
made.itself = made
end = weakref.ref(made)
del made
gc.collect()
print(end() is None)
""",
    )
    assert lines == ["[False, False]", "[True, True]", "True"]


@on_each
def test_the_collector_goes_on_also_where_a_function_unfreezes(interpreter: Interpreter) -> None:
    lines = run(
        interpreter,
        f"""{PREPARED}
for _ in range(3):
    gc.unfreeze()
    gc.collect()
    asyncio.run(asyncio.wait_for(asyncio.sleep(0, json.dumps(things[7])), 5))
print(json.dumps(things[7]), handle(1))
""",
    )
    assert lines == ["""{"7": [1007]} ('some text of ours', 1, 1234.5)"""]


@on_each
def test_a_fork_goes_on_sharing_what_it_only_uses(interpreter: Interpreter) -> None:
    script = """
import gc, os, resource
from function_service.engines.embedded import immortal

texts = [f"text number {number}, long enough to take some room" for number in range(20_000)]
made = PREPARE
if os.fork() == 0:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = list(texts)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
    os._exit(0)
os.wait()
"""
    copied, shared = (
        int(run(interpreter, script.replace("PREPARE", prepare))[0])
        for prepare in ("0", "immortal.immortalise()")
    )
    assert (shared < copied / 2) == knows_immortals(interpreter), (shared, copied)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version_info", (3, 15, 0)),
        ("version_info", (4, 0, 0)),
        ("abiflags", "t"),
        ("implementation", SimpleNamespace(name="pypy")),
    ],
)
def test_interpreters_that_are_not_known_are_left_alone(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, value)
    assert immortal.immortalise() == 0
