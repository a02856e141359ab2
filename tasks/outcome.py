"""What became of each beam, once all its steps have ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from prefect.futures import PrefectFuture

from mqi.case import DoseSource
from mqi.errors import MQIError
from tasks.values import BeamDose, Outcomes, Unit

__all__ = ["settle"]


def settle(units: Sequence[Unit], *steps: Sequence[PrefectFuture[Any]]) -> Outcomes:
    """Wait for all steps of all units. A beam has failed when one of its units has, for the first reason."""
    doses: list[BeamDose] = []
    failed: dict[int, str] = {}
    for unit, *chain in zip(units, *steps, strict=True):
        chain[-1].wait()
        if chain[-1].state.is_completed():
            doses.append(cast(BeamDose, chain[-1].result()))
            continue
        about_plan = "dose from the plan: " if unit.source is DoseSource.PLAN else ""
        failed.setdefault(unit.beam_number, about_plan + _first_failure(chain))
    whole = tuple(dose for dose in doses if dose.unit.beam_number not in failed)
    return Outcomes(doses=whole, failed=failed)


def _without_place(error: object) -> str:
    """What an error says, without its case and beam: the reader stands before them."""
    if isinstance(error, MQIError):
        return str(MQIError(error.what, path=error.path, todo=error.todo))
    return str(error)


def _first_failure(chain: Sequence[PrefectFuture[Any]]) -> str:
    for future in chain:
        if future.state.is_failed():
            return _without_place(future.result(raise_on_failure=False))
        if future.state.is_crashed():
            return f"a step crashed: {future.state.message}"
    return f"a step did not run: {chain[-1].state.message}"
