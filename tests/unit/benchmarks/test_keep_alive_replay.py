"""The replay of traces through keep-alive policies, the formats that are read, and what Ember is better at."""

import json
from array import array

import pytest

from benchmarks import keep_alive, traces
from benchmarks.replay import replay
from benchmarks.traces import Trace
from cli.main import main
from function_service.policies import Decision, Ember, Fixed, GreedyDual, HybridHistogram, Layer, Step


def trace(calls, memory=(100.0,), length=1000.0):
    """Make a trace of (time, function, duration)."""
    times, functions, durations = zip(*calls, strict=True)
    names = [f"f{number}" for number in range(len(memory))]
    return Trace(array("d", times), array("l", functions), array("d", durations), names, list(memory), length)


def test_a_tiny_trace_by_hand():
    """Kept for 60 s: idle 8 s (warm), 88 s (cold, 60 of them held), then 60 s held to the end."""
    outcome = replay(trace([(0, 0, 2), (10, 0, 2), (100, 0, 10)]), Fixed(60))
    assert (outcome.calls, outcome.cold, outcome.percentages) == (3, 2, (100 * 2 / 3,))
    assert outcome.wasted == pytest.approx((8 + 60 + 60) * 100)
    assert outcome.held == pytest.approx((8 + 60 + 60) / 1000)


def test_the_end_of_the_trace_ends_what_is_held():
    assert replay(trace([(0, 0, 2)], length=10), Fixed(60)).wasted == pytest.approx(8 * 100)


def test_calls_that_overlap_are_warm_and_waste_nothing():
    outcome = replay(trace([(0, 0, 50), (10, 0, 5), (20, 0, 40)], length=60), Fixed(60))
    assert (outcome.cold, outcome.wasted) == (1, 0)


class Steps(Fixed):
    """Decides always the same, whatever it is."""

    def decide(self, now):
        return Decision(
            (Step(0, Layer.CODE), Step(10, Layer.RUNTIME), Step(50, Layer.CODE), Step(60, Layer.NOTHING))
        )


@pytest.mark.parametrize(("idle", "cold", "prepared"), [(9, 1, 0), (20, 2, 1), (55, 1, 0), (70, 2, 0)])
def test_only_held_code_makes_a_call_warm(idle, cold, prepared):
    outcome = replay(trace([(0, 0, 0), (idle, 0, 0)], length=idle), Steps())
    assert (outcome.cold, outcome.prepared) == (cold, prepared)
    code = min(idle, 10) + min(10, max(0, idle - 50))
    assert outcome.wasted == pytest.approx(code * 100), "blank sandboxes count for no policy"


def test_evicted_functions_are_cold_and_cost_nothing_from_then_on():
    calls = [(0, 0, 0), (10, 1, 0), (20, 0, 0)]
    outcome = replay(trace(calls, memory=(100, 100), length=30), GreedyDual(150))
    assert outcome.cold == 3
    assert outcome.wasted == pytest.approx(100 * (10 + 10 + 10))


def test_the_plain_format(tmp_path):
    file = tmp_path / "calls.csv"
    file.write_text("time,function,duration,memory\n105,b,0.5,64\n100,a,,\n")
    read = traces.read_plain(file)
    assert (list(read.times), read.names, list(read.functions)) == ([0, 5], ["b", "a"], [1, 0])
    assert (read.memory, list(read.durations), read.length) == ([64, 170], [0, 0.5], 5)


def test_a_generated_trace_survives_being_written(tmp_path):
    made = traces.generate(5, 0.2, 7)
    traces.write_plain(made, tmp_path / "calls.csv")
    read = traces.read_plain(tmp_path / "calls.csv")
    assert len(read) == len(made)
    assert list(read.durations) == pytest.approx(list(made.durations), abs=1e-3)


@pytest.mark.parametrize("text", ["when,what\n1,a\n", "time,function\nsoon,a\n"])
def test_a_file_that_is_no_trace_is_refused_with_its_name(tmp_path, text):
    file = tmp_path / "calls.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"calls\.csv"):
        traces.read_plain(file)


@pytest.mark.parametrize("column", ["{}", "minute_{}", "{}_minute"])
def test_the_format_of_azure(tmp_path, column):
    minutes = ",".join(column.format(minute) for minute in range(1, 1441))
    for day in (1, 2):
        counts = ["0"] * 1440
        counts[5], counts[1439] = "2", "1"
        text = f"HashOwner,HashApp,HashFunction,Trigger,{minutes}\no,app,fun,http,{','.join(counts)}\n"
        (tmp_path / f"d0{day}.csv").write_text(text)
    (tmp_path / "durations.csv").write_text("HashOwner,HashApp,HashFunction,Average\no,app,fun,1500\n")
    (tmp_path / "memory.csv").write_text("HashOwner,HashApp,AverageAllocatedMb\no,app,99\n")
    days = [tmp_path / "d01.csv", tmp_path / "d02.csv"]
    read = traces.read_azure(days, tmp_path / "durations.csv", tmp_path / "memory.csv")
    assert [int(time // 60) for time in read.times] == [5, 5, 1439, 1445, 1445, 2879]
    assert (set(read.durations), read.memory, read.length) == ({1.5}, [99], 2 * 86400)


def test_the_generator_makes_the_same_trace_of_the_same_seed():
    one, same, other = (traces.generate(20, 0.2, seed) for seed in (3, 3, 4))
    assert one == same
    assert one.times != other.times
    assert list(one.times) == sorted(one.times)
    assert all(0 <= time <= one.length + 1 for time in one.times)


def test_popularity_is_heavy_tailed():
    made = traces.generate(200, 1.0, 1)
    calls = sorted((list(made.functions).count(number) for number in range(200)), reverse=True)
    assert sum(calls[:40]) > 0.8 * len(made)


@pytest.mark.parametrize("seed", [11, 12])
def test_ember_beats_fixed_on_cold_starts_and_on_memory_at_once(seed):
    made = traces.generate(100, 1.0, seed)
    fixed, ember = replay(made, Fixed()), replay(made, Ember())
    assert ember.wasted < fixed.wasted
    assert ember.total < fixed.total
    assert ember.mean < fixed.mean
    assert ember.percentile(0.75) <= fixed.percentile(0.75)


@pytest.mark.parametrize("seed", [11, 12])
def test_ember_beats_the_histogram_on_cold_starts_and_on_memory_at_once(seed):
    made = traces.generate(100, 1.0, seed)
    histogram, ember = replay(made, HybridHistogram()), replay(made, Ember(thrift=1.25))
    assert ember.wasted < histogram.wasted
    assert ember.total < histogram.total


def test_the_bench_runs_and_writes_its_figures(tmp_path, capsys):
    assert main(["bench", "keep-alive", "--quick", "--json", str(tmp_path / "figures.json")]) == 0
    assert keep_alive.BASELINE in capsys.readouterr().out
    report = json.loads((tmp_path / "figures.json").read_bytes())
    names = [figure["name"] for figure in report["figures"]]
    assert "ember: cold, all calls" in names
    assert "ember: memory wasted" in names


def test_a_trace_that_is_not_there_is_told(tmp_path, capsys):
    assert main(["bench", "keep-alive", "--trace", str(tmp_path / "nothing.csv")]) != 0
    assert "nothing.csv" in capsys.readouterr().err
