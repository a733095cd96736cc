"""Every shim keeps the contract of runtimes/contract.md, under every interpreter that this machine has."""

from pathlib import Path

import pytest

from runtimes import conformance
from runtimes.declaration import load_all

RUNTIMES = Path(conformance.__file__).parent


def commands():
    loaded = load_all()
    for interpreter in loaded["python"].find():
        shim = RUNTIMES / "python/shim/pilotlight_shim.py"
        yield interpreter, (interpreter.executable, "-I", "-S", str(shim))
    for interpreter in loaded["node"].find():
        yield interpreter, (interpreter.executable, str(RUNTIMES / "node/shim/shim.mjs"))


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
