"""The laboratory: that the quick form of each bench works. What it measures is no matter here."""

import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import report
from runtimes.declaration import load_all
from tests.support.platform import family

# A bench deploys and calls many functions, which takes minutes where the processor is emulated
pytestmark = pytest.mark.timeout(900)


def bench(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", "-m", "cli.main", "bench", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800, env=env)
    assert done.returncode == 0, done.stderr
    return done


def figures(file) -> dict[str, report.Figure]:
    found = report.read(file)
    assert found.quick
    for each in found.figures:
        assert each.median.low <= each.median.value <= each.median.high
    return {each.name: each for each in found.figures}


def test_cold_starts_by_what_was_cached(tmp_path):
    files = [word for kind in ("json", "markdown", "html") for word in (f"--{kind}", str(tmp_path / kind))]
    done = bench("cold-start", "--quick", "--runtime", "python", *files)
    found = figures(tmp_path / "json")
    bare = found["python3 -I -S -c pass"]
    hello = {name: each for name, each in found.items() if name.startswith("hello-python")}
    assert len(hello) == 4
    assert all(each.baseline == bare.name and each.ratio for each in hello.values())
    nothing, everything = hello["hello-python, nothing cached"], hello["hello-python, all three cached"]
    assert nothing.parts["container"] > 0
    assert nothing.parts["runtime"] > 0
    assert everything.parts["container"] == everything.parts["runtime"] == 0
    assert "slow-python, a snapshot after its imports" in found
    assert nothing.name in done.stdout
    assert nothing.name in (tmp_path / "markdown").read_text()
    assert "</html>" in (tmp_path / "html").read_text()
    assert "python: " in done.stderr


@pytest.mark.parametrize("runtime", ["node", "native"])
def test_cold_starts_of_other_runtimes(runtime, tmp_path):
    if not any(i.runtime == runtime for r in load_all().values() for i in r.find()):
        pytest.skip(f"this machine has no {runtime.capitalize()}")
    flags = ("--runtime", runtime, "--runtime", "node99", "--json", str(tmp_path / "json"))
    done = bench("cold-start", "--quick", "--rounds", "1", *flags)
    found = figures(tmp_path / "json")
    assert f"hello-{runtime}, nothing cached" in found
    assert (f"slow-{runtime}, all three cached" in found) == (runtime == "node")
    sandboxed = "bwrap: the program, until it answers"
    if sandboxed in found:
        assert found["hello-native, all three cached"].baseline == sandboxed
    assert "node99 is left out" in done.stdout


def test_warm_calls_beside_the_instance_and_a_bare_relay(tmp_path):
    bench("warm", "--quick", "--rounds", "1", "--json", str(tmp_path / "json"))
    found = figures(tmp_path / "json")
    for connections in ("1 connection", "8 connections", "64 connections"):
        assert found[f"through the platform, {connections}"].ratio
        assert found[f"requests/s per core, platform, {connections}"].better == "higher"


def test_a_burst_beside_a_bare_loop(tmp_path):
    bench("burst", "--quick", "--rounds", "1", "--json", str(tmp_path / "json"))
    found = figures(tmp_path / "json")
    assert found["burst of 5"].ratio
    assert 1 <= found["instances that it took"].median.value <= 20
    assert found["cold starts per second"].median.value > 0


def test_the_memory_of_instances(tmp_path):
    bench("density", "--quick", "--rounds", "1", "--json", str(tmp_path / "json"))
    found = figures(tmp_path / "json")
    # What can be looked into depends on the user, and on what the machine delegates
    assert any(name.endswith("idle, of 5") and each.ratio for name, each in found.items())
    assert found["a bare interpreter, of 5"].median.value > 0


def test_many_functions_beside_few(tmp_path):
    bench("scale", "--quick", "--rounds", "1", "--json", str(tmp_path / "json"))
    found = figures(tmp_path / "json")
    assert found["cold start, 12 functions"].baseline == "cold start, 3 functions"
    assert found["wake-ups, idle, 12 functions"].ratio
    assert found["a push, for each function"].median.value > 0


def test_a_flood_beside_the_peak_and_beside_a_neighbour(tmp_path):
    bench("overload", "--quick", "--rounds", "1", "--json", str(tmp_path / "json"))
    found = figures(tmp_path / "json")
    for function in ("computing", "waiting"):
        assert found[f"{function}: answered, flooded"].baseline == f"{function}: answered, at its peak"
        assert found[f"{function}: in time"].median.value > 0
    assert found["neighbour's call, beside a flooded one"].ratio
    assert found["neighbour's calls, alone"].median.value > 0


def test_a_quiet_function_beside_hostile_ones(tmp_path):
    bench("neighbour", "--quick", "--rounds", "1", "--json", str(tmp_path / "json"))
    found = figures(tmp_path / "json")
    assert len(found) == 7
    assert found["p99 beside a memory bomb"].baseline == "p99 beside nobody"


def test_what_a_mixed_life_leaves_behind(tmp_path):
    bench("soak", "--quick", "--json", str(tmp_path / "json"))
    found = figures(tmp_path / "json")
    for kind in ("processes", "mounts", "control groups"):
        assert found[kind].median.value <= 0
    assert found["memory, gateway"].parts["after"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_bench_that_is_ended_leaves_no_platform(number, tmp_path):
    command = [sys.executable, "-P", "-m", "cli.main", "bench", "burst", "--instances", "2"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    ) as process:
        while "burst of 2" not in process.stderr.readline():
            assert process.poll() is None
        everything = family(process.pid)
        assert any(" up " in each.command for each in everything)
        process.send_signal(number)
        process.wait(60)
        deadline = time.monotonic() + 60
        while alive := [each.command for each in everything if each.lives]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.05)
    if number != signal.SIGKILL:
        assert list(tmp_path.glob("pilotlight-bench-*")) == []


HANDLER = "import slow\n\n\ndef handle(request):\n    return 'hello'\n"


def test_ones_own_function_and_which_of_its_imports_costs_most(up, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "handler.py").write_text(HANDLER)
    (folder / "slow.py").write_text("import time\nimport quick\n\ntime.sleep(0.02)\n")
    (folder / "quick.py").write_text("")
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run(["git", *words], cwd=folder, check=True, env=up.environment())
    assert up.run("remote", "add", cwd=folder).returncode == 0
    pushed = subprocess.run(
        ["git", "push", "pilotlight", "main"],
        cwd=folder,
        check=False,
        capture_output=True,
        env=up.environment(),
    )
    assert pushed.returncode == 0, pushed.stderr
    done = up.run("bench", "function", "mine", "--quick", "--json", str(tmp_path / "json"))
    assert done.returncode == 0, done.stderr
    found = figures(tmp_path / "json")
    assert found["mine, a cold start"].ratio
    assert found["import slow"].median.value > 19
    assert found["import slow"].parts["itself"] > found["import quick"].median.value
    assert "slow takes longest" in done.stdout


def test_a_function_that_is_not_there_is_named(up):
    done = up.run("bench", "function", "none")
    assert done.returncode == 1
    assert "none" in done.stderr


def test_an_unknown_bench_is_refused_with_those_there_are(up):
    done = up.run("bench", "cold")
    assert done.returncode == 2
    assert "cold-start" in done.stderr
    assert "density" in up.run("bench", "--help").stdout
