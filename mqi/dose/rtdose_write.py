"""Writing RT Dose so that a strict reader takes it (see mqi.dose.rtdose)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_UP, Context, Decimal
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import RE_VALID_UID, ExplicitVRLittleEndian, RTDoseStorage, RTIonPlanStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from mqi.dose.grid import DoseGrid, checked_grid
from mqi.errors import ResourceError, ValidationError
from mqi.files import atomic_path
from mqi.plan import IonPlan

__all__ = ["write_rtdose"]

MANUFACTURER = "MQI Communicator"
DOSE_TYPES = ("PHYSICAL", "EFFECTIVE")
SCALING_DIGITS = 10  # 1.234567890E-100 has the 16 characters of a DS (PS3.5 6.2)
LONG_STRING = 64  # characters of an LO, and of a UID (PS3.5 6.2)
LARGEST_PIXEL_DATA = 2**32 - 2  # bytes: an even 32-bit length (PS3.5 7.1)
LARGEST_US = 2**16 - 1  # Rows, Columns

_FRAME_OFFSETS_TAG = 0x3004000C


def write_rtdose(
    path: Path,
    dose: DoseGrid,
    *,
    plan: IonPlan,
    beam_number: int | None,
    bits: int = 32,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    comment: str = "",
    dose_type: str = "PHYSICAL",
    software_version: str = "",
) -> None:
    """Write a dose as DICOM RT Dose: explicit little endian, unsigned integers of 16 or 32 bits.

    The patient is named by the patient ID alone; birth date, sex and dates stay empty. The same
    arguments with both UIDs given make the same bytes. The file appears whole or not at all.

    Parameters
    ----------
    dose
        Gy; at least one voxel above 0.
    beam_number
        DICOM number of the beam that gave the dose (DoseSummationType BEAM); None: the whole plan.
    series_uid, sop_uid
        Of the new object; made up when not given.
    comment
        Shown as Dose Comment, which holds 64 characters; a longer one stands whole in Image Comments.

    Raises
    ------
    ValidationError
        The dose is not finite, negative, zero everywhere or too large for the format, or the plan
        lacks the beam, a UID or the patient ID.
    """
    if bits not in (16, 32):
        raise ValueError(f"RT Dose has 16 or 32 bits, not {bits}")
    if dose_type not in DOSE_TYPES:
        raise ValueError(f"dose type {dose_type!r} is none of {', '.join(DOSE_TYPES)}")
    try:
        _check_writable(dose, plan, beam_number, bits)
        scaling, pixels = _to_pixels(dose.values, bits)
    except ValidationError as error:
        error.path, error.beam = path, beam_number
        raise
    dataset = _dataset(plan, beam_number, series_uid, sop_uid)
    dataset.DoseType = dose_type
    if comment:
        plain = " ".join(comment.replace("\\", "/").split())
        dataset.DoseComment = plain if len(plain) <= LONG_STRING else plain[: LONG_STRING - 3] + "..."
        dataset.ImageComments = plain
    if software_version:
        dataset.SoftwareVersions = software_version
    _set_geometry(dataset, dose)
    dataset.DoseGridScaling = scaling
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelData = pixels.tobytes()
    _save(path, dataset)


def _check_writable(dose: DoseGrid, plan: IonPlan, beam_number: int | None, bits: int) -> None:
    checked_grid(dose.values, dose.origin_mm, dose.spacing_mm, dose.axes)
    todo = "Look at the engine's output and its log; do not use this dose"
    if not np.isfinite(dose.values).all():
        raise ValidationError("the dose has voxels that are not a number or infinite", todo=todo)
    if dose.values.min() < 0:
        raise ValidationError(f"the dose has negative voxels (down to {dose.values.min():.4g} Gy)", todo=todo)
    if dose.values.max() == 0:
        raise ValidationError("the dose is zero everywhere", todo=todo)
    if max(dose.values.shape) > LARGEST_US or dose.values.size * bits // 8 > LARGEST_PIXEL_DATA:
        raise ValidationError(
            f"a dose grid of {dose.values.shape} voxels does not fit into one RT Dose file",
            todo="Use a coarser or smaller dose grid",
        )
    if len(plan.patient_id) > LONG_STRING or not plan.patient_id.isprintable() or "\\" in plan.patient_id:
        raise ValidationError(
            f"the plan's patient ID is longer than {LONG_STRING} characters or has one that DICOM forbids",
            todo="Correct the patient ID and export the plan again",
        )
    if not plan.patient_id.strip():
        raise ValidationError("the plan has no patient ID, which RT Dose needs", todo="Export the plan again")
    for name, uid in (
        ("SOP instance UID", plan.sop_uid),
        ("study instance UID", plan.study_uid),
        ("frame of reference UID", plan.frame_of_reference_uid),
    ):
        if len(uid) > LONG_STRING or not re.fullmatch(RE_VALID_UID, uid):
            raise ValidationError(
                f"the plan's {name} is missing or no UID, and RT Dose needs it", todo="Export the plan again"
            )
    if beam_number is not None and beam_number not in {beam.number for beam in plan.beams}:
        raise ValidationError(f"the plan has no beam {beam_number}", todo="Check which plan the dose is for")


def _to_pixels(values: NDArray[np.float64], bits: int) -> tuple[str, NDArray[np.uint16] | NDArray[np.uint32]]:
    """Scale to integers by exactly the decimal number that the file will hold, rounded up so that the
    largest dose fits.
    """
    largest = 2**bits - 1
    exact = Decimal(float(values.max())) / largest
    scaling = f"{Context(prec=SCALING_DIGITS, rounding=ROUND_UP).plus(exact):.{SCALING_DIGITS - 1}E}"
    factor = float(scaling)
    if factor < np.finfo(np.float64).tiny:
        raise ValidationError(
            f"the largest dose is {values.max():.4g} Gy, too small to be written",
            todo="Check the number of protons and the dose unit of the engine",
        )
    counts = np.rint(values / factor)
    return scaling, counts.astype("<u2" if bits == 16 else "<u4")


def _dataset(plan: IonPlan, beam_number: int | None, series_uid: str | None, sop_uid: str | None) -> Dataset:
    """Everything but the geometry and the pixels."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = RTDoseStorage
    ds.SOPInstanceUID = sop_uid or generate_uid(prefix=None)
    ds.PatientID = plan.patient_id
    ds.PatientName = plan.patient_id.replace("=", " ").replace("^", " ")  # they part a name's components
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.StudyInstanceUID = plan.study_uid
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ""
    ds.Modality = "RTDOSE"
    ds.SeriesInstanceUID = series_uid or generate_uid(prefix=None)
    ds.SeriesNumber = 1
    ds.InstanceNumber = 1
    ds.OperatorsName = ""
    ds.FrameOfReferenceUID = plan.frame_of_reference_uid
    ds.PositionReferenceIndicator = ""
    ds.Manufacturer = ds.ManufacturerModelName = MANUFACTURER
    ds.DoseUnits = "GY"
    ds.DoseSummationType = "PLAN" if beam_number is None else "BEAM"
    reference = Dataset()
    reference.ReferencedSOPClassUID = RTIonPlanStorage
    reference.ReferencedSOPInstanceUID = plan.sop_uid
    if beam_number is not None:
        beam = Dataset()
        beam.ReferencedBeamNumber = beam_number
        group = Dataset()
        group.ReferencedFractionGroupNumber = 1  # the machine's plans have one fraction group
        group.ReferencedBeamSequence = [beam]
        reference.ReferencedFractionGroupSequence = [group]
    ds.ReferencedRTPlanSequence = [reference]
    return ds


def _set_geometry(ds: Dataset, dose: DoseGrid) -> None:
    nk, nj, ni = dose.values.shape
    spacing_i, spacing_j, spacing_k = (float(value) for value in dose.spacing_mm)
    ds.ImagePositionPatient = _decimals(dose.origin_mm)
    ds.ImageOrientationPatient = _decimals(dose.axes[:2].ravel())
    ds.PixelSpacing = _decimals([spacing_j, spacing_i])  # between rows, then between columns
    ds.SliceThickness = format_number_as_ds(spacing_k)
    ds.Rows, ds.Columns = nj, ni
    if nk > 1:  # a single plane is no multi-frame object: an offset alone is against the standard
        ds.NumberOfFrames = nk
        ds.FrameIncrementPointer = _FRAME_OFFSETS_TAG
        ds.GridFrameOffsetVector = _decimals(spacing_k * np.arange(nk))
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelRepresentation = 0


def _decimals(numbers: Iterable[float]) -> list[str]:
    """Decimal strings of at most 16 characters; a minus in front of zero is dropped."""
    return [format_number_as_ds(float(number) + 0.0) for number in numbers]


def _save(path: Path, dataset: Dataset) -> None:
    """Write beside, reach the disk, rename: a reader or a power cut never meets half a file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    try:
        with atomic_path(path) as part, part.open("wb") as stream:
            pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    except OSError as error:
        raise ResourceError(
            f"the dose cannot be written ({error.strerror})",
            path=path,
            todo="Check the free space and the rights of this folder",
        ) from error
