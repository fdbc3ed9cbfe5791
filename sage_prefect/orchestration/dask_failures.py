"""What went wrong in Dask itself, as errors of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import CancelledError, KilledWorker

from sage_prefect.common.errors import ClusterError, PipelineError, SageError


@contextmanager
def dask_failures(partition: str) -> Iterator[None]:
    """Around the wait for a partition's task.

    Args:
        partition: its label.

    Raises:
        ClusterError: its worker died each time, or the scheduler was lost.
        PipelineError: it did not get to run on its worker.
    """
    try:
        yield
    except SageError:
        raise
    except KilledWorker as error:
        raise ClusterError(
            f"the Dask worker died each time it ran partition {partition}: {error}",
            hint="Out of memory? See `sage logs dask`, cut more partitions (partitions=), or raise "
            "`memory` in cluster.yaml. Running again resumes with what is unfinished.",
        ) from error
    except (CancelledError, asyncio.CancelledError) as error:
        raise ClusterError(
            f"partition {partition} was cancelled, or the connection to the Dask "
            f"scheduler was lost: {error}",
            hint="See `sage status`. Running again resumes with what is unfinished.",
        ) from error
    except Exception as error:
        raise PipelineError(
            f"partition {partition} could not run on its worker: {type(error).__name__}: {error}",
            hint="Workers need the same packages as the process that runs the flow.",
        ) from error
