"""RT Ion Plan -> beams, layers, spots (DICOM PS3.3 C.8.8.25, and the vendor's private tags).

Rules where the standard leaves a choice:

- A setup field is one with TreatmentDeliveryType SETUP; where the tag is absent, one that is described
  as "Site Setup" or named "SETUP".
- Control points stand in pairs, one pair a layer, with no meterset between two pairs. Two layers may
  have the same energy.
- A layer's MU is its step of CumulativeMetersetWeight times BeamMeterset / FinalCumulativeMetersetWeight
  (PS3.3 C.8.8.25). But MOSAIQ writes BeamMeterset rounded (53.4) beside weights that are MU themselves
  (53.362): where BeamMeterset is FinalCumulativeMetersetWeight rounded to the decimals it is written
  with, the weights are taken as MU unscaled.
- Within a layer the spot weights share out the layer's MU. They must add up to it within 1 %.
- Angles, snout and isocentre are those of the first control point; a beam that changes them is refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from mqi.errors import ResourceError, ValidationError
from mqi.plan_spots import SpotMap, read_spot_map

__all__ = ["IonPlan", "PlanBeam", "PlanLayer", "RangeShifter", "machine_room", "read_plan"]

_RT_ION_PLAN = "1.2.840.10008.5.1.4.1.1.481.8"
_SCAN_MODES = frozenset({"MODULATED", "MODULATED_SPEC", "LINE"})
_DELIVERY_TYPES = frozenset({"TREATMENT", "CONTINUATION"})
_PATIENT_POSITIONS = frozenset({"HFS", "FFS", "HFP", "FFP", "HFDR", "HFDL", "FFDR", "FFDL"})
_IN_THE_WAY = {
    "NumberOfBlocks": "blocks",
    "NumberOfWedges": "wedges",
    "NumberOfCompensators": "compensators",
    "NumberOfBoli": "boli",
    "NumberOfRangeModulators": "range modulators",
}
_FIXED_DURING_A_BEAM = (
    "GantryAngle",
    "PatientSupportAngle",
    "BeamLimitingDeviceAngle",
    "SnoutPosition",
    "TableTopPitchAngle",
    "TableTopRollAngle",
)
_SAME_ENERGY_MEV = 1e-3
_SAME_ANGLE_DEG_OR_MM = 1e-2
_WEIGHT_SUM_TOLERANCE = 0.01
_NO_WEIGHT = 1e-9  # of the final cumulative meterset weight
_EXPORT_AGAIN = "Export the RT Ion Plan again from the treatment planning or record and verify system"
_DAMAGE = (  # what pydicom and numpy raise on bytes that are not what they claim to be
    ArithmeticError,
    AssertionError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class PlanLayer:
    """One energy layer.

    Attributes
    ----------
    number
        From 1, in the order of delivery.
    positions_mm
        (n, 2) spot positions x, y at the isocentre plane, IEC beam limiting device coordinates, mm.
    meterset_mu
        (n,) meterset of each spot, MU. For scan mode LINE the first is 0 and weight k is delivered on
        the way from spot k-1 to spot k.
    """

    number: int
    energy_mev: float
    positions_mm: NDArray[np.float64]
    meterset_mu: NDArray[np.float64]
    paintings: int = 1

    @property
    def total_mu(self) -> float:
        """Meterset of the whole layer, MU."""
        return float(self.meterset_mu.sum())


@dataclass(frozen=True)
class RangeShifter:
    """A range shifter in the beam. ``id`` as in the plan, e.g. SNOUT_DEG_B."""

    number: int
    id: str


@dataclass(frozen=True)
class PlanBeam:
    """One beam of the plan, known by its DICOM beam number and by nothing else. Angles by IEC 61217."""

    number: int
    name: str
    description: str
    is_setup: bool
    machine: str
    scan_mode: str  # MODULATED, MODULATED_SPEC or LINE; NONE for a setup field
    gantry_angle_deg: float
    couch_angle_deg: float
    collimator_angle_deg: float
    isocentre_mm: tuple[float, float, float]  # DICOM patient coordinates
    snout_position_mm: float
    sad_mm: tuple[float, float]  # virtual source-axis distances x, y
    range_shifters: tuple[RangeShifter, ...]
    meterset_mu: float
    layers: tuple[PlanLayer, ...]


@dataclass(frozen=True)
class IonPlan:
    """An RT Ion Plan. ``beams`` holds the setup fields too; ``treatment_beams`` does not."""

    path: Path
    sop_uid: str
    study_uid: str
    frame_of_reference_uid: str
    patient_id: str
    label: str
    machine: str
    patient_position: str  # HFS, FFS, HFP, FFP
    fractions_planned: int
    beams: tuple[PlanBeam, ...]

    @property
    def treatment_beams(self) -> tuple[PlanBeam, ...]:
        """The beams that deliver dose, in the plan's order."""
        return tuple(beam for beam in self.beams if not beam.is_setup)

    def beam(self, number: int) -> PlanBeam:
        """Return the beam with this DICOM number. Raises KeyError when the plan has none."""
        for beam in self.beams:
            if beam.number == number:
                return beam
        raise KeyError(number)


def read_plan(path: Path) -> IonPlan:
    """Read an RT Ion Plan.

    Raises
    ------
    ValidationError
        The file is damaged, is no RT Ion Plan, contradicts itself, or has a treatment beam that cannot
        be computed (blocks, wedges, compensators, other radiation than protons, a moving gantry, an
        unknown scan mode). Names the file and the beam.
    ResourceError
        The file system did not give the file (tried again).
    """
    try:
        return _plan(pydicom.dcmread(path), path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ValidationError(
            f"the plan cannot be read ({error.strerror})", path=path, todo="Check the file and its rights"
        ) from error
    except OSError as error:
        raise ResourceError(f"the plan cannot be read now ({error.strerror})", path=path) from error
    except _DAMAGE as error:
        raise ValidationError(
            f"the file is no readable DICOM plan ({type(error).__name__})", path=path, todo=_EXPORT_AGAIN
        ) from error


def machine_room(treatment_machine_name: str) -> str:
    """Room of a treatment machine: "G1" or "G2", from names such as G1, GTR2.

    Raises ValidationError for any other name: the room chooses the calibration.
    """
    found = re.search(r"G[^0-9]*([12])(?![0-9])", treatment_machine_name)
    if not found:
        raise ValidationError(
            f"treatment machine {treatment_machine_name[:64]!r} is not known (G1, G2, GTR1, GTR2)",
            todo="Check TreatmentMachineName in the plan",
        )
    return f"G{found[1]}"


def _plan(ds: Dataset, path: Path) -> IonPlan:
    if str(ds.get("SOPClassUID", "")) != _RT_ION_PLAN:
        kind = getattr(ds.get("SOPClassUID", ""), "name", "") or "no SOP class"
        raise ValidationError(f"the file is no RT Ion Plan ({kind})", path=path, todo=_EXPORT_AGAIN)
    metersets = _metersets(ds, path)
    beams = tuple(_beam(item, metersets, path) for item in ds.get("IonBeamSequence") or ())
    numbers = [beam.number for beam in beams]
    if repeated := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise _refused(path, None, f"beam number {repeated[0]} is given twice")
    treatment = [beam for beam in beams if not beam.is_setup]
    if not treatment:
        raise _refused(path, None, "the plan has no treatment beam")
    if missing := sorted(set(metersets) - set(numbers)):
        raise _refused(path, missing[0], "its fraction group names this beam, but the plan ends before it")
    machines = sorted({beam.machine for beam in treatment})
    if len(machines) > 1:
        raise _refused(path, None, f"the beams are for different machines: {', '.join(machines)}")
    groups = ds.get("FractionGroupSequence") or ()
    planned = groups[0].get("NumberOfFractionsPlanned") if groups else None
    return IonPlan(
        path=path,
        sop_uid=_text(ds, "SOPInstanceUID", path),
        study_uid=_text(ds, "StudyInstanceUID", path),
        frame_of_reference_uid=str(ds.get("FrameOfReferenceUID") or ""),
        patient_id=_text(ds, "PatientID", path),
        label=str(ds.get("RTPlanLabel") or ""),
        machine=machines[0],
        patient_position=_patient_position(ds.get("PatientSetupSequence") or (), path),
        fractions_planned=0 if planned is None else int(planned),
        beams=beams,
    )


def _metersets(ds: Dataset, path: Path) -> dict[int, tuple[float, str]]:
    """BeamMeterset by beam number: its value, and the text it is written with."""
    metersets: dict[int, tuple[float, str]] = {}
    for group in ds.get("FractionGroupSequence") or ():
        for reference in group.get("ReferencedBeamSequence") or ():
            if reference.get("BeamMeterset") is None:
                continue
            number = int(reference.ReferencedBeamNumber)
            value = (float(reference.BeamMeterset), str(reference.BeamMeterset).strip())
            if metersets.setdefault(number, value)[0] != value[0]:
                raise _refused(path, number, "its fraction groups give different metersets")
    return metersets


def _beam(item: Dataset, metersets: dict[int, tuple[float, str]], path: Path) -> PlanBeam:
    number = int(item.BeamNumber)
    control_points: Sequence[Dataset] = item.get("IonControlPointSequence") or ()
    setup = _is_setup(item)
    if not control_points and not setup:
        raise _refused(path, number, "it has no control points")
    first = control_points[0] if control_points else Dataset()
    if not setup:
        _refuse_what_cannot_be_computed(item, control_points, number, path)
    layers, meterset = ((), 0.0) if setup else _layers(item, control_points, metersets.get(number), path)
    sad = [float(value) for value in item.get("VirtualSourceAxisDistances") or ()]
    isocentre = [float(value) for value in first.get("IsocenterPosition") or ()]
    if setup:
        sad, isocentre = (
            (sad if len(sad) == 2 else [0.0, 0.0]),
            (isocentre if len(isocentre) == 3 else [0.0] * 3),
        )
    if len(sad) != 2 or not all(np.isfinite(sad)) or (not setup and min(sad) <= 0):
        raise _refused(path, number, "VirtualSourceAxisDistances are not two distances")
    if len(isocentre) != 3 or not all(np.isfinite(isocentre)):
        raise _refused(path, number, "IsocenterPosition is not a position")
    return PlanBeam(
        number=number,
        name=str(item.get("BeamName") or number).strip(),
        description=str(item.get("BeamDescription") or "").strip(),
        is_setup=setup,
        machine=str(item.get("TreatmentMachineName") or "").strip(),
        scan_mode=str(item.get("ScanMode") or "NONE"),
        gantry_angle_deg=_at_start(first, "GantryAngle", path, number, required=not setup),
        couch_angle_deg=_at_start(first, "PatientSupportAngle", path, number, required=False),
        collimator_angle_deg=_at_start(first, "BeamLimitingDeviceAngle", path, number, required=False),
        isocentre_mm=(isocentre[0], isocentre[1], isocentre[2]),
        snout_position_mm=_at_start(first, "SnoutPosition", path, number, required=not setup),
        sad_mm=(sad[0], sad[1]),
        range_shifters=() if setup else tuple(_range_shifters(item, number, path)),
        meterset_mu=meterset,
        layers=layers,
    )


def _is_setup(item: Dataset) -> bool:
    if kind := str(item.get("TreatmentDeliveryType") or ""):
        return kind == "SETUP"
    description = str(item.get("BeamDescription") or "").strip().casefold()
    return description == "site setup" or str(item.get("BeamName") or "").strip().casefold() == "setup"


def _refuse_what_cannot_be_computed(
    item: Dataset, control_points: Sequence[Dataset], number: int, path: Path
) -> None:
    delivery = str(item.get("TreatmentDeliveryType") or "TREATMENT")
    if delivery not in _DELIVERY_TYPES:
        raise _refused(path, number, f"treatment delivery type {delivery} is not supported")
    radiation = str(item.get("RadiationType") or "absent")
    if radiation != "PROTON":
        raise _refused(path, number, f"radiation type {radiation} is not supported, only PROTON")
    mode = str(item.get("ScanMode") or "absent")
    if mode not in _SCAN_MODES:
        raise _refused(path, number, f"scan mode {mode} is not supported ({', '.join(sorted(_SCAN_MODES))})")
    unit = str(item.get("PrimaryDosimeterUnit") or "absent")
    if unit != "MU":
        raise _refused(path, number, f"primary dosimeter unit {unit} is not supported, only MU")
    for keyword, words in _IN_THE_WAY.items():
        if int(item.get(keyword) or 0) > 0:
            raise _refused(path, number, f"{words} in the beam are not supported")
    for keyword in _FIXED_DURING_A_BEAM:
        values = [float(cp.get(keyword)) for cp in control_points if cp.get(keyword) is not None]
        if values and max(values) - min(values) > _SAME_ANGLE_DEG_OR_MM:
            raise _refused(path, number, f"{keyword} changes during the beam: not supported")
        if keyword.startswith("TableTop") and any(abs(value) > _SAME_ANGLE_DEG_OR_MM for value in values):
            raise _refused(path, number, f"{keyword} {values[0]:g} is not supported, only 0")


def _layers(
    item: Dataset, control_points: Sequence[Dataset], meterset: tuple[float, str] | None, path: Path
) -> tuple[tuple[PlanLayer, ...], float]:
    number = int(item.BeamNumber)
    if len(control_points) % 2:
        raise _refused(path, number, f"{len(control_points)} control points do not stand in pairs")
    cumulative = np.array([float(point.CumulativeMetersetWeight) for point in control_points])
    final = float(item.FinalCumulativeMetersetWeight)
    if not np.isfinite(cumulative).all() or not 0 < final < np.inf:
        raise _refused(path, number, "its meterset weights are no usable numbers")
    steps = np.diff(cumulative, prepend=0.0)  # steps[2k] before layer k, steps[2k + 1] in layer k
    if (np.abs(steps[::2]) > _NO_WEIGHT * final).any() or (steps[1::2] <= 0).any():
        raise _refused(path, number, "its control point pairs are no layers: check CumulativeMetersetWeight")
    if abs(cumulative[-1] - final) > _WEIGHT_SUM_TOLERANCE * final:
        raise _refused(path, number, f"cumulative weights end at {cumulative[-1]:g}, not at {final:g}")
    if meterset is not None and not 0 < meterset[0] < np.inf:
        raise _refused(path, number, f"its BeamMeterset is {meterset[1]}")
    scale = _mu_per_weight(final, meterset)
    layers: list[PlanLayer] = []
    energy = np.nan
    for index, (start, end) in enumerate(zip(control_points[::2], control_points[1::2], strict=True)):
        energy = float(start.get("NominalBeamEnergy") or energy)
        if not 0 < energy < np.inf:
            raise _refused(path, number, f"layer {index + 1} has no energy")
        if abs(float(end.get("NominalBeamEnergy") or energy) - energy) > _SAME_ENERGY_MEV:
            raise _refused(path, number, f"the control points of layer {index + 1} differ in energy")
        spots = _spots(start, end, index + 1, number, path)
        total = float(spots.weights.sum())
        step = float(steps[2 * index + 1])
        if abs(total - step) > _WEIGHT_SUM_TOLERANCE * step:
            raise _refused(
                path, number, f"the spots of layer {index + 1} add up to {total:g}, its meterset is {step:g}"
            )
        layers.append(
            PlanLayer(
                number=index + 1,
                energy_mev=energy,
                positions_mm=spots.positions_mm,
                meterset_mu=spots.weights * (step * scale / total),
                paintings=spots.paintings,
            )
        )
    return tuple(layers), final * scale


def _spots(start: Dataset, end: Dataset, layer: int, number: int, path: Path) -> SpotMap:
    try:
        spots, after = read_spot_map(start), read_spot_map(end)
    except ValueError as error:
        raise _refused(path, number, f"layer {layer}: {error}") from error
    if spots is None or not spots.weights.size:
        raise _refused(path, number, f"layer {layer} has no spots")
    if after is not None and after.weights.any():
        raise _refused(path, number, f"layer {layer}: spot weights after the layer's end")
    return spots


def _mu_per_weight(final: float, meterset: tuple[float, str] | None) -> float:
    """MU per unit of cumulative meterset weight (see the module's rules)."""
    if meterset is None:
        return 1.0
    value, text = meterset
    decimals = len(text.partition(".")[2]) if re.fullmatch(r"[0-9]*\.?[0-9]*", text) else 9
    is_rounded = abs(value - final) <= 0.5 * 10.0**-decimals * (1 + 1e-9)
    return 1.0 if is_rounded else value / final


def _range_shifters(item: Dataset, number: int, path: Path) -> Iterable[RangeShifter]:
    shifters = item.get("RangeShifterSequence") or ()
    if len(shifters) != int(item.get("NumberOfRangeShifters") or 0):
        raise _refused(path, number, "NumberOfRangeShifters is not the number of range shifters")
    for shifter in shifters:
        yield RangeShifter(int(shifter.RangeShifterNumber), str(shifter.get("RangeShifterID") or "").strip())


def _patient_position(setups: Sequence[Dataset], path: Path) -> str:
    positions = sorted({str(setup.PatientPosition) for setup in setups if setup.get("PatientPosition")})
    if len(positions) > 1 or not _PATIENT_POSITIONS.issuperset(positions):
        raise _refused(path, None, f"patient position {' and '.join(positions)[:40]} is not supported")
    return positions[0] if positions else "HFS"


def _at_start(first: Dataset, keyword: str, path: Path, number: int, *, required: bool) -> float:
    value = first.get(keyword)
    if value is None and required:
        raise _refused(path, number, f"{keyword} is missing")
    angle = 0.0 if value is None else float(value)
    if not np.isfinite(angle):
        raise _refused(path, number, f"{keyword} is no number")
    return angle


def _text(ds: Dataset, keyword: str, path: Path) -> str:
    value = str(ds.get(keyword) or "").strip()
    if not value:
        raise _refused(path, None, f"{keyword} is missing")
    return value


def _refused(path: Path, beam: int | None, what: str) -> ValidationError:
    return ValidationError(what, beam=beam, path=path, todo=_EXPORT_AGAIN)
