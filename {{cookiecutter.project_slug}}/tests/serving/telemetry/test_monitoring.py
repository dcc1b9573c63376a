"""The dashboard and the alerts query only metrics that Ray exports."""

import json
import re
from pathlib import Path

import httpx2
import pytest
import yaml

from ...support.servers import Served
from .test_telemetry import ask, wait_for_sample

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
IN_A_FAULT = {"ray_serve_health_check_failures_total"}
"""Metrics that Serve exports only after the first event."""


def names_in(expressions: list[str]) -> set[str]:
    # Custom metrics have no sample here.
    return set(re.findall(r"ray_(?:model|page|serve)_\w+", " ".join(expressions)))


def panels() -> list[list[dict[str, str]]]:
    """The queries of each dashboard panel."""
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
    return [panel["targets"] for panel in board["panels"]]


def dashboard() -> set[str]:
    return names_in([target["expr"] for targets in panels() for target in targets])


def alerts() -> set[str]:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
    # On Kubernetes they are in a PrometheusRule.
    groups = rules.get("spec", rules)["groups"]
    return names_in([rule["expr"] for group in groups for rule in group["rules"]])


def test_the_lines_of_a_panel_have_distinct_names() -> None:
    assert panels()
    for targets in panels():
        names = [target["legendFormat"] for target in targets]
        assert len(set(names)) == len(names)


@pytest.mark.served
def test_every_metric_in_dashboard_and_alerts_exists(words: str, served_pages: Served) -> None:
    # Long enough for several pieces, which the speed is computed from.
    ask(words, min_new_tokens=100, max_new_tokens=100)
    assert httpx2.get(f"{words}/no/such/page").is_client_error
    assert dashboard()
    assert alerts()
    for name in (dashboard() | alerts()) - IN_A_FAULT:
        wait_for_sample(served_pages.metrics, name)
