"""Scales a model by its time to first text, as well as by its requests.

Ray sends the whole module to Serve's controller, which may lack this package. So it imports nothing
of it.
"""

from statistics import fmean

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

FIRST_TEXT = "first_text_seconds"
"""What a replica tells: how long a first text lately took, on average."""
QUICK = 0.5
"""The part of the objective below which one replica less may do."""
MOST = 2
"""No step makes more of them than so many times as there are: new ones need a while to relieve."""


class FirstTextPolicy:
    """Wants as many replicas as the requests do, and more while first texts are late.

    Serve calls it ten times a second, and follows when it has wanted the same for a while.
    """

    def __init__(self, target_seconds: float) -> None:
        self._target_seconds = target_seconds

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, object]]:
        by_requests, state = replica_queue_length_autoscaling_policy(context)
        return max(by_requests, self._by_first_text(context)), state

    def _by_first_text(self, context: AutoscalingContext) -> float:
        """Counts from those that run, so that one which still loads is waited for."""
        told = (context.raw_metrics or {}).get(FIRST_TEXT, {})
        # One to whom nobody came has nothing to tell.
        seconds = [series[-1].value for series in told.values() if series and series[-1].value]
        if not seconds:
            return 0
        late = fmean(seconds) / self._target_seconds
        running: int = context.current_num_replicas
        return running * min(late, MOST) if late > 1 else running - int(late < QUICK)
