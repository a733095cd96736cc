"""Emptying the caches of a cold start, and tracing imports: on a real function service, root and not."""

import pytest

from pilotlight.problems import Problem
from tests.support.service import modes, running

HELLO = {"handler.py": "def handle(request):\n    return 'hello'\n"}


@pytest.fixture(params=modes())
async def service(request):
    async with running(request.param) as service:
        yield service


async def stages(service, name: str):
    """Start an instance, end it, and tell what its start took."""
    lease = await service.acquire(name)
    assert lease.cold
    await service.client.invocations.stop(lease.id, "test")
    return lease.stages


async def test_each_stage_can_be_emptied_and_is_made_again_by_the_next_start(service):
    control = service.client.control
    await service.deploy("hello", HELLO)
    await stages(service, "hello")
    await control.empty("code")
    await stages(service, "hello")
    for stage in ("runtime", "container"):
        await control.empty(stage)
        kinds = {layer.kind for layer in await control.layers()}
        assert "runtime" not in kinds
        assert ("container" in kinds) == (stage == "runtime")
        again = await stages(service, "hello")
        assert again.runtime > 5, "an interpreter had to boot"
        assert {"container", "runtime", "code"} <= {layer.kind for layer in await control.layers()}
    assert (await service.ask("hello"))[1] == "hello"


async def test_what_calls_still_use_is_not_emptied(service):
    await service.deploy("hello", HELLO)
    lease = await service.acquire("hello")
    with pytest.raises(Problem) as refused:
        await service.client.control.empty("container")
    assert refused.value.kind == "conflict"
    await service.client.invocations.release(lease.id)
    await service.client.control.empty("container")
    assert await service.client.control.instances(None) == []


async def test_an_unknown_stage_is_refused_with_those_there_are(service):
    with pytest.raises(Problem, match="container, runtime, code, snapshot"):
        await service.client.control.empty("everything")


async def test_imports_are_told_with_what_they_cost(service):
    files = {
        "handler.py": "import json, outer\n\ndef handle(request):\n    return 'hello'\n",
        "outer.py": "import time, inner\nprint('import time: 1 | 1 | lies')\ntime.sleep(0.01)\n",
        "inner.py": "import time\ntime.sleep(0.03)\n",
    }
    await service.deploy("slow", files)
    traced = {each.name: each for each in await service.client.control.imports("slow")}
    outer, inner = traced["outer"], traced["inner"]
    assert inner.own > 29
    assert outer.own > 9
    assert outer.total > outer.own + 29
    assert inner.depth == outer.depth + 1
    assert "json" not in traced, "every Python sandbox has it already"


async def test_imports_see_the_environment_and_the_secrets(service):
    await service.client.vault.put_secret("TOKEN", "s3cret")
    text = "import os\nassert (os.environ['TOKEN'], os.environ['LEVEL']) == ('s3cret', 'info')\ndef handle(r): ...\n"
    await service.deploy("asking", {"handler.py": text}, secrets=("TOKEN",), env={"LEVEL": "info"})
    await service.client.control.imports("asking")


async def test_an_import_that_fails_is_told_with_what_it_printed(service):
    await service.deploy("broken", {"handler.py": "print('so far')\nraise ValueError('no')\n"})
    with pytest.raises(Problem) as refused:
        await service.client.control.imports("broken")
    assert refused.value.kind == "init-failed"
    assert "so far" in refused.value.extra["logs"]
    assert any("ValueError: no" in line for line in refused.value.extra["logs"])


async def test_a_runtime_that_can_not_tell_says_so(service):
    await service.deploy("program", {"handler": "#!/bin/sh\n"}, handler="handler", runtime="native")
    with pytest.raises(Problem, match="Native can't tell"):
        await service.client.control.imports("program")
