"""Deliveries: timestamp folders with PlanInfo, PlanRange and the layers' logs, as the machine leaves them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from mqi.log.calibration import CalibrationSet
from mqi.plan import PlanBeam, PlanLayer
from mqi.synthesize.machine import MGN_DTYPE, PTN_DTYPE, LayerRecord, Part, record_layer
from mqi.synthesize.recipe import Recipe

__all__ = ["Shot", "SyntheticDelivery", "schedule", "write_delivery"]

SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 300, 360
"""Beams of a case follow each other by this (measured)."""

REGISTERED_BEFORE = timedelta(minutes=4)
"""The machine's patient number looks like the time of registration, this long before the beam."""

RANGE_COLUMNS = (
    "RESULT_ID",
    "LAYER_NO",
    "LAYER_ENERGY",
    "PATIENT_ID",
    "FLD_NO",
    "DOSE1_RANGE",
    "DOSE2_RANGE",
    "PLAN_DOSE1_RANGE",
    "PLAN_DOSE2_RANGE",
    "SCAN_OUT_FL_NM",
    "PLAN_SCAN_OUT_FL_NM",
)


@dataclass(frozen=True)
class Shot:
    """One irradiation: a beam from a layer to a layer, whole or in part.

    ``begin`` is the part of the first layer from which the beam is on, ``end`` the part of the last one
    until which it is; ``interlock`` (layer, part): there the beam went off, and on again in the same log.
    """

    at: datetime
    fraction: int
    beam_number: int
    start_layer: int
    stop_layer: int
    begin: float = 0.0
    end: float = 1.0
    interlock: tuple[int, float] | None = None

    @property
    def id(self) -> str:
        """Name of the timestamp folder, YYYYMMDDHHMMSScc."""
        return self.at.strftime("%Y%m%d%H%M%S") + f"{self.at.microsecond // 10_000:02d}"


@dataclass(frozen=True)
class SyntheticDelivery:
    """A delivery that was written, and what was truly delivered: MU and range code by layer number."""

    folder: Path
    shot: Shot
    layer_mu: dict[int, float]
    range_codes: dict[int, int]


def schedule(recipe: Recipe, beams: tuple[PlanBeam, ...]) -> Iterator[Shot]:
    """Say what is irradiated when: fractions a day apart, beams 5 to 6 minutes, in the recipe's order."""
    layers = {beam.number: len(beam.layers) for beam in beams}
    rng = recipe.random(0)
    order = recipe.beam_numbers if recipe.delivery_order is None else recipe.delivery_order
    for fraction in range(recipe.fractions):
        at = recipe.first_delivery_at + timedelta(days=fraction)
        for number in order:
            for begin_layer, stop_layer, begin, end, interlock in _pieces(recipe, number, layers[number]):
                yield Shot(at, fraction, number, begin_layer, stop_layer, begin, end, interlock)
                at += timedelta(seconds=int(rng.integers(SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S + 1)))


def _pieces(
    recipe: Recipe, beam_number: int, layers: int
) -> list[tuple[int, int, float, float, tuple[int, float] | None]]:
    """Cut a beam where the recipe interrupts it: (start, stop, begin, end, interlock) of each piece."""
    stop = recipe.interruption
    if stop is None or stop.beam_number != beam_number:
        return [(1, layers, 0.0, 1.0, None)]
    layer = min(stop.layer, layers)
    if stop.resumed == "same-log":
        return [(1, layers, 0.0, 1.0, (layer, stop.part))]
    first = (1, layer, 0.0, stop.part, None)
    return [first] if stop.resumed == "never" else [first, (layer, layers, stop.part, 1.0, None)]


def write_delivery(
    study: Path, recipe: Recipe, shot: Shot, *, beam: PlanBeam, calibration: CalibrationSet, index: int
) -> SyntheticDelivery:
    """Write one timestamp folder below the study's folder. ``index`` makes the noise its own."""
    folder = study / shot.id
    folder.mkdir()
    room = {"G1": "01", "G2": "02"}[recipe.room]
    registered = f"0{(shot.at - REGISTERED_BEFORE):%H%M%S}"
    dicom_name = re.sub(r"[^A-Za-z0-9_-]", "_", recipe.patient_id)
    table: list[tuple[object, ...]] = []
    layer_mu: dict[int, float] = {}
    codes: dict[int, int] = {}
    for layer in beam.layers[shot.start_layer - 1 : shot.stop_layer]:
        record = _record(recipe, shot, layer, beam=beam, calibration=calibration, index=index)
        suffix = f"001_{beam.number:03d}_{layer.number:03d}"
        ptn, mgn = f"{room}_{registered}_{suffix}.ptn", f"{room}_{dicom_name}_{suffix}.mgn"
        (folder / ptn).write_bytes(record.ptn.astype(PTN_DTYPE).tobytes())
        (folder / mgn).write_bytes(record.mgn.astype(MGN_DTYPE).tobytes())
        layer_mu[layer.number], codes[layer.number] = record.delivered_mu, record.range_code
        energy = f"{layer.energy_mev:.1f}"
        ranges = (record.range_code,) * 4
        table.append((shot.id, layer.number, energy, recipe.patient_id, beam.number, *ranges, ptn, mgn))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([RANGE_COLUMNS, *table])
    (folder / "PlanRange.txt").write_text(text.getvalue(), encoding="utf-8", newline="\n")
    study_uid = study.name
    info = {
        "DICOM_PATIENT_ID": recipe.patient_id,
        "DICOM_STUDY_INS_UID": study_uid,
        "DICOM_BEAM_NUMBER": beam.number,
        "TCSC_IRRAD_DATETIME": shot.id,
        "TCSC_PATIENT_ID": registered,
        "TCSC_PLAN_NUMBER": 1,
        "TCSC_FIELD_NUMBER": beam.number,
        "START_LAYER_NUMBER": shot.start_layer,
        "STOP_LAYER_NUMBER": shot.stop_layer,
        "SHARE_DIR": r"\\192.0.2.1\\Share\ScanActual",
        "ACTUAL_DIR": rf"{recipe.patient_id}\{study_uid}\{shot.id}",
    }
    lines = "".join(f"{key},{value}\n" for key, value in info.items())
    (folder / "PlanInfo.txt").write_text(lines, encoding="utf-8", newline="\n")
    return SyntheticDelivery(folder, shot, layer_mu, codes)


def _record(
    recipe: Recipe,
    shot: Shot,
    layer: PlanLayer,
    *,
    beam: PlanBeam,
    calibration: CalibrationSet,
    index: int,
) -> LayerRecord:
    """Deliver one layer of a shot with the recipe's errors."""
    parts = [
        Part(
            shot.begin if layer.number == shot.start_layer else 0.0,
            shot.end if layer.number == shot.stop_layer else 1.0,
        )
    ]
    if shot.interlock is not None and shot.interlock[0] == layer.number:
        parts = [Part(0.0, shot.interlock[1]), Part(shot.interlock[1], 1.0)]
    shifts = [s for s in recipe.shifts if s.beam_number == beam.number and s.layer in (None, layer.number)]
    codes = recipe.range_codes
    records = [
        record_layer(
            layer,
            beam.scan_mode,
            calibration,
            recipe.random(1, index, layer.number, piece),
            range_code=codes[(layer.number - 1) % len(codes)] if codes else None,
            part=part,
            mu_scale=recipe.mu_scale.get(beam.number, 1.0),
            shift_mm=(sum(s.x_mm for s in shifts), sum(s.y_mm for s in shifts)),
        )
        for piece, part in enumerate(parts)
    ]
    return LayerRecord(
        ptn=np.concatenate([record.ptn for record in records]),
        mgn=records[0].mgn,
        range_code=records[0].range_code,
        delivered_mu=sum(record.delivered_mu for record in records),
    )
