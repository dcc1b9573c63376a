"""The number of replicas that the scaling policy requests, without Ray."""

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from {{ cookiecutter.__package }}.serving.deployments.scaling import (
    FIRST_TEXT,
    FirstTextPolicy,
)

DEPLOYMENT = DeploymentID("model", "my app")
TARGET_SECONDS = 2.0


def context(requests: float, *told: float) -> AutoscalingContext:
    """Running replicas with their last reported seconds to the first text."""
    replicas = [ReplicaID(f"{number}", DEPLOYMENT) for number in range(len(told))]
    series = {
        # Older reports no longer count.
        replica: [TimeStampedValue(1, 99.0), TimeStampedValue(2, seconds)]
        for replica, seconds in zip(replicas, told, strict=True)
    }
    return AutoscalingContext(
        deployment_id=DEPLOYMENT,
        deployment_name=DEPLOYMENT.name,
        app_name=DEPLOYMENT.app_name,
        current_num_replicas=len(told),
        target_num_replicas=len(told),
        running_replicas=replicas,
        total_num_requests=requests,
        total_queued_requests=0,
        aggregated_metrics={},
        raw_metrics={FIRST_TEXT: series},
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=9,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=3,
        config=AutoscalingConfig(min_replicas=0, max_replicas=9, target_ongoing_requests=16),
    )


def wanted(requests: float, *told: float) -> float:
    number, _ = FirstTextPolicy(TARGET_SECONDS)(context(requests, *told))
    return number


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((3.0,), 1.5),
        ((3.0, 3.0), 3),
        # A replica without requests reports nothing.
        ((3.0, 0.0), 3),
        ((99.0, 99.0), 4),
        ((1.5, 1.5), 2),
        ((0.5, 0.5), 1),
    ],
)
def test_slow_first_texts_add_up_to_double_the_replicas_and_fast_ones_remove_one(
    told: tuple[float, ...], expected: float
) -> None:
    assert wanted(2, *told) == pytest.approx(expected)


def test_ongoing_requests_scale_as_they_do_without_the_policy() -> None:
    assert wanted(48, 0.5) == wanted(48, 0.0) == wanted(48, 1.5) == 3


def test_without_requests_no_replica_is_wanted() -> None:
    assert wanted(0, 0.0) == wanted(0, 0.0, 0.0) == 0


def test_replicas_without_measurements_scale_by_requests_alone() -> None:
    silent = context(16, 5.0)
    silent.__dict__["raw_metrics"] = {}
    assert FirstTextPolicy(TARGET_SECONDS)(silent)[0] == 1
