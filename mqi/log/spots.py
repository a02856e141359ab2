"""Delivered spots against planned ones: when the beam was at which spot, where it was, what it gave.

Time of a spot. The ``.mgn`` file holds, for each painting of a layer, the time at which the magnets are
to have finished each spot; spot k owns the time since spot k-1 was finished, in scan mode LINE as in
MODULATED. The first record is the beam-on itself: where the first spot has a meterset, the time to the
second record is shared between the two by their planned MU. Without an ``.mgn`` the planned MU, summed
up, stand for the time.

Clock. Log rows and ``.mgn`` share one clock (measured to 0.1 ms). After an interlock the layer is
scanned again from its first spot, off that clock: each stretch with beam on is therefore laid where it
fits best of three: on the common clock, with its begin on beam-on, with its end on beam-off.

Lag. The log trails the magnets by about 180 us (measured, 3 rows). For each stretch the lag of 0 to 10
rows with the smallest position residual is taken; of lags that are as good within 2 % the one nearest to
3 rows. Dose and position stand in the same row, so that both are shifted by it.

Position of a spot: LINE, where the beam was when the spot was finished; MODULATED, where it was when
half of the spot's dose was given. Several stretches over one spot add up, their positions by dose.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mqi.errors import ValidationError
from mqi.files import atomic_path
from mqi.log.calibration import CalibrationSet
from mqi.log.layerlog import LoggedLayer, OnRun, is_parked
from mqi.plan import PlanLayer

__all__ = [
    "SpotTable",
    "Trajectory",
    "compare_spots",
    "load_spots",
    "magnet_trajectory",
    "meterset_trajectory",
    "save_spots",
]

LAGS_ROWS = np.arange(11)
USUAL_LAG_ROWS = 3
_AS_GOOD = 1.02
_MAGNETS_TOLERANCE_MM = 0.1  # measured agreement of plan and mgn: 0.004 mm
_SAME_CLOCK_MS = 1.0
_BETTER_FIT_MM = 0.5
_SAMPLES_OF_A_RUN = 64
_UNFINISHED, _UNSEEN = 1e-12, 1e-24  # weights of a position that was not reached: below one count


@dataclass(frozen=True)
class SpotTable:
    """Planned and delivered spots of a beam: arrays of one length, by layer and then in plan order."""

    layer: NDArray[np.int64]
    x_plan_mm: NDArray[np.float64]
    y_plan_mm: NDArray[np.float64]
    x_log_mm: NDArray[np.float64]
    y_log_mm: NDArray[np.float64]
    mu_plan: NDArray[np.float64]
    mu_log: NDArray[np.float64]


@dataclass(frozen=True)
class Trajectory:
    """Planned times of a layer's spots on the log's clock, one row a painting.

    ``begin_ms`` is (paintings,): when the beam goes on; ``node_ms`` and ``end_ms`` are (paintings, n): when
    the beam is at the spot, when the spot's dose is finished. ``beam_on_ms`` is the planned time with
    beam; ``on_clock`` says whether the times are the log's clock or only counted from beam on.
    """

    begin_ms: NDArray[np.float64]

    node_ms: NDArray[np.float64]
    end_ms: NDArray[np.float64]
    beam_on_ms: float
    on_clock: bool


def magnet_trajectory(
    records: NDArray[Any], layer: PlanLayer, calibration: CalibrationSet, path: Path, beam: int
) -> Trajectory:
    """Take a layer's planned times from its ``.mgn`` records.

    Raises ValidationError when its spots are not the plan's: then the log belongs to another plan.
    """
    spots = len(layer.meterset_mu)
    paintings, rest = divmod(records.size, spots + 2)
    if rest or paintings not in {1, layer.paintings}:
        raise _other_plan(path, beam, f"it has {records.size} records, the plan's layer {spots} spots")
    blocks = records.reshape(paintings, spots + 2)[:, 1:-1]
    x_mm = calibration.preset_x_mm(blocks["x_preset"])
    y_mm = calibration.preset_y_mm(blocks["y_preset"])
    apart = np.hypot(x_mm - layer.positions_mm[:, 0], y_mm - layer.positions_mm[:, 1])
    if apart.max() > _MAGNETS_TOLERANCE_MM:
        spot = int(apart.max(axis=0).argmax())
        raise _other_plan(path, beam, f"spot {spot + 1} is {apart.max():.2f} mm from the plan's")
    time = records["time_us"].astype(np.float64) / 1000.0
    node_ms = blocks["time_us"].astype(np.float64) / 1000.0
    end_ms = node_ms.copy()
    if spots > 1:
        first_two = layer.meterset_mu[:2].sum()
        share = layer.meterset_mu[0] / first_two if first_two > 0 else 0.0
        end_ms[:, 0] += share * (node_ms[:, 1] - node_ms[:, 0])
    beam_on_ms = float(np.diff(time)[records["beam_on"][:-1] == 1].sum())
    return Trajectory(node_ms[:, 0], node_ms, end_ms, beam_on_ms, on_clock=True)


def meterset_trajectory(
    layer: PlanLayer, logs: Sequence[LoggedLayer], calibration: CalibrationSet
) -> Trajectory:
    """Stand in for a missing ``.mgn``: planned MU, summed up, over the time with beam on.

    One stretch of beam is the whole layer; of several, the planned share of their MU is one painting.
    """
    runs = [run for log in logs for run in log.runs if run.counts]
    on_ms = calibration.time_gain_ms * sum(run.end - run.begin for run in runs)
    if len(runs) > 1:
        delivered_mu = calibration.mu_per_count * sum(run.counts for run in runs)
        on_ms *= layer.total_mu / delivered_mu / layer.paintings
    end_ms = on_ms * np.cumsum(layer.meterset_mu)[np.newaxis] / layer.total_mu
    return Trajectory(np.zeros(1), end_ms, end_ms, 0.0, on_clock=False)


def compare_spots(
    layer: PlanLayer,
    scan_mode: str,
    passes: Sequence[tuple[LoggedLayer, Trajectory]],
    calibration: CalibrationSet,
) -> SpotTable:
    """Find what each planned spot of a layer got, from all logs of the layer.

    At least one of the logs must have delivered something. The MU of all spots add up to the MU of all
    on-rows.
    """
    spots = len(layer.meterset_mu)
    counts = np.zeros(spots)
    weights = np.zeros(spots)
    sums = np.zeros((2, spots))
    for log, trajectory in passes:
        for run in log.runs:
            if run.counts == 0:
                continue
            stretch = _Stretch(layer, scan_mode, log, run, trajectory, calibration)
            run_counts, reached, position = stretch.spots()
            unreached = np.where(run_counts > 0, _UNFINISHED, _UNSEEN)
            weight = np.where(reached, np.maximum(run_counts, 1), unreached)
            counts += run_counts
            weights += weight
            sums += weight * position
    x_log, y_log = sums / weights
    return SpotTable(
        layer=np.full(spots, layer.number, dtype=np.int64),
        x_plan_mm=layer.positions_mm[:, 0],
        y_plan_mm=layer.positions_mm[:, 1],
        x_log_mm=x_log,
        y_log_mm=y_log,
        mu_plan=layer.meterset_mu,
        mu_log=counts * calibration.mu_per_count,
    )


def save_spots(path: Path, table: SpotTable) -> None:
    """Write a table of spots (.npz), whole or not at all."""
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **{field.name: getattr(table, field.name) for field in fields(SpotTable)})


def load_spots(path: Path) -> SpotTable:
    """Read a table of spots. Raises ValidationError when the file is missing or is none."""
    names = [field.name for field in fields(SpotTable)]
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValidationError(
            f"the file is no table of spots ({type(error).__name__})",
            path=path,
            todo="Interpret the beam again",
        ) from error
    if len({column.shape for column in columns.values()}) != 1:
        raise ValidationError(
            "the table's columns differ in length", path=path, todo="Interpret the beam again"
        )
    return SpotTable(**columns)


@dataclass(frozen=True)
class _Stretch:
    """One stretch of beam in one log, to be laid over its layer's planned times."""

    layer: PlanLayer
    scan_mode: str
    log: LoggedLayer
    run: OnRun
    trajectory: Trajectory
    calibration: CalibrationSet

    def spots(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
        """Counts of each spot, whether the stretch got there, and its (2, n) position, mm."""
        run, cumulative = self.run, self.log.cumulative
        begin, node, end = self._planned_rows()
        shift = self._shift_rows(begin, node)
        is_line = self.scan_mode == "LINE"
        half_way = end if is_line else (end + np.concatenate([[begin], end[:-1]])) / 2
        late = shift + self._lag_rows(half_way + shift)
        edges = np.clip(np.ceil(end + late), run.begin, run.end).astype(np.int64)
        if self.layer.meterset_mu[0] == 0:
            edges[0] = run.begin
        edges[-1] = run.end
        edges = np.concatenate([[run.begin], edges])
        until = cumulative[edges - run.begin + run.first]
        row = end + late
        if not is_line:
            in_run = cumulative[run.first : run.first + run.end - run.begin + 1]
            half_given = np.searchsorted(in_run, (until[1:] + until[:-1]) / 2)
            row = half_given.astype(np.float64) + (run.begin - 1)
        reached = (row >= run.begin) & (row < run.end + LAGS_ROWS[-1])
        return np.diff(until), reached, self._position_at(row)

    def _planned_rows(self) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Rows at which the plan puts the beam on, is at each spot, and has finished it."""
        planned = self.trajectory
        painting = min(self.run.painting, len(planned.node_ms)) - 1
        row_ms = self.calibration.time_gain_ms
        begin = float(planned.begin_ms[painting]) / row_ms
        return begin, planned.node_ms[painting] / row_ms, planned.end_ms[painting] / row_ms

    def _position_at(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """(2, ...) position at rows of the file, mm, straight between two rows (1.2 mm apart at 20 m/s)."""
        lower = np.floor(row)
        here, there = self._position_of(lower.astype(np.int64)), self._position_of(lower.astype(np.int64) + 1)
        return here + (row - lower) * (there - here)

    def _position_of(self, row: NDArray[np.int64]) -> NDArray[np.float64]:
        """(2, ...) logged position, mm.

        The registers go on for some rows after beam off, which is when the lagging log reaches the last
        spot; parked or further away, the nearest on-row of the stretch is taken.
        """
        run, log, calibration = self.run, self.log, self.calibration
        on = np.clip(row, run.begin, run.end - 1)
        late = np.clip(row, run.begin, min(run.end + LAGS_ROWS[-1], len(log.raw)) - 1)
        x_raw, y_raw = log.raw[late, 0], log.raw[late, 1]
        usable = (late != on) & ~is_parked(x_raw, y_raw, calibration)
        index = on - run.begin + run.first
        return np.stack(
            [
                np.where(usable, calibration.x_mm(x_raw), log.x_mm[index]),
                np.where(usable, calibration.y_mm(y_raw), log.y_mm[index]),
            ]
        )

    def _shift_rows(self, begin: float, node: NDArray[np.float64]) -> float:
        """Rows by which the planned times must be moved to lie over this stretch (see Clock above)."""
        run = self.run
        candidates = [0.0] if self.trajectory.on_clock else []
        for shift in (run.begin - begin, float(run.end - node[-1])):
            apart_ms = [abs(shift - other) * self.calibration.time_gain_ms for other in candidates]
            if all(apart > _SAME_CLOCK_MS for apart in apart_ms):
                candidates.append(shift)
        if len(candidates) == 1:
            return candidates[0]
        rows = np.linspace(run.begin, run.end - 1, _SAMPLES_OF_A_RUN)
        logged = self._position_at(rows)
        misfits = []
        for shift in candidates:
            at = rows - (shift + USUAL_LAG_ROWS)
            planned = np.stack([np.interp(at, node, axis) for axis in self.layer.positions_mm.T])
            misfits.append(float(np.sqrt(np.mean((logged - planned) ** 2))))
        good_enough = min(misfits) + _BETTER_FIT_MM
        return next(shift for shift, misfit in zip(candidates, misfits, strict=True) if misfit <= good_enough)

    def _lag_rows(self, at_spot: NDArray[np.float64]) -> int:
        """Rows by which this stretch trails the plan (see Lag above)."""
        fits = (at_spot >= self.run.begin) & (at_spot + LAGS_ROWS[-1] < self.run.end)
        inside = fits & (self.layer.meterset_mu > 0)
        if not inside.any():
            return USUAL_LAG_ROWS
        logged = self._position_at(at_spot[inside] + LAGS_ROWS[:, np.newaxis])
        planned = self.layer.positions_mm[inside].T[:, np.newaxis]
        misfit = np.sqrt(np.mean((logged - planned) ** 2, axis=(0, 2)))
        as_good = LAGS_ROWS[misfit <= misfit.min() * _AS_GOOD]
        return int(as_good[np.argmin(np.abs(as_good - USUAL_LAG_ROWS))])


def _other_plan(path: Path, beam: int, what: str) -> ValidationError:
    return ValidationError(
        f"the planned magnet file does not fit the plan: {what}",
        beam=beam,
        path=path,
        todo="Check that the log and the RT Ion Plan belong together",
    )
