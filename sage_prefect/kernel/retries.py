"""A stage, repeated where that may help: for runners without retries of their own."""

from __future__ import annotations

import time
from collections.abc import Callable

from sage_prefect.common.errors import OperatorError
from sage_prefect.kernel.operator import OperatorContext
from sage_prefect.kernel.plan import Partition, Stage
from sage_prefect.kernel.stage import StageOutput, run_stage

# Delays double from one retry to the next up to this many seconds.
LONGEST_DELAY_S = 60.0


def retry_delays(retries: int, first_s: float) -> list[float]:
    """Seconds before each retry: doubling."""
    return [min(first_s * 2**attempt, LONGEST_DELAY_S) for attempt in range(retries)]


def run_with_retries(
    stage: Stage,
    partition: Partition,
    context: OperatorContext,
    upstream: StageOutput | None = None,
    *,
    retries: int,
    delay_s: float,
    worker: str,
    sleep: Callable[[float], None] = time.sleep,
) -> StageOutput:
    """Run ``stage``; after a retryable error again, up to ``retries`` times, with doubling delay.

    Raises:
        OperatorError: it failed for good: no retry may help, the step says ``on_error="fail"``, or
            all are used up.
    """
    delays = retry_delays(0 if stage.on_error == "fail" else retries, delay_s)
    attempt = 0
    while True:
        try:
            output = run_stage(stage, partition, context, upstream, worker=worker)
        except OperatorError as error:
            if attempt == len(delays) or not error.retryable:
                raise
            sleep(delays[attempt])
            attempt += 1
        else:
            output.reports[-1].retries = attempt
            return output
