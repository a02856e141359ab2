"""The machine's binary records: ``.ptn`` (what was delivered) and ``.mgn`` (what was sent to the magnets).

Layouts: vendor's log file specification, and measured on 108 layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mqi.errors import MQIError, ResourceError, ValidationError

__all__ = ["MGN_RECORD", "PTN_BANKS", "PTN_ROW_BYTES", "cannot_read", "read_mgn", "read_ptn"]

PTN_BANKS = 8
PTN_ROW_BYTES = 2 * PTN_BANKS
"""One row: eight big-endian uint16: x, y, size x, size y, dose 1, dose 2, layer number, flags."""

MGN_RECORD = np.dtype(
    [
        ("time_us", ">u4"),
        ("x_amp", ">u2"),
        ("y_amp", ">u2"),
        ("x_preset", ">u2"),
        ("y_preset", ">u2"),
        ("beam_on", ">u2"),
    ]
)
"""One record, 14 bytes. ``beam_on`` 1: the beam is on from this record's time to the next record's."""

_MGN_LEAST = 3  # a record before the first spot, the spots, a record after the last


def read_ptn(path: Path) -> NDArray[np.uint16]:
    """Read a delivered layer: (n, 8) registers, one row a sample.

    Raises
    ------
    ValidationError
        The file is missing, empty, or not a whole number of rows long.
    ResourceError
        The file system did not give it (tried again).
    """
    raw = _read(path, np.dtype(">u2"), PTN_ROW_BYTES, "rows")
    return raw.byteswap(inplace=True).view(np.dtype("=u2")).reshape(-1, PTN_BANKS)


def read_mgn(path: Path) -> NDArray[Any]:
    """Read a planned layer: (spots + 2,) records of MGN_RECORD, first and last without a spot.

    Raises
    ------
    ValidationError
        The file is missing, empty, not a whole number of records long, has no spot, or its time runs
        backwards.
    ResourceError
        The file system did not give it (tried again).
    """
    records = _read(path, MGN_RECORD, MGN_RECORD.itemsize, "records")
    if records.size < _MGN_LEAST:
        raise ValidationError(
            f"the planned layer has {records.size} records, at least {_MGN_LEAST} are needed",
            path=path,
            todo="Transfer the file again",
        )
    time = records["time_us"].astype(np.int64)
    if np.any(time[1:] < time[:-1]):
        raise ValidationError(
            f"the planned layer's time runs backwards at record {int(np.argmax(time[1:] < time[:-1])) + 1}",
            path=path,
            todo="Transfer the file again",
        )
    return records


def cannot_read(path: Path, error: OSError) -> MQIError:
    """Word a failed read: a file that is not there is the case's fault, a failing disk is not."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return ValidationError(
            f"the file cannot be read ({error.strerror})",
            path=path,
            todo="Check that the transfer is finished and that the service may read the folder",
        )
    return ResourceError(f"the file cannot be read now ({error.strerror})", path=path)


def _read(path: Path, dtype: np.dtype[Any], unit_bytes: int, unit: str) -> NDArray[Any]:
    try:
        size = path.stat().st_size
        content = np.fromfile(path, dtype=dtype)
    except OSError as error:
        raise cannot_read(path, error) from error
    if size == 0 or size % unit_bytes or content.nbytes != size:
        what = "the log is empty" if size == 0 else f"{size} bytes are no whole number of {unit}"
        raise ValidationError(
            f"{what} ({unit_bytes} bytes each)",
            path=path,
            todo="The file was not transferred completely: transfer it again",
        )
    return content
