"""The dashboard loads, and asks only for what data-engine exports: names, labels and their values."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from infra_files import INFRA, ROOT, read_document

from data_engine import pipeline

DASHBOARD: dict[str, Any] = json.loads((INFRA / "monitoring" / "grafana" / "data-engine.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
LABELS_OF_RAY = {"SessionName", "NodeAddress"}  # every metric of Ray 2.60 carries them


def exported() -> dict[str, set[str]]:
    """The metrics of ray_metrics.py and their labels, from its source: importing it would need Ray."""
    source = (ROOT / pipeline.__name__.replace(".", "/") / "ray_metrics.py").read_text()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"Counter", "Gauge"}:
            name, *rest = [ast.literal_eval(argument) for argument in node.args]
            found[f"ray_{name}"] = {label for value in rest if isinstance(value, tuple) for label in value}
    return found


def test_the_dashboard_and_the_program_know_the_same_metrics() -> None:
    asked = set(re.findall(r"ray_data_engine_\w+", " ".join(QUERIES)))
    assert asked == set(exported())


def test_the_guide_lists_the_metrics() -> None:
    listed = set(re.findall(r"^\| `(data_engine_\w+)`", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE))
    assert {f"ray_{name}" for name in listed} == set(exported())


@pytest.mark.parametrize("query", QUERIES)
def test_the_labels_exist(query: str) -> None:
    metrics = re.findall(r"ray_data_engine_\w+", query)
    known = set.union(*(exported()[metric] for metric in metrics)) | LABELS_OF_RAY
    used = set(re.findall(r"(\w+)\s*=~?\s*\"", query))
    used |= {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(",")}
    assert used <= known
    assert query.count("(") == query.count(")")
    assert query.count("{") == query.count("}")


def test_no_failure_is_a_share_of_zero() -> None:
    """The counter of failed images is not there before the first: without a default the panel says "No data"."""
    (share,) = [query for query in QUERIES if 'status="failed"' in query]
    assert "or vector(0)" in share.partition(" / ")[0]


def test_the_dashboard_has_what_grafana_needs_to_import_it() -> None:
    assert DASHBOARD["id"] is None  # Grafana gives it one
    assert {"title", "uid", "schemaVersion", "version", "time", "templating", "panels"} <= DASHBOARD.keys()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for panel in DASHBOARD["panels"]:
        assert {"type", "title", "gridPos", "targets", "datasource", "fieldConfig"} <= panel.keys()
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) <= variables | {"__all"}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


def test_prometheus_follows_the_file_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = read_document(INFRA / "monitoring" / "prometheus.yml")["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


def test_the_pod_monitor_finds_the_pods() -> None:
    monitor = read_document(INFRA / "monitoring" / "pod-monitor.yaml")["spec"]
    cluster = read_document(INFRA / "kuberay" / "raycluster.yaml")
    head = cluster["spec"]["headGroupSpec"]["template"]
    assert monitor["namespaceSelector"]["matchNames"] == [cluster["metadata"]["namespace"]]
    assert monitor["selector"]["matchLabels"].items() <= head["metadata"]["labels"].items()
    ports = {port["name"] for port in head["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports
