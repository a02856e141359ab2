"""What the DICOM files beside a case's logs are, told by their headers alone."""

from __future__ import annotations

import os
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, RTDoseStorage, RTIonPlanStorage

from mqi.errors import ValidationError
from mqi.intake.rules import Seen

__all__ = ["CT", "DOSE", "ION_PLAN", "Header", "headers_of"]

ION_PLAN = str(RTIonPlanStorage)
DOSE = str(RTDoseStorage)
CT = str(CTImageStorage)

_PREAMBLE = 128  # bytes before "DICM" (PS3.10 section 7.1)
_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "ImagePositionPatient",
    "DoseSummationType",
    "ReferencedRTPlanSequence",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "SamplesPerPixel",
)

# What pydicom 3 raises for bytes that are no whole DICOM file, found by fuzzing.
_DAMAGE = (
    InvalidDicomError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class Header(NamedTuple):
    """What one DICOM file says of itself. ``path`` is relative to the case folder, UIDs are "" when missing.

    ``damage`` says why the file cannot be what it claims to be; the other fields then mean nothing.
    ``plan_uid`` and ``beam_numbers`` are an RT Dose's references (PS3.3 C.8.8.3).
    """

    path: str
    sop_class: str = ""
    sop_uid: str = ""
    series_uid: str = ""
    frame_uid: str = ""
    patient_id: str = ""
    height_mm: float = 0.0
    summation: str = ""
    plan_uid: str = ""
    beam_numbers: tuple[int, ...] = ()
    damage: str = ""


def headers_of(folder: Path, files: tuple[Seen, ...]) -> tuple[Header, ...]:
    """Headers of those files that are DICOM or, by their ``.dcm``, say so.

    A file is read again only when its size or time changed. Empty files and links are left out.
    """
    found = (
        _header(str(folder), seen.path, seen.size, seen.mtime_ns)
        for seen in files
        if seen.size and not seen.is_link
    )
    return tuple(header for header in found if header is not None)


@lru_cache(maxsize=65_536)
def _header(folder: str, path: str, size: int, mtime_ns: int) -> Header | None:
    """``mtime_ns`` is there for the cache alone: a file that changed is another question."""
    file = Path(folder, path)
    named = file.suffix.lower() in (".dcm", ".dicom")
    try:
        with file.open("rb") as stream:
            if stream.read(_PREAMBLE + 4)[_PREAMBLE:] != b"DICM":
                return Header(path, damage="is a damaged DICOM file: no DICM") if named else None
            stream.seek(0, os.SEEK_SET)
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
            return _from_dataset(path, size - stream.tell(), dataset)
    except ValidationError as error:
        return Header(path, damage=error.what)
    except OSError as error:
        return Header(path, damage=f"cannot be read ({error.strerror})")
    except _DAMAGE:
        return Header(path, damage="is a damaged DICOM file")


def _from_dataset(path: str, bytes_left: int, dataset: Dataset) -> Header:
    sop_class = str(dataset.get("SOPClassUID", ""))
    if not sop_class:
        raise ValidationError("is a damaged DICOM file: it does not say what it is")
    if sop_class in (CT, DOSE):
        _check_length(bytes_left, dataset)
    position = dataset.get("ImagePositionPatient") or (0, 0, 0)
    plans = dataset.get("ReferencedRTPlanSequence") or []
    return Header(
        path=path,
        sop_class=sop_class,
        sop_uid=str(dataset.get("SOPInstanceUID", "")),
        series_uid=str(dataset.get("SeriesInstanceUID", "")),
        frame_uid=str(dataset.get("FrameOfReferenceUID", "")),
        patient_id=str(dataset.get("PatientID") or ""),
        height_mm=float(position[2]),
        summation=str(dataset.get("DoseSummationType", "")),
        plan_uid=str(plans[0].get("ReferencedSOPInstanceUID", "")) if plans else "",
        beam_numbers=tuple(
            int(beam.ReferencedBeamNumber)
            for plan in plans
            for group in plan.get("ReferencedFractionGroupSequence") or []
            for beam in group.get("ReferencedBeamSequence") or []
        ),
    )


def _check_length(bytes_left: int, dataset: Dataset) -> None:
    """Refuse an image with fewer bytes behind its header than its pixels need: a copy that broke off."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or syntax.is_compressed or syntax.is_deflated:
        return
    pixels = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    pixels *= int(dataset.get("NumberOfFrames") or 1) * int(dataset.get("SamplesPerPixel") or 1)
    needed = pixels * int(dataset.get("BitsAllocated") or 0) // 8
    tag_and_length = 8 if syntax.is_implicit_VR else 12  # PS3.5 7.1
    if not needed or bytes_left < needed + tag_and_length:
        raise ValidationError(f"is a damaged DICOM file: {bytes_left} bytes of pixels, {needed} are needed")
