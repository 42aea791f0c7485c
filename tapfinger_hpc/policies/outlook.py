"""When running jobs are expected to end. Pure.

Of a job that has outlived its expectation, the rest that is expected is that of a log-normal time, given that it has
lasted so long: the longer it runs beyond what its class takes, the longer it is thought to go on.
"""

import math

from tapfinger_hpc.policies.choices import USUAL_LIMIT
from tapfinger_hpc.state import ClusterState, RunningJob

UNKNOWN_S = 3600.0
UNKNOWN_LOG_STD = 1.0
"""A job of which nothing is known: some such time, and rather uncertain (as ``speed.prior`` says)."""


def remaining_s(state: ClusterState, running: RunningJob) -> float:
    """How much longer a running job is expected to run."""
    elapsed_s = max(0.0, state.time_s - running.start_time_s)
    left_s = math.inf if running.end_limit_s is None else max(0.0, running.end_limit_s - state.time_s)
    known = state.job_class(running.job_class) if running.job_class else None
    expected_s = known.speed.duration_s(running.amounts) if known is not None else math.inf
    if known is not None and math.isfinite(expected_s):
        log_std = known.speed.log_std_at(running.amounts)
    else:
        expected_s = UNKNOWN_S if math.isinf(left_s) else (left_s + elapsed_s) / USUAL_LIMIT
        log_std = UNKNOWN_LOG_STD
    return min(left_s, _residual_s(expected_s, log_std, elapsed_s))


def _residual_s(mean_s: float, log_std: float, elapsed_s: float) -> float:
    """Mean rest of a log-normal time with this mean, given that it is longer than ``elapsed_s``."""
    if elapsed_s <= 0:
        return mean_s
    if log_std < 0.01:
        return max(mean_s - elapsed_s, 0.01 * elapsed_s)
    position = (math.log(elapsed_s / mean_s) + log_std**2 / 2) / log_std
    if position > 5:
        return elapsed_s * log_std / position  # both tails vanish; this is their ratio's limit
    longer = math.erfc(position / math.sqrt(2))
    weighted = math.erfc((position - log_std) / math.sqrt(2))
    return max(mean_s * weighted / longer - elapsed_s, 0.0)
