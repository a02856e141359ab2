"""RT Dose files: written so that a strict reader takes them, read from whoever wrote them.

DICOM PS3.3 A.18.3 (RT Dose IOD), C.8.8.3 (RT Dose module), C.8.8.3.2 (Grid Frame Offset Vector).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTDoseStorage,
)

from mqi.dose.grid import DoseGrid, checked_grid
from mqi.dose.rtdose_write import write_rtdose
from mqi.errors import ValidationError

__all__ = ["RtDose", "read_rtdose", "write_rtdose"]

# Frames may stand off an even spacing by the rounding of their offsets, as a part of the spacing.
UNEVEN_FRAMES = 0.01

# Direction cosines are often rounded to four digits; what is worse is another geometry.
ROUNDED_AXES = 1e-3

# How far the first absolute frame offset may stand off the first plane's z, by its rounding.
ABSOLUTE_OFFSET_MM = 0.01

# A single plane without a thickness gets this one; nothing is ever computed from it.
PLANE_THICKNESS_MM = 1.0

_NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)

# What pydicom 3 was seen to raise, by fuzzing, for bytes that are not a whole DICOM file.
_DAMAGE = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class RtDose:
    """An RT Dose as read.

    Attributes
    ----------
    dose
        In Gy, patient coordinates, slices ascending along k = i x j.
    plan_uid
        SOP instance UID of the plan that it belongs to; None when the file does not say.
    beam_number
        DICOM beam number, when the file is for exactly one beam.
    summation
        DoseSummationType as written: BEAM, PLAN, FRACTION, ...; empty when missing.
    """

    dose: DoseGrid
    plan_uid: str | None
    beam_number: int | None
    summation: str
    units: str
    sop_uid: str
    patient_id: str
    frame_of_reference_uid: str = ""
    dose_type: str = ""


def read_rtdose(path: Path) -> RtDose:
    """Read an RT Dose of any orientation, 16 or 32 bits, with relative or absolute frame offsets.

    Frames in descending order are turned round, so that the grid is always ascending and right-handed.

    Raises
    ------
    ValidationError
        The file is damaged, is no RT Dose, is not in GY, is compressed, or contradicts itself.
    """
    todo = "Export the dose again"
    try:
        return _parse(pydicom.dcmread(path))
    except ValidationError as error:
        error.path, error.todo = path, error.todo or todo
        raise
    except _DAMAGE as error:
        # The library's message may quote the file's content; the kind of failure says enough.
        what = f"cannot be read as DICOM ({type(error).__name__})"
        raise ValidationError(what, path=path, todo=todo) from None


def _parse(ds: Dataset) -> RtDose:
    if ds.get("SOPClassUID") != RTDoseStorage:
        kind = ds.get("Modality") or "without a modality"
        raise ValidationError(f"is no RT Dose (it is {kind})", todo="Put the RT Dose file in its place")
    units = str(ds.get("DoseUnits") or "")
    if units != "GY":
        raise ValidationError(
            f"has dose units {units or 'missing'}; only GY can be compared",
            todo="Export the dose as absolute dose",
        )
    values = _values(ds)
    plan_uid, beam_number = _reference(ds)
    return RtDose(
        dose=_grid(ds, values),
        plan_uid=plan_uid,
        beam_number=beam_number,
        summation=str(ds.get("DoseSummationType") or ""),
        units=units,
        sop_uid=str(_need(ds, "SOPInstanceUID")),
        patient_id=str(ds.get("PatientID") or ""),
        frame_of_reference_uid=str(ds.get("FrameOfReferenceUID") or ""),
        dose_type=str(ds.get("DoseType") or ""),
    )


def _need(ds: Dataset, keyword: str) -> object:
    """Value of an attribute that must be there and not be empty."""
    value = ds.get(keyword)
    if value is None or value == "":
        raise ValidationError(f"lacks {keyword}")
    return value


def _whole(ds: Dataset, keyword: str, allowed: range | tuple[int, ...]) -> int:
    value = int(str(_need(ds, keyword)))
    if value not in allowed:
        raise ValidationError(f"has {keyword} {value}, which RT Dose cannot have")
    return value


def _numbers(ds: Dataset, keyword: str, count: int) -> NDArray[np.float64]:
    numbers = np.array(_need(ds, keyword), dtype=np.float64).reshape(-1)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValidationError(f"has a {keyword} that is not {count} numbers")
    return numbers


def _values(ds: Dataset) -> NDArray[np.float64]:
    """(frames, rows, columns) dose in Gy."""
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax not in _NATIVE:
        raise ValidationError(f"has compressed pixels ({syntax.name})", todo="Export the dose uncompressed")
    shape = (
        _whole(ds, "NumberOfFrames", range(1, 2**16)) if "NumberOfFrames" in ds else 1,
        _whole(ds, "Rows", range(1, 2**16)),
        _whole(ds, "Columns", range(1, 2**16)),
    )
    if ds.get("SamplesPerPixel", 1) != 1:
        raise ValidationError("has more than one sample per voxel")
    bits = _whole(ds, "BitsAllocated", (16, 32))
    if _whole(ds, "BitsStored", (16, 32)) != bits:
        raise ValidationError(f"stores {ds.BitsStored} bits in {bits}")
    signed = _whole(ds, "PixelRepresentation", (0, 1)) == 1
    scaling = float(str(_need(ds, "DoseGridScaling")))
    if not (np.isfinite(scaling) and scaling > 0):
        raise ValidationError(f"has DoseGridScaling {scaling:g}: no dose can be read from it")
    pixels = bytes(ds.PixelData) if "PixelData" in ds else b""
    expected = shape[0] * shape[1] * shape[2] * bits // 8
    if len(pixels) != expected:
        raise ValidationError(
            f"has {len(pixels)} bytes of pixels, but {shape[0]} frames of {shape[1]} x {shape[2]} voxels "
            f"of {bits} bits need {expected}"
        )
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    counts = np.frombuffer(pixels, dtype=f"{order}{'i' if signed else 'u'}{bits // 8}").reshape(shape)
    if signed and counts.min() < 0:
        raise ValidationError(f"has negative doses (down to {counts.min() * scaling:.4g} Gy)")
    return counts * scaling


def _grid(ds: Dataset, values: NDArray[np.float64]) -> DoseGrid:
    cosines = _numbers(ds, "ImageOrientationPatient", 6).reshape(2, 3)
    if not np.allclose(cosines @ cosines.T, np.eye(2), rtol=0, atol=ROUNDED_AXES):
        raise ValidationError("has an ImageOrientationPatient that is not two perpendicular directions")
    i = cosines[0] / np.linalg.norm(cosines[0])
    j = cosines[1] - (cosines[1] @ i) * i
    j /= np.linalg.norm(j)
    k = np.cross(i, j)
    origin = _numbers(ds, "ImagePositionPatient", 3)
    spacing_j, spacing_i = _numbers(ds, "PixelSpacing", 2)
    if len(values) == 1:
        thickness = ds.get("SliceThickness")
        spacing_k = float(thickness) if thickness else PLANE_THICKNESS_MM
    else:
        spacing_k = _frame_step_mm(ds, len(values), float(origin[2]), float(k[2]))
        if spacing_k < 0:
            origin = origin + (len(values) - 1) * spacing_k * k
            values, spacing_k = np.ascontiguousarray(values[::-1]), -spacing_k
    return checked_grid(values, origin, [spacing_i, spacing_j, spacing_k], np.stack([i, j, k]))


def _frame_step_mm(ds: Dataset, count: int, origin_z: float, normal_z: float) -> float:
    """Step from one frame to the next along the normal, mm; negative when they descend.

    PS3.3 C.8.8.3.2: offsets that begin with 0 are relative to the first plane; offsets that begin with
    the z of ImagePositionPatient are patient coordinates, which only transverse planes can have.
    """
    offsets = _numbers(ds, "GridFrameOffsetVector", count)
    if offsets[0] != 0:
        transverse = abs(abs(normal_z) - 1) < ROUNDED_AXES
        if not transverse or abs(offsets[0] - origin_z) > ABSOLUTE_OFFSET_MM:
            raise ValidationError(
                f"has a GridFrameOffsetVector that begins with {offsets[0]:g}, "
                "which is neither 0 nor the z of the first plane"
            )
        offsets = (offsets - offsets[0]) * np.sign(normal_z)
    step = float(offsets[-1] - offsets[0]) / (count - 1)
    if step == 0 or np.abs(np.diff(offsets) - step).max() > UNEVEN_FRAMES * abs(step):
        raise ValidationError("has frames that are not evenly spaced")
    return step


def _reference(ds: Dataset) -> tuple[str | None, int | None]:
    """The plan's SOP instance UID, and the beam number where there is exactly one beam."""
    plans = ds.get("ReferencedRTPlanSequence") or []
    if len(plans) != 1:
        return None, None
    uid = str(plans[0].get("ReferencedSOPInstanceUID") or "") or None
    beams = [
        int(str(_need(beam, "ReferencedBeamNumber")))
        for group in plans[0].get("ReferencedFractionGroupSequence") or []
        for beam in group.get("ReferencedBeamSequence") or []
    ]
    return uid, beams[0] if len(beams) == 1 else None
