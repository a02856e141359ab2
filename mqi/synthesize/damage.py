"""Damage to the files of a written case. Each function takes the case and a value that it may not need."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pydicom

from mqi.synthesize.build import SyntheticCase
from mqi.synthesize.delivery import SyntheticDelivery
from mqi.synthesize.machine import PTN_DTYPE

__all__ = [
    "change_layer_number",
    "change_machine",
    "change_patient",
    "change_range_code",
    "cut_plan",
    "empty_log",
    "half_copy",
    "link_out",
    "nothing",
    "remove_log",
]


def nothing(case: SyntheticCase, value: float) -> None:
    """Leave the files as they are."""


def _last(case: SyntheticCase) -> SyntheticDelivery:
    """The delivery that is spoilt: the last one, so that the others before it are in order."""
    return case.deliveries[-1]


def _log(case: SyntheticCase) -> Path:
    """Its middle layer's log."""
    logs = sorted(_last(case).folder.glob("*.ptn"))
    return logs[len(logs) // 2]


def half_copy(case: SyntheticCase, value: float) -> None:
    """Cut a log in the middle, to an odd length."""
    path = _log(case)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 | 1])


def remove_log(case: SyntheticCase, value: float) -> None:
    """Remove a log."""
    _log(case).unlink()


def empty_log(case: SyntheticCase, value: float) -> None:
    """Leave a log with 0 bytes."""
    _log(case).write_bytes(b"")


def change_layer_number(case: SyntheticCase, value: float) -> None:
    """Count the layer in the rows of a log one too high."""
    path = _log(case)
    rows = np.frombuffer(path.read_bytes(), dtype=PTN_DTYPE).reshape(-1, 8).copy()
    rows[:, 6] += 1
    path.write_bytes(rows.tobytes())


def link_out(case: SyntheticCase, value: float) -> None:
    """Move a log out of the case and leave a link to it."""
    path = _log(case)
    outside = case.folder.parent / f".outside-{case.recipe.seed}.ptn"
    path.rename(outside)
    path.symlink_to(outside)


def change_range_code(case: SyntheticCase, value: float) -> None:
    """Give the first layer the dose monitor's range code 7."""
    path = _last(case).folder / "PlanRange.txt"
    rows = _read_table(path)
    rows[0] |= {"DOSE1_RANGE": "7", "PLAN_DOSE1_RANGE": "7"}
    _write_table(path, rows)


def change_patient(case: SyntheticCase, value: float) -> None:
    """Make a delivery one of another patient."""
    folder = _last(case).folder
    own = case.recipe.patient_id
    other = own[:-1] + ("9" if own[-1] != "9" else "8")
    info = folder / "PlanInfo.txt"
    text = info.read_text(encoding="utf-8")
    text = text.replace(f"DICOM_PATIENT_ID,{own}\n", f"DICOM_PATIENT_ID,{other}\n")
    info.write_text(text, encoding="utf-8", newline="\n")
    table = folder / "PlanRange.txt"
    _write_table(table, [row | {"PATIENT_ID": other} for row in _read_table(table)])


def _read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def change_machine(case: SyntheticCase, value: float) -> None:
    """Give the plan a machine that no site here has."""
    plan = pydicom.dcmread(case.plan_path)
    for beam in plan.IonBeamSequence:
        beam.TreatmentMachineName = "GANTRY_A"
    plan.save_as(case.plan_path, enforce_file_format=True)


def cut_plan(case: SyntheticCase, value: float) -> None:
    """Keep six tenths of the plan."""
    content = case.plan_path.read_bytes()
    case.plan_path.write_bytes(content[: int(0.6 * len(content))])
