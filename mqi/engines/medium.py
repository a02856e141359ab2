"""What a dose is computed in: the patient's CT, or a box of water where it stands in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from mqi.dose.grid import DoseGrid
from mqi.engines.contract import GridGeometry
from mqi.errors import ValidationError
from mqi.geometry import bev_axes
from mqi.plan import PlanBeam

__all__ = [
    "CtSeries",
    "WaterPhantom",
    "read_ct_rsp",
    "read_ct_series",
    "relative_stopping_power",
    "water_box",
    "water_phantom",
]

_SLICE_TOLERANCE_MM = 0.01
_HEADER = [
    *("Modality", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientPosition", "Rows"),
    *("Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
]

# CT number -> relative stopping power. From 200 HU on: matRad's default table (e0404/matRad,
# matRad_default.hlut); below it straight from air (0.001) through water (1 at 0 HU), which that table misses
# by 0.4 %. It is no scanner's calibration.
_HU = np.array([-1000.0, 0.0, 200.0, 449.0, 2000.0, 2048.0, 3071.0])
_RSP = np.array([0.001, 1.0, 1.2, 1.20001, 2.49066, 2.5306, 2.53061])


def relative_stopping_power(hu: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stopping power relative to water of CT numbers (any shape): piecewise linear, constant beyond."""
    return np.asarray(np.interp(hu, _HU, _RSP), dtype=np.float64)


@dataclass(frozen=True)
class CtSeries:
    """An axial CT: its files from the lowest z to the highest, and where its grid stands."""

    files: tuple[Path, ...]
    frame_of_reference_uid: str
    geometry: GridGeometry


def read_ct_series(files: Sequence[Path]) -> CtSeries:
    """Put the slices in order and check that they are one whole axial series. Reads headers only.

    Raises
    ------
    ValidationError
        A file is no CT slice, slices of several series, an orientation that is not axial, a slice missing or
        twice, or an image that is not square: MOQUI allocates the y axis with the number of columns
        (mqi_ct.hpp) and breaks its heap where there are more rows than columns.
    """
    if len(files) < 2:
        raise ValidationError(
            f"the CT has {len(files)} slices; at least 2 are needed", todo="Export the whole CT series"
        )
    slices = sorted(
        (_read_header(path) for path in files), key=lambda item: float(item[1].ImagePositionPatient[2])
    )
    first = slices[0][1]
    for path, header in slices:
        _check_slice(path, header, first)
    positions = np.array([[float(v) for v in header.ImagePositionPatient] for _, header in slices])
    steps = np.diff(positions[:, 2])
    step = float(np.median(steps))
    wrong = np.flatnonzero((np.abs(steps - step) > _SLICE_TOLERANCE_MM) | (steps < _SLICE_TOLERANCE_MM))
    if wrong.size:
        at = positions[int(wrong[0]), 2]
        raise ValidationError(
            f"a CT slice is missing or stands twice after z = {at:g} mm: the step there is "
            f"{steps[int(wrong[0])]:g} mm instead of {step:g} mm",
            path=slices[int(wrong[0])][0],
            todo="Export the whole CT series with equal slice distances",
        )
    if np.abs(positions[:, :2] - positions[0, :2]).max() > _SLICE_TOLERANCE_MM:
        raise ValidationError(
            "the CT's slices are not above one another",
            path=slices[0][0],
            todo="Export the CT without a tilt",
        )
    row_mm, column_mm = (float(v) for v in first.PixelSpacing)  # between rows (y), between columns (x)
    return CtSeries(
        tuple(path for path, _ in slices),
        str(first.get("FrameOfReferenceUID", "")),
        GridGeometry(
            shape=(len(slices), int(first.Rows), int(first.Columns)),
            origin_mm=(float(positions[0, 0]), float(positions[0, 1]), float(positions[0, 2])),
            spacing_mm=(column_mm, row_mm, float((positions[-1, 2] - positions[0, 2]) / (len(slices) - 1))),
            axes=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        ),
    )


def _read_header(path: Path) -> tuple[Path, pydicom.Dataset]:
    try:
        header = pydicom.dcmread(path, specific_tags=_HEADER, stop_before_pixels=True)
        if header.Modality != "CT" or len(header.ImagePositionPatient) != 3 or len(header.PixelSpacing) != 2:
            raise ValueError("not a CT image")
        _ = (header.Rows, header.Columns, header.ImageOrientationPatient)
    except (OSError, InvalidDicomError, AttributeError, TypeError, ValueError) as error:
        raise ValidationError(
            f"not a readable CT slice ({error})", path=path, todo="Copy the CT series again"
        ) from error
    return path, header


def _check_slice(path: Path, header: pydicom.Dataset, first: pydicom.Dataset) -> None:
    axial = np.allclose([float(v) for v in header.ImageOrientationPatient], [1, 0, 0, 0, 1, 0], atol=1e-4)
    reason = ""
    if not axial:
        reason = "the CT's orientation is not axial (1, 0, 0, 0, 1, 0)"
    elif header.Rows != header.Columns:
        reason = (
            f"the CT has {header.Rows} rows and {header.Columns} columns; "
            "MOQUI needs square slices (it sizes the y axis by the number of columns)"
        )
    elif header.get("SeriesInstanceUID") != first.get("SeriesInstanceUID"):
        reason = "the CT's files belong to several series"
    elif header.Rows != first.Rows or list(header.PixelSpacing) != list(first.PixelSpacing):
        reason = "the CT's slices have different sizes or pixel spacings"
    elif not all(float(v) > 0 for v in header.PixelSpacing):
        reason = "the CT's pixel spacing is not positive"
    if reason:
        raise ValidationError(reason, path=path, todo="Export one axial CT series with square slices")


def read_ct_rsp(series: CtSeries) -> DoseGrid:
    """The CT as stopping powers relative to water, on its own grid.

    Raises ValidationError when a slice's pixels cannot be read.
    """
    values = np.empty(series.geometry.shape, dtype=np.float64)
    for index, path in enumerate(series.files):
        try:
            image = pydicom.dcmread(path)
            stored = image.pixel_array.astype(np.float64)
            hu = stored * float(image.get("RescaleSlope", 1)) + float(image.get("RescaleIntercept", 0))
            values[index] = relative_stopping_power(hu)
        except (OSError, InvalidDicomError, AttributeError, ValueError, NotImplementedError) as error:
            raise ValidationError(
                f"the CT slice's pixels cannot be read ({error})", path=path, todo="Copy the CT series again"
            ) from error
    return _grid(series.geometry, values)


@dataclass(frozen=True)
class WaterPhantom:
    """A box of water in the beam's eye view: the box, and the grid on which its dose is wanted."""

    box: GridGeometry
    score: GridGeometry


def water_phantom(
    beam: PlanBeam,
    patient_position: str,
    *,
    count: tuple[int, int, int],
    unit_mm: tuple[int, int, int],
    position_mm: tuple[int, int, int],
    two_centimetre_mode: bool = False,
) -> WaterPhantom:
    """Place MOQUI's water phantom in the patient's coordinates, its origin at the isocentre.

    ``count`` voxels of ``unit_mm`` along x_b, y_b, z_b, from the corner at ``position_mm`` on. z_b points
    against the beam (MOQUI's beams travel along -z), so that the axes are right-handed (k = i x j) and slice
    0 is the deepest one. In MOQUI's TwoCentimeterMode the water reaches from z = 20 to -380 mm and its dose
    is wanted in one slice of 400 x 400 pixels of 1 mm, from z = 1 to -1 mm: at 2 cm depth.
    """
    if two_centimetre_mode:
        box = _in_beam(beam, patient_position, (1, 1, 1), (400, 400, 400), (-200, -200, -380))
        return WaterPhantom(box, _in_beam(beam, patient_position, (400, 400, 1), (1, 1, 2), (-200, -200, -1)))
    whole = (count[0] * unit_mm[0], count[1] * unit_mm[1], count[2] * unit_mm[2])
    return WaterPhantom(
        _in_beam(beam, patient_position, (1, 1, 1), whole, position_mm),
        _in_beam(beam, patient_position, count, unit_mm, position_mm),
    )


def _in_beam(
    beam: PlanBeam,
    patient_position: str,
    count: tuple[int, int, int],
    unit_mm: tuple[int, int, int],
    position_mm: tuple[int, int, int],
) -> GridGeometry:
    x_b, y_b, downstream = bev_axes(
        beam.gantry_angle_deg, beam.couch_angle_deg, beam.collimator_angle_deg, patient_position
    )
    axes = np.stack([x_b, y_b, -downstream])
    first = np.array(position_mm) + np.array(unit_mm) / 2
    origin = np.array(beam.isocentre_mm) + first @ axes
    return GridGeometry(
        shape=(count[2], count[1], count[0]),
        origin_mm=_triple(origin),
        spacing_mm=(float(unit_mm[0]), float(unit_mm[1]), float(unit_mm[2])),
        axes=(_triple(axes[0]), _triple(axes[1]), _triple(axes[2])),
    )


def water_box(geometry: GridGeometry) -> DoseGrid:
    """Water (relative stopping power 1) over the whole of a grid."""
    return _grid(geometry, np.ones(geometry.shape))


def _grid(geometry: GridGeometry, values: NDArray[np.float64]) -> DoseGrid:
    return DoseGrid(
        values, np.array(geometry.origin_mm), np.array(geometry.spacing_mm), np.array(geometry.axes)
    )


def _triple(row: NDArray[np.float64]) -> tuple[float, float, float]:
    """A row as plain numbers, -0.0 written as 0.0 so that equal geometries are equal text."""
    return (float(row[0]) + 0.0, float(row[1]) + 0.0, float(row[2]) + 0.0)
