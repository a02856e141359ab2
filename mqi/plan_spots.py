"""Spot maps of an ion control point: DICOM's own tags, and the private ones of MOSAIQ (IMPAC).

Standard: ScanSpotPositionMap (300A,0394) and ScanSpotMetersetWeights (300A,0396), DICOM PS3.3 C.8.8.25.
Private, creator "IMPAC" in group 300B (measured): 1092 number of spots as text, 1094 positions x0, y0,
x1, ... and 1096 weights, both float32 LITTLE ENDIAN whatever VR they carry. Decoded as float32: reading
only their upper halves, as was done elsewhere, costs up to 0.8 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

__all__ = ["SpotMap", "read_spot_map"]

_CREATOR = "IMPAC"
_GROUP = 0x300B
_COUNT, _POSITIONS, _WEIGHTS, _PAINTINGS = 0x92, 0x94, 0x96, 0x9A
_POSITION_TOLERANCE_MM = 0.01  # two copies of one map may differ by the rounding of decimal strings
_WEIGHT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SpotMap:
    """The spots of one control point: (n, 2) mm, (n,) weights, and how often they are painted."""

    positions_mm: NDArray[np.float64]
    weights: NDArray[np.float64]
    paintings: int


def read_spot_map(control_point: Dataset) -> SpotMap | None:
    """Read a control point's spots, None where it has none.

    Raises
    ------
    ValueError
        Lengths disagree, a value is no number, or the standard and the private map contradict.
    """
    standard, private = _standard(control_point), _private(control_point)
    if standard is None or private is None:
        return standard or private
    if standard.weights.size != private.weights.size:
        raise ValueError("the standard and the private spot map have different numbers of spots")
    apart = np.abs(standard.positions_mm - private.positions_mm).max(initial=0.0)
    largest = np.abs(standard.weights).max(initial=0.0)
    unlike = np.abs(standard.weights - private.weights).max(initial=0.0)
    if apart > _POSITION_TOLERANCE_MM or unlike > _WEIGHT_TOLERANCE * largest:
        raise ValueError("the standard and the private spot map contradict each other")
    return standard


def _standard(control_point: Dataset) -> SpotMap | None:
    positions = _floats(control_point.get("ScanSpotPositionMap"))
    weights = _floats(control_point.get("ScanSpotMetersetWeights"))
    if positions is None and weights is None:
        return None
    count = control_point.get("NumberOfScanSpotPositions")
    paintings = control_point.get("NumberOfPaintings")
    return _checked(positions, weights, count, 1 if paintings is None else int(paintings))


def _private(control_point: Dataset) -> SpotMap | None:
    try:
        block = control_point.private_block(_GROUP, _CREATOR)
    except KeyError:
        return None
    raw = {
        element: _raw_bytes(control_point, block.get_tag(element))
        for element in (_COUNT, _POSITIONS, _WEIGHTS, _PAINTINGS)
    }
    if not raw[_POSITIONS] and not raw[_WEIGHTS]:
        return None
    for element in (_POSITIONS, _WEIGHTS):
        if len(raw[element]) % 4:
            raise ValueError("a private spot map is no whole number of float32 values")
    return _checked(
        np.frombuffer(raw[_POSITIONS], dtype="<f4").astype(np.float64),
        np.frombuffer(raw[_WEIGHTS], dtype="<f4").astype(np.float64),
        _ascii_integer(raw[_COUNT]),
        _ascii_integer(raw[_PAINTINGS]) or 1,
    )


def _checked(
    positions: NDArray[np.float64] | None, weights: NDArray[np.float64] | None, count: object, paintings: int
) -> SpotMap:
    if positions is None or weights is None:
        raise ValueError("a spot map has positions without weights or weights without positions")
    if positions.size != 2 * weights.size or (count is not None and int(str(count)) != weights.size):
        raise ValueError(
            f"a spot map has {positions.size} coordinates, {weights.size} weights and says {count} spots"
        )
    if not (np.isfinite(positions).all() and np.isfinite(weights).all()) or (weights < 0).any():
        raise ValueError("a spot map holds a value that is no number, or a negative weight")
    if paintings < 1:
        raise ValueError(f"a spot map is painted {paintings} times")
    return SpotMap(positions.reshape(-1, 2), weights, paintings)


def _floats(value: object) -> NDArray[np.float64] | None:
    if value is None:
        return None
    return np.atleast_1d(
        np.asarray(list(value) if isinstance(value, MultiValue | list) else value, dtype=float)
    )


def _raw_bytes(control_point: Dataset, tag: int) -> bytes:
    """Return an element's bytes as they stand in the file, whatever pydicom would make of them."""
    element = control_point.get_item(tag) if tag in control_point else None
    value = b"" if element is None else element.value or b""
    if not isinstance(value, bytes):
        raise ValueError("a private spot map is no plain value")
    return value


def _ascii_integer(raw: bytes) -> int | None:
    text = raw.strip(b" \0")
    return int(text) if text else None
