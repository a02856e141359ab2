"""Logs of one beam -> what was delivered, as rows for a dose engine, with an account of every count.

Decisions:

- Only rows with both beam flags set are delivered (``layerlog`` says why, and what becomes of the rest).
- A log belongs to a layer because PlanRange says so, the log's own layer number says so, and the energy
  is the plan's within 0.1 MeV. File order and folder names decide nothing.
- Whatever was logged with beam on was delivered. A layer that two deliveries logged (interrupted, then
  resumed or scanned again) is the sum of both.
- A log that stops while the beam is on, or whose beam was on for less than the planned time (``.mgn``)
  by more than 2 %, is cut off and refused: half a file must never become half a dose. Excepted is the
  last layer of an interrupted delivery, if a later delivery covers that layer again; the two together
  must then reach the planned time.
- Counts are rounded cumulatively: a layer's sum is conserved to one count.

``planned_layers`` puts the plan itself into the same rows, so that one engine computes both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mqi.case import BeamManifest, Delivery, DoseSource, LayerLog
from mqi.engines.contract import EngineLayer
from mqi.errors import ValidationError
from mqi.log.account import BeamAccount, LayerAccount
from mqi.log.calibration import CalibrationSet
from mqi.log.layerlog import LoggedLayer, read_layer
from mqi.log.records import read_mgn
from mqi.log.spots import (
    SpotTable,
    Trajectory,
    compare_spots,
    load_spots,
    magnet_trajectory,
    meterset_trajectory,
    save_spots,
)
from mqi.plan import IonPlan, PlanBeam, PlanLayer, machine_room

__all__ = ["InterpretedBeam", "SpotTable", "interpret_beam", "load_spots", "planned_layers", "save_spots"]

_ENERGY_TOLERANCE_MEV = 0.1
_BEAM_ON_TOLERANCE = 0.02
_BEAM_ON_TOLERANCE_MS = 0.3  # the flags may come some rows late: matters in a layer of milliseconds
_PLANNED_STEP_MM = 1.0


@dataclass(frozen=True)
class InterpretedBeam:
    """What one beam delivered: rows for an engine, the account of its counts, and its spots."""

    layers: tuple[EngineLayer, ...]
    account: BeamAccount
    spots: SpotTable


@dataclass(frozen=True)
class _Log:
    """One layer in one delivery: its row of PlanRange and its files' folder."""

    delivery: Delivery
    row: LayerLog
    folder: Path

    @property
    def ptn(self) -> Path:
        return self.folder / self.row.ptn


def interpret_beam(
    case_folder: Path, beam: BeamManifest, plan: IonPlan, calibration: CalibrationSet
) -> InterpretedBeam:
    """Work out what one beam delivered, from the logs of all its deliveries.

    Raises
    ------
    ValidationError
        The logs contradict the plan or each other, are cut off, leave out a layer, or the calibration is
        of another room. Names beam, file and layer.
    ResourceError
        The file system did not give a file (tried again).
    """
    plan_beam = _plan_beam(beam, plan, calibration)
    logs = _logs_by_layer(case_folder, beam, plan, plan_beam)
    layers: list[EngineLayer] = []
    accounts: list[LayerAccount] = []
    tables: list[SpotTable] = []
    for plan_layer in plan_beam.layers:
        engine_layer, account, table = _interpret_layer(
            plan_layer, plan_beam, logs[plan_layer.number], calibration
        )
        layers.append(engine_layer)
        accounts.append(account)
        tables.append(table)
    return InterpretedBeam(
        layers=tuple(layers),
        account=BeamAccount(
            beam_number=plan_beam.number,
            beam_name=plan_beam.name,
            source=DoseSource.LOG,
            calibration=f"{calibration.name} {calibration.version}",
            calibration_sha256=calibration.sha256,
            layers=tuple(accounts),
        ),
        spots=SpotTable(
            **{
                field.name: np.concatenate([getattr(table, field.name) for table in tables])
                for field in fields(SpotTable)
            }
        ),
    )


def planned_layers(beam: PlanBeam, calibration: CalibrationSet) -> tuple[EngineLayer, ...]:
    """Write the plan in the rows that an engine reads, in corrected counts of this calibration.

    MODULATED: one row a spot. LINE: the way to each spot in equal steps of at most 1 mm, its MU spread
    evenly over them. Spots without MU give no row. Times only number the rows, one sample each.
    """
    return tuple(_planned_layer(layer, beam.scan_mode, calibration) for layer in beam.layers)


def _planned_layer(layer: PlanLayer, scan_mode: str, calibration: CalibrationSet) -> EngineLayer:
    given = layer.meterset_mu > 0
    target = layer.positions_mm[given]
    meterset = layer.meterset_mu[given]
    if scan_mode == "LINE":
        source = np.concatenate([layer.positions_mm[:1], layer.positions_mm[:-1]])[given]
        length = np.hypot(*(target - source).T)
        steps = np.maximum(np.ceil(length / _PLANNED_STEP_MM), 1).astype(np.int64)
        spot = np.repeat(np.arange(len(steps)), steps)
        step = np.arange(len(spot)) - np.repeat(np.cumsum(steps) - steps, steps)
        on_way = ((step + 0.5) / steps[spot])[:, np.newaxis]
        position = source[spot] + on_way * (target - source)[spot]
        meterset = (meterset / steps)[spot]
    else:
        position = target
    return EngineLayer(
        number=layer.number,
        energy_mev=layer.energy_mev,
        time_ms=np.arange(len(meterset), dtype=np.float64) * calibration.time_gain_ms,
        x_mm=position[:, 0].copy(),
        y_mm=position[:, 1].copy(),
        counts=_whole_counts(meterset / calibration.mu_per_count),
    )


def _whole_counts(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    until = np.zeros(len(counts) + 1, dtype=np.int64)
    until[1:] = np.rint(np.cumsum(counts))
    return np.diff(until)


def _plan_beam(beam: BeamManifest, plan: IonPlan, calibration: CalibrationSet) -> PlanBeam:
    try:
        plan_beam = plan.beam(beam.number)
    except KeyError:
        raise _contradiction(beam.number, plan.path, "the plan has no beam with this number") from None
    if plan_beam.is_setup:
        raise _contradiction(beam.number, plan.path, "this beam of the plan is a setup field")
    if beam.layer_count != len(plan_beam.layers):
        raise _contradiction(
            beam.number, plan.path, f"the plan has {len(plan_beam.layers)} layers, not {beam.layer_count}"
        )
    room = machine_room(plan_beam.machine)
    if room != calibration.name:
        raise _contradiction(
            beam.number, plan.path, f"the plan is for {room}, the calibration set for {calibration.name}"
        )
    return plan_beam


def _logs_by_layer(
    case_folder: Path, beam: BeamManifest, plan: IonPlan, plan_beam: PlanBeam
) -> Mapping[int, Sequence[_Log]]:
    """All logs of each layer, earliest delivery first."""
    logs: dict[int, list[_Log]] = {layer.number: [] for layer in plan_beam.layers}
    for delivery in sorted(beam.deliveries, key=lambda delivery: (delivery.irradiated_at, delivery.id)):
        folder = case_folder / delivery.folder
        if delivery.beam_number != beam.number:
            raise _contradiction(beam.number, folder, f"the delivery is of beam {delivery.beam_number}")
        if delivery.patient_id != plan.patient_id:
            raise _contradiction(beam.number, folder, "the delivery and the plan have different patient IDs")
        for row in delivery.layers:
            if row.number not in logs:
                raise _contradiction(
                    beam.number, folder, f"it logs layer {row.number}, the plan has {len(plan_beam.layers)}"
                )
            energy = plan_beam.layers[row.number - 1].energy_mev
            if not abs(row.energy_mev - energy) <= _ENERGY_TOLERANCE_MEV:
                raise _contradiction(
                    beam.number,
                    folder,
                    f"layer {row.number} was delivered at {row.energy_mev:g} MeV, planned at {energy:g} MeV",
                )
            logs[row.number].append(_Log(delivery, row, folder))
    if missing := [number for number, found in logs.items() if not found]:
        raise _contradiction(
            beam.number, case_folder, f"no delivery has layer {', '.join(str(number) for number in missing)}"
        )
    return logs


def _interpret_layer(
    layer: PlanLayer, plan_beam: PlanBeam, logs: Sequence[_Log], calibration: CalibrationSet
) -> tuple[EngineLayer, LayerAccount, SpotTable]:
    read = [read_layer(log.ptn, log.row, calibration, plan_beam.number) for log in logs]
    if not any(log.on_rows for log in read):
        raise _contradiction(
            plan_beam.number, logs[-1].ptn, f"the log of layer {layer.number} has no dose with beam on"
        )
    trajectories = [_magnet_file(log, layer, plan_beam.number, calibration) for log in logs]
    _refuse_cut_off(logs, read, trajectories, calibration)
    stand_in = meterset_trajectory(layer, read, calibration) if None in trajectories else None
    passes = [(log, found or stand_in) for log, found in zip(read, trajectories, strict=True)]
    table = compare_spots(
        layer,
        plan_beam.scan_mode,
        [(log, trajectory) for log, trajectory in passes if trajectory],
        calibration,
    )
    return _engine_layer(layer, read, calibration), _account(layer, read, table, calibration), table


def _magnet_file(log: _Log, layer: PlanLayer, beam: int, calibration: CalibrationSet) -> Trajectory | None:
    path = log.folder / log.row.mgn
    if not log.row.mgn or not path.exists():
        return None
    return magnet_trajectory(read_mgn(path), layer, calibration, path, beam)


def _refuse_cut_off(
    logs: Sequence[_Log],
    read: Sequence[LoggedLayer],
    trajectories: Sequence[Trajectory | None],
    calibration: CalibrationSet,
) -> None:
    """Refuse a log that holds less than the layer (see the module's decisions)."""
    interrupted_ms, interruptions = 0.0, 0
    for index, (log, logged, trajectory) in enumerate(zip(logs, read, trajectories, strict=True)):
        on_ms = logged.on_rows * calibration.time_gain_ms
        if index < len(logs) - 1 and log.row.number == log.delivery.stop_layer:
            interrupted_ms, interruptions = interrupted_ms + on_ms, interruptions + 1
            continue
        if not logged.ends_off:
            raise _cut_off(log, "it ends while the beam is still on")
        if trajectory is None:
            continue
        least_ms = trajectory.beam_on_ms * (1 - _BEAM_ON_TOLERANCE) - _BEAM_ON_TOLERANCE_MS * (
            1 + interruptions
        )
        if on_ms + interrupted_ms < least_ms:
            raise _cut_off(
                log, f"the beam was on for {on_ms:.1f} ms, planned are {trajectory.beam_on_ms:.1f} ms"
            )


def _engine_layer(layer: PlanLayer, read: Sequence[LoggedLayer], calibration: CalibrationSet) -> EngineLayer:
    """All on-rows of a layer; a second delivery's time goes on where the first one's ends."""
    offsets = np.cumsum([0, *(len(log.raw) for log in read[:-1])])
    return EngineLayer(
        number=layer.number,
        energy_mev=layer.energy_mev,
        time_ms=_joined(
            [(log.row + offset) * calibration.time_gain_ms for log, offset in zip(read, offsets, strict=True)]
        ),
        x_mm=_joined([log.x_mm for log in read]),
        y_mm=_joined([log.y_mm for log in read]),
        counts=np.concatenate([np.diff(log.cumulative) for log in read]),
    )


def _joined(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _account(
    layer: PlanLayer, read: Sequence[LoggedLayer], table: SpotTable, calibration: CalibrationSet
) -> LayerAccount:
    mu = calibration.mu_per_count
    counted = table.mu_plan > 0
    x_off = (table.x_log_mm - table.x_plan_mm)[counted]
    y_off = (table.y_log_mm - table.y_plan_mm)[counted]
    mu_off = (table.mu_log - table.mu_plan)[counted]
    return LayerAccount(
        number=layer.number,
        energy_mev=layer.energy_mev,
        samples=sum(len(log.raw) for log in read),
        planned_mu=layer.total_mu,
        delivered_mu=mu * float(sum(int(log.cumulative[-1]) for log in read)),
        parked_mu=mu * sum(log.parked for log in read),
        transition_mu=mu * sum(log.transition for log in read),
        tail_mu=mu * sum(log.tail for log in read),
        idle_mu=mu * sum(log.idle for log in read),
        monitor2_mu=mu * sum(log.monitor2 for log in read),
        spots=int(counted.sum()),
        x_mean_mm=float(x_off.mean()),
        x_sd_mm=float(x_off.std()),
        y_mean_mm=float(y_off.mean()),
        y_sd_mm=float(y_off.std()),
        position_max_mm=float(np.hypot(x_off, y_off).max()),
        spot_mu_mean=float(mu_off.mean()),
        spot_mu_sd=float(mu_off.std()),
        spot_mu_max=float(np.abs(mu_off).max()),
    )


def _cut_off(log: _Log, what: str) -> ValidationError:
    return ValidationError(
        f"the log of layer {log.row.number} is cut off: {what}",
        beam=log.delivery.beam_number,
        path=log.ptn,
        todo="Transfer the delivery again; if it is the machine's own, the beam was interrupted",
    )


def _contradiction(beam: int, path: Path, what: str) -> ValidationError:
    return ValidationError(
        what, beam=beam, path=path, todo="Check that the logs and the RT Ion Plan belong together"
    )
