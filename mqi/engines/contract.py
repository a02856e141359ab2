"""What every dose engine is given and what it must leave: MOQUI's own contract.

An engine is a command, run in a job folder as ``COMMAND... moqui_tps.in``. It reads that file and the
CSV rows of each layer, prints progress, exits, and leaves one dose file. Whether it ran well is decided
by its exit status and that file alone, never by a line that it printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from mqi.case import Frozen

__all__ = ["EngineInput", "EngineLayer", "EngineSpots", "ExpectedOutput", "GridGeometry", "Medium"]


@dataclass(frozen=True)
class EngineLayer:
    """The rows that an engine reads for one energy layer.

    Attributes
    ----------
    time_ms, x_mm, y_mm
        (n,) time since the start of the layer; position at the isocentre plane.
    counts
        (n,) int64 corrected dose monitor counts: what the row delivered (see mqi.log.calibration).
    """

    number: int
    energy_mev: float
    time_ms: NDArray[np.float64]
    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    counts: NDArray[np.int64]


EngineSpots = Sequence[EngineLayer]


class Medium(StrEnum):
    """What the dose is computed in."""

    CT = "ct"
    WATER = "water"


class GridGeometry(Frozen):
    """Where an engine's result grid stands in DICOM patient coordinates (see DoseGrid), without values.

    ``shape`` is (nk, nj, ni); ``axes`` are the three directions of i, j, k.
    """

    shape: tuple[int, int, int]
    origin_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]
    axes: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


class ExpectedOutput(Frozen):
    """The one file that the engine must leave. ``path`` is relative to the job folder, POSIX."""

    path: str
    format: str  # raw, mhd, mha, npz, dcm
    size: int | None  # bytes, where the format fixes it
    geometry: GridGeometry


class EngineInput(Frozen):
    """An input folder that was written: everything a job needs to be run and judged.

    ``digest`` is the SHA-256 over all that the dose depends on (spots, parameters, plan, medium, engine
    and its version), wherever the folder lies: the identity of the job. ``total_counts`` and ``rows``
    are what the engine must report to have read.
    """

    folder: str
    digest: str
    argv: tuple[str, ...]
    rows: int
    total_counts: int
    total_mu: float
    medium: Medium
    output: ExpectedOutput
