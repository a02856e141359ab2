"""One layer's ``.ptn`` -> rows that delivered dose, and an account of the counts of all other rows.

What a row is, by its flag word (bank 8: bit 15 the plan wants beam, bit 14 there is beam, bits 6-0 the
painting from 1; measured):

==============  =====================================================  ==========================
class           flag word                                              its counts
==============  =====================================================  ==========================
on              both bits and painting >= 1                            delivered
transition      one bit only (or both without a painting)              accounted, not delivered
idle            no bit, before the first on-row                        accounted, not delivered
tail            no bit, after it                                       accounted, not delivered
==============  =====================================================  ==========================

Only on-rows are delivered, because MU per count is defined over on-rows (measured: constant to 0.3 %
over 108 layers); the monitor's decay after beam off is then already in the constant.

For the first one to three on-rows, and at times for the last, the position registers still stand parked
at the end of their scale. The dose of such a row is real: it is given to the nearest row in time that
has a position (``parked``). Without this some dose would land 295 mm off the axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mqi.case import LayerLog
from mqi.errors import ValidationError
from mqi.log.calibration import CalibrationSet
from mqi.log.records import read_ptn

__all__ = ["LoggedLayer", "OnRun", "is_parked", "read_layer"]

_X, _Y, _DOSE1, _DOSE2, _LAYER, _FLAGS = 0, 1, 4, 5, 6, 7
_BOTH = 0xC000
_PAINTING = 0x7F
_LAYER_BITS = 0xFF
_X_THRESHOLD_MOST = 60000  # the vendor's tools use min(XTHRESHOLD, 60000); parked x is 65197 to 65251
_RAIL_COUNTS = 256  # parked y is 33 to 190 or 65444 to 65510 (measured): at an end of the scale
_MOST_RUNS = 1000  # beam on and off within one layer; a real layer has one, an interlock two


@dataclass(frozen=True)
class OnRun:
    """Rows ``begin`` to ``end`` (exclusive) of the file with beam on; ``first`` is the first one's index
    among the on-rows; ``counts`` what they delivered."""

    begin: int
    end: int
    first: int
    painting: int
    counts: int


@dataclass(frozen=True)
class LoggedLayer:
    """One layer as one delivery logged it. All counts are corrected counts.

    Attributes
    ----------
    raw
        (rows, 8) registers of the whole file.
    row
        (n,) row number in the file of each on-row.
    x_mm, y_mm
        (n,) position of each on-row, parked ones replaced.
    cumulative
        (n + 1,) int64: counts delivered before each on-row, and in all.
    runs
        The stretches with beam on, those without any count (idle shots) too.
    ends_off
        Whether the last row is without beam: a log that stops while the beam is on is cut off.
    """

    raw: NDArray[np.uint16]
    row: NDArray[np.int64]
    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    cumulative: NDArray[np.int64]
    runs: tuple[OnRun, ...]
    parked: int
    transition: float
    idle: float
    tail: float
    monitor2: float
    ends_off: bool

    @property
    def on_rows(self) -> int:
        """Number of rows in runs that delivered something."""
        return sum(run.end - run.begin for run in self.runs if run.counts)


def is_parked(
    x_raw: NDArray[np.uint16], y_raw: NDArray[np.uint16], calibration: CalibrationSet
) -> NDArray[np.bool_]:
    """Whether position registers stand parked, that is, say nothing about the beam."""
    at_end = (y_raw < _RAIL_COUNTS) | (y_raw > 65535 - _RAIL_COUNTS)
    return np.asarray((x_raw > min(calibration.x_threshold, _X_THRESHOLD_MOST)) | at_end)


def read_layer(path: Path, layer: LayerLog, calibration: CalibrationSet, beam: int) -> LoggedLayer:
    """Read one layer's log.

    Raises
    ------
    ValidationError
        The file is damaged, belongs to another layer, logs dose without a position, or its dose range
        code is unknown.
    """
    raw = read_ptn(path)
    logged = raw[:, _LAYER] & _LAYER_BITS
    if (logged != layer.number & _LAYER_BITS).any():
        found = int(logged[np.argmax(logged != layer.number & _LAYER_BITS)])
        raise ValidationError(
            f"the log is of layer {found}, PlanRange names it for layer {layer.number}",
            beam=beam,
            path=path,
            todo="Check SCAN_OUT_FL_NM in PlanRange, or transfer the delivery again",
        )
    try:
        factor = calibration.count_factor(layer.dose1_range)
        factor2 = calibration.count_factor(layer.dose2_range)
    except ValidationError as error:
        raise ValidationError(error.what, beam=beam, path=path, todo=error.todo) from error
    flags = raw[:, _FLAGS]
    starts = np.concatenate([[0], np.flatnonzero(flags[1:] != flags[:-1]) + 1])
    ends = np.append(starts[1:], len(raw))
    kinds = flags[starts]
    on = ((kinds & _BOTH) == _BOTH) & ((kinds & _PAINTING) > 0)
    if on.sum() > _MOST_RUNS:
        raise ValidationError(
            f"the beam goes on and off {int(on.sum())} times in one layer: the flags are damaged",
            beam=beam,
            path=path,
            todo="Transfer the delivery again",
        )
    off = (kinds & _BOTH) == 0
    sums = np.add.reduceat(raw[:, _DOSE1], starts, dtype=np.int64)
    before = np.arange(len(starts)) < (np.argmax(on) if on.any() else len(starts))
    rows = _on_rows(starts[on], ends[on])
    cumulative = _cumulative(raw[rows, _DOSE1], factor)
    row = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    positions = _positions(raw, rows, row, cumulative, calibration)
    if positions is None:
        raise ValidationError(
            "the log has dose but never a beam position",
            beam=beam,
            path=path,
            todo="Check the position monitor with the machine's vendor",
        )
    x_mm, y_mm, parked = positions
    first = np.concatenate([[0], np.cumsum((ends - starts)[on])])
    return LoggedLayer(
        raw=raw,
        row=row,
        x_mm=x_mm,
        y_mm=y_mm,
        cumulative=cumulative,
        runs=tuple(
            OnRun(
                begin=int(begin),
                end=int(end),
                first=int(index),
                painting=int(kind) & _PAINTING,
                counts=int(cumulative[index + end - begin] - cumulative[index]),
            )
            for begin, end, index, kind in zip(starts[on], ends[on], first[:-1], kinds[on], strict=True)
        ),
        parked=parked,
        transition=factor * float(sums[~on & ~off].sum()),
        idle=factor * float(sums[off & before].sum()),
        tail=factor * float(sums[off & ~before].sum()),
        monitor2=factor2 * float(raw[rows, _DOSE2].sum(dtype=np.int64)),
        ends_off=bool(off[-1]),
    )


def _on_rows(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Row numbers of all runs: a slice where there is one run, which is nearly always and much faster."""
    if len(begins) == 0:
        return slice(0, 0)
    if len(begins) == 1:
        return slice(int(begins[0]), int(ends[0]))
    return np.concatenate([np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)])


def _cumulative(dose: NDArray[np.uint16], factor: float) -> NDArray[np.int64]:
    """Corrected counts before each row, rounded so that no sum is off by more than half a count."""
    cumulative = np.zeros(len(dose) + 1, dtype=np.int64)
    np.cumsum(dose, dtype=np.int64, out=cumulative[1:])
    return cumulative if factor == 1.0 else np.rint(cumulative * factor).astype(np.int64)


def _positions(
    raw: NDArray[np.uint16],
    rows: slice | NDArray[np.int64],
    row: NDArray[np.int64],
    cumulative: NDArray[np.int64],
    calibration: CalibrationSet,
) -> tuple[NDArray[np.float64], NDArray[np.float64], int] | None:
    """Position of each on-row, mm, and the counts of those that had to be given one; None: no position."""
    x_raw, y_raw = raw[rows, _X], raw[rows, _Y]
    x_mm, y_mm = calibration.x_mm(x_raw), calibration.y_mm(y_raw)
    lost = is_parked(x_raw, y_raw, calibration)
    parked = np.flatnonzero(lost)
    if not parked.size:
        return x_mm, y_mm, 0
    counts = int((cumulative[parked + 1] - cumulative[parked]).sum())
    valid = np.flatnonzero(~lost)
    if not valid.size:
        return None if counts else (x_mm, y_mm, 0)  # without counts: an idle shot and nothing else
    after = np.minimum(np.searchsorted(valid, parked), len(valid) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(row[valid[before]] - row[parked]) < np.abs(row[valid[after]] - row[parked])
    source = valid[np.where(nearer, before, after)]
    x_mm[parked], y_mm[parked] = x_mm[source], y_mm[source]
    return x_mm, y_mm, counts
