"""Every example of docs/DATA.md does what the page says."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.baas import Granter

TEXT = (Path(__file__).parents[3] / "docs" / "DATA.md").read_text()
EXAMPLES = re.findall(r"```sh\n(.*?)```\n\n```text\n(.*?)```", TEXT, re.DOTALL)
[PYTHON] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


async def run(port: int, *command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PILOTLIGHT_DATA_URL": f"http://127.0.0.1:{port}"},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return output.decode()


async def test_the_examples_for_the_shell_print_what_is_shown(granter: Granter) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    port = granter.grant("one")
    assert len(EXAMPLES) == 10
    for commands, shown in EXAMPLES:
        printed = await run(port, "bash", "-euc", commands)
        printed = re.sub(r'"key":"[0-9a-z]{26}"', '"key":"KEY"', printed)
        printed = re.sub(r'\\"\d+\\"', r"\"ETAG\"", printed)
        assert printed.strip() == shown.strip(), commands


async def test_the_example_in_python_runs(granter: Granter) -> None:
    port = granter.grant("one")
    assert (
        await run(port, sys.executable, "-c", PYTHON + "print(handle(None))")
        == "{'number': 1, 'seen': True}\n"
    )
