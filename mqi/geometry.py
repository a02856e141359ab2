"""IEC 61217 coordinates: from a beam's own axes to the patient's.

A spot's x, y stand in the beam limiting device frame at the isocentre plane; the beam travels along -z from
the source at z = +SAD. With the collimator at 0 this frame is the gantry's. Then (IEC 61217, all angles in
degrees)::

    gantry g about y:        x_f =  x_g cos g + z_g sin g      z_f = -x_g sin g + z_g cos g     y_f = y_g
    patient support t about z:  x_s =  x_f cos t + y_f sin t   y_s = -x_f sin t + y_f cos t     z_s = z_f
    table -> DICOM patient, head first supine:  x_p = x_s      y_p = -z_s                        z_p = y_s
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mqi.errors import ValidationError

__all__ = ["bev_axes", "collimator_to_gantry", "fixed_to_support", "gantry_to_fixed", "support_to_patient"]

_LEAST_COLLIMATOR_DEG = 1e-3

# Rows: x_p, y_p, z_p (DICOM, LPS) in terms of x_s, y_s, z_s of the table.
_PATIENT_FROM_SUPPORT = {"HFS": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])}


def collimator_to_gantry(angle_deg: float) -> NDArray[np.float64]:
    """(3, 3) matrix from beam limiting device to gantry coordinates: a rotation about z.

    Raises ValidationError for any angle but 0 (a scanned beam has no use for another one; none was verified).
    """
    remainder = math.remainder(angle_deg, 360.0)
    if not math.isfinite(angle_deg) or abs(remainder) > _LEAST_COLLIMATOR_DEG:
        raise ValidationError(
            f"the beam limiting device angle is {angle_deg:g} degrees; only 0 is supported",
            todo="Plan the beam with a beam limiting device angle of 0",
        )
    return np.eye(3)


def gantry_to_fixed(angle_deg: float) -> NDArray[np.float64]:
    """(3, 3) matrix from gantry to IEC fixed coordinates."""
    cos, sin = _cos_sin(angle_deg, "gantry")
    return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def fixed_to_support(angle_deg: float) -> NDArray[np.float64]:
    """(3, 3) matrix from IEC fixed to patient support (couch) coordinates."""
    cos, sin = _cos_sin(angle_deg, "patient support")
    return np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


def support_to_patient(patient_position: str) -> NDArray[np.float64]:
    """(3, 3) matrix from patient support to DICOM patient coordinates (LPS).

    Raises ValidationError for a patient position that is not supported (any but HFS).
    """
    try:
        return _PATIENT_FROM_SUPPORT[patient_position].copy()
    except KeyError:
        raise ValidationError(
            f"the patient position is {patient_position or 'not given'}; "
            f"only {', '.join(_PATIENT_FROM_SUPPORT)} is supported",
            todo="Plan the QA case head first supine",
        ) from None


def bev_axes(
    gantry_deg: float, couch_deg: float, collimator_deg: float, patient_position: str
) -> NDArray[np.float64]:
    """Axes of the beam's eye view in DICOM patient coordinates.

    Returns
    -------
    (3, 3) rows: unit vectors of x_b, y_b, and the beam's direction (downstream, -z_b). As the third row is
    -z_b the three are left-handed; a right-handed grid is (x_b, y_b, -direction).

    Raises
    ------
    ValidationError
        The collimator is turned, the patient does not lie head first supine, or an angle is not finite.
    """
    to_patient = (
        support_to_patient(patient_position)
        @ fixed_to_support(couch_deg)
        @ gantry_to_fixed(gantry_deg)
        @ collimator_to_gantry(collimator_deg)
    )
    return np.stack([to_patient[:, 0], to_patient[:, 1], -to_patient[:, 2]])


def _cos_sin(angle_deg: float, what: str) -> tuple[float, float]:
    """Cosine and sine, exact at the right angles, where rounding would tilt an upright grid."""
    if not math.isfinite(angle_deg):
        raise ValidationError(f"the {what} angle is not a number", todo="Check the plan's control points")
    quarter, rest = divmod(angle_deg % 360.0, 90.0)
    if rest == 0.0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarter) % 4]
    angle_rad = math.radians(angle_deg)
    return math.cos(angle_rad), math.sin(angle_rad)
