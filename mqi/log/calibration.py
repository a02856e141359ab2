"""Calibration sets: what turns raw log registers into mm, ms and MU. The one owner of these numbers.

A set is a text file in the vendor's ``scv_init`` syntax (``KEY VALUE``, ``#`` comments). Every key is
required and none other is allowed, so that a typing error can never leave a default behind. A set is
named in every result by its version and by the SHA-256 of its values.

Corrected counts = raw * range factor / dose divisor; MU = corrected counts * MU per count.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from pydantic import ValidationError as ModelError

from mqi.case import Frozen
from mqi.errors import ConfigurationError, ValidationError

__all__ = ["CalibrationSet", "builtin_calibration", "parse_calibration", "read_calibration"]

_Offset = Annotated[float, Field(ge=0, le=65535)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Factors = tuple[_Positive, _Positive, _Positive, _Positive, _Positive]

_FIELDS = {
    "NAME": "name",
    "VERSION": "version",
    "XPOSOFFSET": "x_pos_offset",
    "YPOSOFFSET": "y_pos_offset",
    "XPOSGAIN": "x_pos_gain_mm",
    "YPOSGAIN": "y_pos_gain_mm",
    "XPRESETOFFSET": "x_preset_offset",
    "YPRESETOFFSET": "y_preset_offset",
    "XPRESETGAIN": "x_preset_gain_mm",
    "YPRESETGAIN": "y_preset_gain_mm",
    "XAMPOFFSET": "x_amp_offset",
    "YAMPOFFSET": "y_amp_offset",
    "XAMPGAIN": "x_amp_gain_v",
    "YAMPGAIN": "y_amp_gain_v",
    "TIMEGAIN": "time_gain_ms",
    "XSIZEGAIN": "x_size_gain_mm",
    "YSIZEGAIN": "y_size_gain_mm",
    "XTHRESHOLD": "x_threshold",
    "YTHRESHOLD": "y_threshold",
    "XPOSVOLTAGE": "x_pos_voltage",
    "YPOSVOLTAGE": "y_pos_voltage",
    "XREGION": "x_region_mm",
    "YREGION": "y_region_mm",
    "DOSE_DIVISOR": "dose_divisor",
    "COEFF_GY_PER_MU": "coeff_gy_per_mu",
    "MU_PER_COUNT": "mu_per_count",
}
_GROUPS = {
    "sad_mm": ("SADX", "SADY"),
    "range_factors": ("RANGE1", "RANGE2", "RANGE3", "RANGE4", "RANGE5"),
}
_KEYS = frozenset(_FIELDS).union(*_GROUPS.values())


class CalibrationSet(Frozen):
    """One room's calibration. Fields are the file's keys; offsets in counts, gains in units per count.

    ``range_factors`` are the dose monitor's range codes 1 to 5 relative to code 2; ``sad_mm`` the virtual
    source-axis distances x, y.
    """

    name: Literal["G1", "G2"]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,40}$")]
    x_pos_offset: _Offset
    y_pos_offset: _Offset
    x_pos_gain_mm: _Positive
    y_pos_gain_mm: _Positive
    x_preset_offset: _Offset
    y_preset_offset: _Offset
    x_preset_gain_mm: _Positive
    y_preset_gain_mm: _Positive
    x_amp_offset: _Offset
    y_amp_offset: _Offset
    x_amp_gain_v: _Positive
    y_amp_gain_v: _Positive
    time_gain_ms: _Positive
    x_size_gain_mm: _Positive
    y_size_gain_mm: _Positive
    x_threshold: _Positive
    y_threshold: _Positive
    x_pos_voltage: _Positive
    y_pos_voltage: _Positive
    x_region_mm: _Positive
    y_region_mm: _Positive
    sad_mm: tuple[_Positive, _Positive]
    range_factors: _Factors
    dose_divisor: _Positive
    coeff_gy_per_mu: _Positive
    mu_per_count: _Positive

    @property
    def sha256(self) -> str:
        """SHA-256 over the values: comments, order and spelling of numbers do not change it."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def x_mm(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Beam position x (ptn bank 1) at the isocentre plane, mm."""
        return _scaled(raw, self.x_pos_offset, self.x_pos_gain_mm)

    def y_mm(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Beam position y (ptn bank 2) at the isocentre plane, mm."""
        return _scaled(raw, self.y_pos_offset, self.y_pos_gain_mm)

    def preset_x_mm(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Planned position x (mgn preset) at the isocentre plane, mm."""
        return _scaled(raw, self.x_preset_offset, self.x_preset_gain_mm)

    def preset_y_mm(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Planned position y (mgn preset) at the isocentre plane, mm."""
        return _scaled(raw, self.y_preset_offset, self.y_preset_gain_mm)

    def range_factor(self, code: int) -> float:
        """Scale of the dose monitor at this range code (1 to 5) relative to code 2.

        Raises
        ------
        ValidationError
            For any other code: a wrong factor would be a wrong dose (x 2.94 for the next code).
        """
        if not 1 <= code <= len(self.range_factors):
            raise ValidationError(
                f"dose monitor range code {code} is unknown (known: 1 to {len(self.range_factors)})",
                todo="Check DOSE1_RANGE and DOSE2_RANGE in PlanRange with the machine's vendor",
            )
        return self.range_factors[code - 1]

    def count_factor(self, code: int) -> float:
        """Corrected counts per raw count at this range code. Raises as range_factor does."""
        return self.range_factor(code) / self.dose_divisor

    def corrected_counts(self, raw: ArrayLike, range_code: int) -> NDArray[np.float64]:
        """Raw monitor counts logged at a range code -> corrected counts (unrounded)."""
        return np.multiply(raw, self.count_factor(range_code), dtype=np.float64)


def read_calibration(path: Path) -> CalibrationSet:
    """Read a calibration set.

    Raises
    ------
    ConfigurationError
        The file cannot be read, or a key is unknown, missing, given twice or has no usable value; names
        the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the calibration set cannot be read ({type(error).__name__})",
            path=path,
            todo="Check the path and that the file is UTF-8 text",
        ) from error
    return parse_calibration(text, path)


def builtin_calibration(room: str) -> CalibrationSet:
    """Return the calibration set that this project ships for room "G1" or "G2"."""
    source = resources.files("mqi.log") / "calibrations" / f"{room}.txt"
    if room not in {"G1", "G2"}:
        raise ConfigurationError(
            f"there is no built-in calibration set for room {room!r}",
            todo="Use G1 or G2, or give the path of a calibration set",
        )
    return parse_calibration(source.read_text(encoding="utf-8"), Path(str(source)))


def _scaled(raw: ArrayLike, offset: float, gain: float) -> NDArray[np.float64]:
    values = np.subtract(raw, offset, dtype=np.float64)
    return np.multiply(values, gain, out=values) if values.ndim else np.asarray(values * gain)


def parse_calibration(text: str, path: Path) -> CalibrationSet:
    """Read a calibration set from its text; ``path`` says in messages where the text came from.

    Raises ConfigurationError as read_calibration does.
    """
    lines: dict[str, int] = {}
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise _refused(path, f"line {number}: expected one key and one value, found {len(words)} words")
        key, value = words
        if key not in _KEYS:
            raise _refused(path, f"line {number}: unknown key {key[:40]!r}")
        if key in lines:
            raise _refused(path, f"line {number}: {key} is given again (first on line {lines[key]})")
        lines[key], values[key] = number, value
    if missing := sorted(_KEYS - lines.keys()):
        raise _refused(path, f"missing: {', '.join(missing)}")
    numbers = {key: _number(key, values[key], lines[key], path) for key in _KEYS - {"NAME", "VERSION"}}
    fields: dict[str, object] = {field: numbers.get(key, values[key]) for key, field in _FIELDS.items()}
    for field, keys in _GROUPS.items():
        fields[field] = tuple(numbers[key] for key in keys)
    try:
        return CalibrationSet.model_validate(fields)
    except ModelError as error:
        key = _key_of(error.errors()[0]["loc"])
        raise _refused(path, f"line {lines[key]}: {key} cannot be {values[key][:40]!r}") from error


def _number(key: str, value: str, line: int, path: Path) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _refused(path, f"line {line}: {key} must be a number, not {value[:40]!r}")
    return number


def _key_of(location: tuple[int | str, ...]) -> str:
    field = str(location[0])
    if field in _GROUPS:
        return _GROUPS[field][int(location[1])]
    names: Mapping[str, str] = {name: key for key, name in _FIELDS.items()}
    return names[field]


def _refused(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"the calibration set is refused: {what}",
        path=path,
        todo="Compare the file with the set that the project ships (mqi/log/calibrations)",
    )
