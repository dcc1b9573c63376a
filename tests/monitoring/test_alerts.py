"""Each alert fires only when it should, with series from real runs: see record.py."""

import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..conftest import Render
from .record import JOB, RECORDINGS, SCENARIOS, Recording

LABELS = ("alertname", "severity", "model", "endpoint", "deployment", "route")
FIRING = 'ALERTS{alertstate="firing"}'

Alert = frozenset[tuple[str, str]]


def alert(name: str, severity: str, **labels: str) -> Alert:
    return frozenset({"alertname": name, "severity": severity, **labels}.items())


def both(name: str, **labels: str) -> set[Alert]:
    """The alert that pages somebody, and the one that can wait until the morning."""
    return {alert(name, severity, **labels) for severity in ("critical", "warning")}


def for_each_deployment(name: str, severity: str, *deployments: str) -> set[Alert]:
    return {alert(name, severity, deployment=each) for each in deployments}


MODEL = {"model": "stand-in"}
NOTHING_IS_TOLD = {alert("NoReplicaIsHealthy", "critical"), alert("TargetIsDown", "warning")}


@dataclass(frozen=True)
class Fires:
    fault: set[Alert]
    """During the fault."""
    end: set[Alert]
    """When the recording ends."""


EXPECTED = {
    ("compare", "slow"): Fires(
        both("AnswersBeginLate", **MODEL), {alert("AnswersBeginLate", "warning", **MODEL)}
    ),
    ("compare", "failing"): Fires(
        both("AnswersEndBadly", **MODEL), {alert("AnswersEndBadly", "warning", **MODEL)}
    ),
    ("compare", "one_fails_at_night"): Fires(set(), set()),
    ("compare", "dying"): Fires(
        for_each_deployment("ReplicasDie", "warning", "stand-in"),
        for_each_deployment("ReplicasDie", "warning", "stand-in"),
    ),
    ("compare", "gone"): Fires(
        for_each_deployment("NoReplicaIsHealthy", "critical", "stand-in")
        | for_each_deployment("DeploymentLacksReplicas", "warning", "stand-in"),
        set(),
    ),
    ("compare", "away"): Fires(
        # Serve reports each deployment that it removes.
        NOTHING_IS_TOLD
        | for_each_deployment("NoReplicaIsHealthy", "critical", "GradioServer", "stand-in"),
        NOTHING_IS_TOLD,
    ),
    # Nobody is woken up for a model that nobody uses.
    ("compare", "to_zero"): Fires(set(), set()),
    ("own", "waiting"): Fires(
        both("AnswersBeginLate", endpoint="obey"),
        {alert("AnswersBeginLate", "warning", endpoint="obey")},
    ),
    ("own", "full"): Fires(
        both("AnswersEndBadly", endpoint="obey")
        | both("AnswersBeginLate", endpoint="obey")
        | {alert("PageRefusesRequests", "warning", route="/gradio_api/queue/join")},
        # Calls that were waiting kept waiting or were refused after calls became short again.
        both("AnswersEndBadly", endpoint="obey") | both("AnswersBeginLate", endpoint="obey"),
    ),
    ("own", "failing"): Fires(
        both("AnswersEndBadly", endpoint="obey"),
        {alert("AnswersEndBadly", "warning", endpoint="obey")},
    ),
    ("own", "gone"): Fires(
        for_each_deployment("NoReplicaIsHealthy", "critical", "GradioServer")
        | for_each_deployment("DeploymentLacksReplicas", "warning", "GradioServer"),
        set(),
    ),
}


@pytest.fixture(params=EXPECTED, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    named: tuple[str, str] = request.param
    return named


def test_alerts_fire_only_during_their_fault(
    case: tuple[str, str], rendered: Render, tmp_path: Path
) -> None:
    page, name = case
    run = recordings(page)[name]
    fault, end = run.fault * run.seconds // 60, length(run)

    replay(
        rules(rendered, page),
        run,
        [
            check(fired(fault), fault - 1, set()),
            check(fired(end - fault), end, EXPECTED[case].fault),
            check(FIRING, end, EXPECTED[case].end),
        ],
        tmp_path,
    )


def test_one_more_failed_answer_at_night_fires_no_alert(rendered: Render, tmp_path: Path) -> None:
    # A counter that starts at 1 has no rate. Here it was 0, which Ray does not export.
    run = recordings("compare")["one_fails_at_night"]
    [failed] = [name for name in run.series if 'outcome="failed"' in name]
    nothing, _, values = run.series[failed].partition(" ")
    assert nothing.startswith("_x")
    from_zero = {failed: f"0+0x{samples(nothing) - 1} {values}"}
    end = length(run)

    replay(
        rules(rendered, "compare"),
        replace(run, series=run.series | from_zero),
        [check(fired(end), end, set())],
        tmp_path,
    )


@pytest.mark.parametrize(("part", "fires"), [(1.0, False), (0.95, False), (0.5, True)])
def test_refusals_by_rate_limits_do_not_count_as_a_full_page(
    part: float, fires: bool, rendered: Render, tmp_path: Path
) -> None:
    # As if this share of the 429 responses came from `rate_limits`.
    run = recordings("own")["full"]
    [refused] = [name for name in run.series if 'error_code="429"' in name]
    limits = 'ray_rate_limit_refusals_total{caller="address",job="gradio-on-ray"}'
    of_limits = " ".join(scaled(word, part) for word in run.series[refused].split())
    end = length(run)
    full = alert("PageRefusesRequests", "warning", route="/gradio_api/queue/join")

    replay(
        rules(rendered, "own"),
        replace(run, series=run.series | {limits: of_limits}),
        [check(fired(end, "PageRefusesRequests"), end, {full} if fires else set())],
        tmp_path,
    )


def scaled(word: str, part: float) -> str:
    """Scales values in promtool's notation, if there are any."""
    value, plus, times = word.partition("+")
    return f"{float(value) * part:.12g}{plus}{times}" if value[0].isdigit() else word


def test_a_node_that_is_nearly_out_of_memory_fires_an_alert(
    rendered: Render, tmp_path: Path
) -> None:
    # As if the node were nearly full, since no run uses all of the test machine's memory.
    run = recordings("own")["waiting"]
    series = run.series
    [total] = [each for each in series if each.startswith("ray_node_mem_total")]
    [used] = [each for each in series if each.startswith("ray_node_mem_used")]
    most = max(float(each.partition("+")[0]) for each in series[used].split() if each[0].isdigit())
    small = {total: f"{most / 0.95:.0f}+0x20", used: f"{most:.0f}+0x20"}
    others = {name: values for name, values in series.items() if name not in small}

    replay(
        rules(rendered, "own"),
        replace(run, series=others | small),
        [
            check(FIRING, 4, set()),
            check(FIRING, 10, {alert("MemoryIsLow", "warning")}),
        ],
        tmp_path,
    )


@pytest.mark.parametrize(
    ("wanted", "fires"), [("0+0x200", False), ("2+0x200", True)], ids=["none is wanted", "two are"]
)
def test_a_model_without_replicas_fires_an_alert_unless_it_scaled_to_zero(
    wanted: str, fires: bool, rendered: Render, tmp_path: Path
) -> None:
    # As if there were no calls while its replicas were gone: Serve reports the target number.
    run = recordings("compare")["gone"]
    labels = f'deployment="stand-in",job="{JOB}"'
    target = f"ray_serve_autoscaling_target_replicas{{{labels}}}"
    end = length(run)
    expected = for_each_deployment("NoReplicaIsHealthy", "critical", "stand-in") if fires else set()

    replay(
        rules(rendered, "compare"),
        replace(run, series=run.series | {target: wanted}),
        [
            check(
                f'max_over_time(ALERTS{{alertname="NoReplicaIsHealthy"}}[{end - 1}m])',
                end,
                expected,
            )
        ],
        tmp_path,
    )


def test_every_alert_fires_in_a_recording(rendered: Render) -> None:
    for page in SCENARIOS:
        named = {rule["alert"] for rule in all_rules(rules(rendered, page)) if "alert" in rule}
        fires = {
            dict(each)["alertname"] for expected in EXPECTED.values() for each in expected.fault
        }

        assert named == fires | {"MemoryIsLow"}


def test_every_recording_is_replayed() -> None:
    recorded = {(page, name) for page in SCENARIOS for name in recordings(page)}

    assert recorded == set(EXPECTED)
    assert recorded == {(page, act.__name__) for page, acts in SCENARIOS.items() for act in acts}


def recordings(page: str) -> dict[str, Recording]:
    said = json.loads((RECORDINGS / f"{page}.json").read_text("utf-8"))
    return {name: Recording(**each) for name, each in said.items()}


def length(run: Recording) -> int:
    """Returns its length in minutes."""
    values = next(values for name, values in run.series.items() if name.startswith("up{"))
    return (sum(map(samples, values.split())) - 1) * run.seconds // 60


def samples(word: str) -> int:
    first, _, times = word.partition("x")
    return 1 if not times else int(times) + (first != "_")


def rules(rendered: Render, page: str) -> dict[str, Any]:
    """The spec of a PrometheusRule is a rules file for Prometheus."""
    project = rendered(page=page, deploy="kubernetes")
    manifest = yaml.safe_load((project / "deploy/monitoring/alerts.yaml").read_text("utf-8"))
    spec: dict[str, Any] = manifest["spec"]
    return spec


def all_rules(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in spec["groups"] for rule in group["rules"]]


def fired(minutes: int, name: str = "") -> str:
    """Returns a query for the alerts that fired in the last minutes: all, or only this one."""
    firing = f'{FIRING[:-1]},alertname="{name}"}}' if name else FIRING
    return f"max_over_time({firing}[{minutes - 1}m])"


def check(expression: str, minute: int, expected: set[Alert]) -> dict[str, Any]:
    labels = [{**dict(each)} for each in expected]
    return {
        "expr": f"group by ({', '.join(LABELS)}) ({expression})",
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": matchers(each), "value": 1} for each in labels],
    }


def matchers(labels: dict[str, str]) -> str:
    return f"{{{', '.join(f'{name}={json.dumps(value)}' for name, value in labels.items())}}}"


def replay(
    spec: dict[str, Any], run: Recording, checks: list[dict[str, Any]], folder: Path
) -> None:
    (folder / "rules.yaml").write_text(yaml.safe_dump(spec), "utf-8")
    test = {
        "interval": f"{run.seconds}s",
        "input_series": [{"series": name, "values": values} for name, values in run.series.items()],
        "promql_expr_test": checks,
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}), "utf-8")
    ran = subprocess.run(
        ["promtool", "test", "rules", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
