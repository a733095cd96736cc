"""docs/METRICS.md tells all that /metrics has, and nothing else."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.apps import App, call

PAGE = (Path(__file__).parents[2] / "docs/METRICS.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ((?:`\w+`(?:, )?)*) ?\| (.*) \|$", re.MULTILINE)
DOCUMENTED = {
    name: (kind, set(re.findall(r"\w+", labels)), said) for name, kind, labels, said in ROW.findall(PAGE)
}
HANDLER = """
import json, os, urllib.request
def handle(request):
    url = os.environ["PILOTLIGHT_DATA_URL"]
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(url + "/things/k", b"{}", headers, method="PUT"))
    return urllib.request.urlopen(url + "/function/counted-too").read()
"""


@pytest.fixture(scope="module")
def families(up):
    """Return all metrics, once everything that is counted has happened."""
    App.make(up, "counted-too", {"handler.py": "def handle(request): return 'called'\n"}).deploy()
    app = App.make(up, "counted", {"handler.py": HANDLER})
    app.deploy()
    assert [call(up, "counted").text for _ in range(2)] == ["called"] * 2
    app.commit({"handler.py": "this is no Python\n"})
    assert app.push().returncode != 0
    assert call(up, "nobody").status == 404
    with up.platform.request("GET", "/metrics") as response:
        return list(text_string_to_metric_families(response.read().decode()))


def values(families, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_every_name_is_there_once_and_documented_with_its_kind_and_labels(families):
    names = [family.name for family in families if not family.name.endswith("_created")]
    assert len(names) == len(set(names))
    assert set(names) == set(DOCUMENTED)
    for family in families:
        if family.name.endswith("_created"):
            continue
        kind, labels, _ = DOCUMENTED[family.name]
        assert family.type == kind, family.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, family.name


def test_every_word_that_a_label_has_is_documented(families):
    open_ended = {"function", "status", "runtime", "method", "le"}
    problems = (Path(__file__).parents[2] / "pilotlight/problems.py").read_text()
    for family in families:
        said = DOCUMENTED.get(family.name.removesuffix("_created"), ("", set(), ""))[2]
        for sample in family.samples:
            for label in sample.labels.keys() - open_ended:
                word = sample.labels[label]
                assert f"`{word}`" in said or (label == "kind" and f'"{word}"' in problems), (
                    family.name,
                    word,
                )


def test_what_has_happened_is_counted(families):
    assert values(families, "pilotlight_up") == 3
    assert values(families, "pilotlight_builds_total", result="succeeded") == 2
    assert values(families, "pilotlight_builds_total", result="rejected") == 1
    assert values(families, "pilotlight_build_duration_seconds_count") == 3
    assert values(families, "pilotlight_calls_total", function="counted", start="cold") == 1
    assert values(families, "pilotlight_calls_total", function="counted", start="warm") == 1
    assert values(families, "pilotlight_pool_takes_total", kind="blank") >= 4
    assert values(families, "pilotlight_layer_cache_lookups_total", result="miss") >= 2
    assert values(families, "pilotlight_layer_cache_bytes", kind="code") > 0
    stages = {
        s.labels["stage"]
        for f in families
        if f.name == "pilotlight_cold_start_stage_seconds"
        for s in f.samples
    }
    assert stages == {"container", "runtime", "code"}
