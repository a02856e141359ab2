"""Whether a delivery belongs to a plan, and which log files it still lacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from mqi.case import Delivery
from mqi.errors import ValidationError
from mqi.intake.rules import IntakeRules, Seen
from mqi.log.calibration import builtin_calibration
from mqi.plan import IonPlan, machine_room

__all__ = [
    "ENERGY_TOLERANCE_MEV",
    "LOG_RECORD_BYTES",
    "contradictions",
    "lacking_files",
    "range_warnings",
]

ENERGY_TOLERANCE_MEV = 0.1
"""PlanRange rounds the plan's energy to 0.1 MeV (measured), neighbouring layers are further apart."""

LOG_RECORD_BYTES = {".ptn": 16, ".mgn": 14}
"""Length of one record of a log file (measured on 108 files): a file is whole records, or not whole."""


def contradictions(delivery: Delivery, plan: IonPlan, rules: IntakeRules) -> tuple[str, ...]:
    """Why a delivery cannot be one of this plan; empty when it fits."""
    who = f"delivery {delivery.id}"
    if delivery.patient_id != plan.patient_id:
        return (f"{who} is of another patient than the plan (DICOM_PATIENT_ID of PlanInfo)",)
    if rules.match_study_uid and delivery.study_uid != plan.study_uid:
        return (f"{who} is of study {delivery.study_uid}, the plan of study {plan.study_uid}",)
    beams = {beam.number: beam for beam in plan.treatment_beams}
    beam = beams.get(delivery.beam_number)
    if beam is None:
        known = ", ".join(str(number) for number in sorted(beams))
        return (f"{who} is of beam {delivery.beam_number}, which is no treatment beam of the plan ({known})",)
    what = f"{who}, beam {beam.number}"
    if delivery.stop_layer > len(beam.layers):
        return (f"{what}: layer {delivery.stop_layer} was delivered, the plan has {len(beam.layers)}",)
    found = []
    for layer in delivery.layers:
        planned_mev = beam.layers[layer.number - 1].energy_mev
        if abs(layer.energy_mev - planned_mev) > ENERGY_TOLERANCE_MEV:
            found.append(
                f"{what}: layer {layer.number} has {layer.energy_mev:g} MeV, planned {planned_mev:g}"
            )
    calibration = builtin_calibration(machine_room(plan.machine))
    codes = {code for layer in delivery.layers for code in (layer.dose1_range, layer.dose2_range)}
    for code in sorted(codes):
        try:
            calibration.range_factor(code)
        except ValidationError as error:
            found.append(f"{what}: {error.what}")
    return tuple(found[:3])


def range_warnings(delivery: Delivery) -> tuple[str, ...]:
    """Say where the dose monitors were read with another range than planned: right, but worth a look."""
    changed = [layer.number for layer in delivery.layers if layer.dose1_range != layer.plan_dose1_range]
    if not changed:
        return ()
    return (
        f"beam {delivery.beam_number}: dose monitor 1 was read with another range than planned "
        f"in {len(changed)} layers, first in layer {changed[0]} (delivery {delivery.id})",
    )


def lacking_files(delivery: Delivery, seen: Mapping[str, Seen]) -> tuple[str, ...]:
    """What is not there yet of the log files that PlanRange names, decided by their sizes alone."""
    lacking = []
    for layer in delivery.layers:
        for name in filter(None, (layer.ptn, layer.mgn)):
            file = seen.get(f"{delivery.folder}/{name}")
            suffix = PurePosixPath(name).suffix.lower()
            record = LOG_RECORD_BYTES[suffix]
            kind = "" if suffix == ".ptn" else f" ({suffix})"
            if file is None:
                lacking.append(f"layer {layer.number}{kind} has not arrived ({name})")
            elif file.is_link:
                continue
            elif not file.size:
                lacking.append(f"layer {layer.number}{kind} has 0 bytes")
            elif file.size % record:
                lacking.append(f"layer {layer.number}{kind} has {file.size} bytes, no multiple of {record}")
    return tuple(lacking)
