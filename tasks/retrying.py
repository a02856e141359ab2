"""Which failed steps are tried again, and when."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from mqi.errors import MQIError
from mqi.retry import RetryPolicy
from tasks.stopping import STOP

__all__ = ["retrying"]

JITTER = 0.5
"""Pauses are lengthened by up to this share, so that many beams do not knock at the same moment."""


def retrying(step: Task[..., Any], policy: RetryPolicy) -> Task[..., Any]:
    """The step with the site's retry policy: for errors that time may heal, not in a run that is ending."""
    return step.with_options(
        retries=policy.max_attempts - 1,
        retry_delay_seconds=policy.delays_s(),
        retry_jitter_factor=JITTER,
        retry_condition_fn=_time_may_heal,
    )


def _time_may_heal(step: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, MQIError) and error.retryable and not STOP.is_set()
