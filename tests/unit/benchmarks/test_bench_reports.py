"""Reports: written, read, compared, shown; with and without the plotting library."""

import argparse
import json
import random
import sys

import msgspec
import pytest

from benchmarks import compare, machine, options, outcome, plots, report, rounds
from benchmarks.report import Plot, Report, Series
from benchmarks.rounds import Case, Measured
from pilotlight.problems import Problem

PLOTS = [
    Plot(
        name="b", title="Bars", kind="bars", x="ms", y="", series=[Series("code", ["one", "two"], [1.0, 2.0])]
    ),
    Plot(
        name="l", title="Lines", kind="lines", x="n", y="KB", series=[Series("idle", [1.0, 10.0], [5.0, 4.0])]
    ),
    Plot(name="s", title="Steps", kind="steps", x="ms", y="share", series=[Series("all", [1.0], [1.0])]),
]


def a_report(cold: list[float], bare: list[float], *, better: str = "lower") -> Report:
    chance = random.Random(1)
    figures = [
        report.figure(
            "cold", "ms", cold, chance=chance, better=better, baseline=("bare", bare), parts={"code": 1.5}
        ),
        report.figure("bare", "ms", bare, chance=chance),
    ]
    return Report(
        benchmark="cold-start",
        command="pilotlight bench cold-start",
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        quick=False,
        machine=machine.inspect(),
        load_after=(0.0, 0.0, 0.0),
        figures=figures,
        notes=["docker <is> missing"],
        plots=PLOTS,
    )


STEADY = [10.0, 10.1, 9.9, 10.05, 9.95, 10.02]


def verdicts(former: Report, latter: Report) -> dict[str, str]:
    return {each.name: each.verdict for each in compare.changes(former, latter)}


def test_a_report_survives_the_disk(tmp_path):
    made = a_report([5.0, 5.1, 4.9], STEADY)
    report.write(made, tmp_path / "r.json")
    assert report.read(tmp_path / "r.json") == made


def test_what_is_no_report_is_refused(tmp_path):
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(Problem, match="is not a report"):
        report.read(tmp_path / "r.json")


def test_a_slower_machine_is_no_change():
    slower = verdicts(a_report([5.0, 5.1, 4.9], STEADY), a_report([10.0, 10.2, 9.8], [2 * v for v in STEADY]))
    assert slower == {"cold": "the same within noise", "bare": "the machine: 2.00 times worse"}


def test_a_change_beyond_noise_is_told():
    assert verdicts(a_report([5.0] * 6, STEADY), a_report([10.0] * 6, STEADY))["cold"] == "2.00 times worse"
    assert verdicts(a_report([10.0] * 6, STEADY), a_report([5.0] * 6, STEADY))["cold"] == "2.00 times better"


def test_more_of_what_should_be_high_is_better():
    former, latter = (a_report([value] * 6, STEADY, better="higher") for value in (100.0, 300.0))
    assert verdicts(former, latter)["cold"] == "3.00 times better"


def test_a_change_within_noise_is_none():
    assert (
        verdicts(a_report([5, 9, 12], STEADY), a_report([6, 8, 13], STEADY))["cold"]
        == "the same within noise"
    )


def test_figures_that_only_one_run_has_are_named():
    latter = a_report([1.0], STEADY)
    former = msgspec.structs.replace(latter, figures=latter.figures[1:])
    assert compare.missing(former, latter) == ["cold"]


def test_the_bad_end_of_what_should_be_high_is_the_low_one():
    found = report.figure("f", "1/s", list(range(101)), chance=random.Random(1), better="higher")
    assert (found.p95, found.p99) == (5.0, 1.0)


def test_slices_count_as_one_value_each():
    found = report.of_slices(
        "f", "µs", [[1.0] * 99 + [50.0], [3.0] * 100, [2.0] * 100], chance=random.Random(1)
    )
    assert (found.count, found.median.value, found.median.low, found.median.high) == (3, 2.0, 1.0, 3.0)
    assert found.p99 == 3.0
    more = report.added("f", "µs", [[3.0], [5.0]], [[1.0], [1.0]], chance=random.Random(1))
    assert more.median.value == 3.0


def test_cases_are_measured_in_turn_and_the_first_round_does_not_count(capsys):
    seen = []

    def case(name: str) -> Case:
        return Case(name, lambda: seen.append(name) or Measured(float(len(seen)), {"code": 1.0}))

    found = rounds.interleave("test", [case("a"), case("b")], 2)
    assert seen == ["a", "b"] * 3
    assert rounds.values(found["a"]) == [3.0, 5.0]
    assert rounds.parts(found["b"]) == {"code": 1.0}
    assert "6 of 6" in capsys.readouterr().err


def test_the_markdown_has_a_row_for_each_figure():
    text = outcome.markdown(a_report([5.0], STEADY), a_report([5.0], STEADY))
    assert "| cold | 1 | 5.00 |" in text
    assert "the same within noise" in text


def test_the_page_needs_nothing_else_and_draws_where_it_can():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'pilotlight[plots]'")
    page = outcome.html(a_report([5.0], STEADY))
    assert page.count("<svg") == len(PLOTS)
    assert "docker &lt;is&gt; missing" in page
    assert "src=" not in page
    assert "<link" not in page


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.kind)
def test_plots_are_pictures(plot):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'pilotlight[plots]'")
    assert plots.draw(plot, "png").startswith(b"\x89PNG")


@pytest.fixture
def without_matplotlib(monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)


def test_without_the_library_the_page_has_the_tables_and_says_what_to_install(without_matplotlib):
    page = outcome.html(a_report([5.0], STEADY))
    assert "<table>" in page
    assert "<svg" not in page
    assert "pip install &#x27;pilotlight[plots]&#x27;" in page


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add(parser, rounds=10)
    return parser.parse_args(words)


def test_without_the_library_pictures_are_refused_before_the_run(without_matplotlib, tmp_path):
    with pytest.raises(Problem, match="pip install"):
        options.Run("test", arguments("--plots", str(tmp_path)))


def test_a_run_writes_all_that_it_was_asked_for(without_matplotlib, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pilotlight", "bench", "test"])
    report.write(a_report([5.0] * 6, STEADY), tmp_path / "former.json")
    files = {name: tmp_path / f"r.{name}" for name in ("json", "markdown", "html")}
    flags = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    run = options.Run("test", arguments("--against", str(tmp_path / "former.json"), *flags))
    run.show("Figures", [report.figure("bare", "ms", STEADY, chance=run.chance)])
    run.notes += ["said once", "said once"]
    assert run.finish() == 0
    shown = capsys.readouterr().out
    assert shown.count("said once") == 1
    assert "Only one of the runs has: cold." in shown
    assert json.loads(files["json"].read_text())["command"] == "pilotlight bench test"
    assert all(file.stat().st_size for file in files.values())


def test_quick_runs_have_few_rounds():
    assert options.rounds(arguments()) == 10
    assert options.rounds(arguments("--quick")) == 3
    assert options.rounds(arguments("--quick", "--rounds", "7")) == 7
    with pytest.raises(SystemExit):
        arguments("--rounds", "0")
