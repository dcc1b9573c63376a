"""Scales a model by its time to first text, as well as by its requests.

Ray sends this whole module to Serve's controller, where this package may not be installed, so it
must not import anything from the package.
"""

from statistics import fmean

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

FIRST_TEXT = "first_text_seconds"
"""The metric that a replica reports: the recent average time to first text."""
SCALE_DOWN_BELOW = 0.5
"""Remove a replica when first texts take less than this share of the target."""
MAX_GROWTH = 2
"""Grow at most by this factor in one step, because new replicas take a while to help."""


class FirstTextPolicy:
    """Asks for as many replicas as the requests need, and for more while first texts are late.

    Serve calls it ten times a second, and acts when the result has been the same for a while.
    """

    def __init__(self, target_seconds: float) -> None:
        self._target_seconds = target_seconds

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, object]]:
        by_requests, state = replica_queue_length_autoscaling_policy(context)
        return max(by_requests, self._by_first_text(context)), state

    def _by_first_text(self, context: AutoscalingContext) -> float:
        """Starts from the running replicas, so that it waits for one that is still loading."""
        told = (context.raw_metrics or {}).get(FIRST_TEXT, {})
        # A replica without requests reports nothing.
        seconds = [series[-1].value for series in told.values() if series and series[-1].value]
        if not seconds:
            return 0
        late = fmean(seconds) / self._target_seconds
        running: int = context.current_num_replicas
        return (
            running * min(late, MAX_GROWTH) if late > 1 else running - int(late < SCALE_DOWN_BELOW)
        )
