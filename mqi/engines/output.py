"""The dose file that an engine left -> a dose, or the reason why it is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mqi.dose.grid import DoseGrid
from mqi.engines.contract import EngineInput, GridGeometry
from mqi.errors import ConfigurationError, ProcessingError
from mqi.files import inside

__all__ = ["read_dose"]

_NOISE = 1e-6  # negative values down to this part of the maximum are rounding, not a dose
_LONGEST_HEADER = 65536
_ENGINE_LOG = "Look at the engine's log, then press Retry"


def read_dose(job_folder: Path, engine_input: EngineInput, *, case: str, beam: int) -> DoseGrid:
    """Read the output of a finished job and check that it is a dose.

    raw: float64, little-endian, x fastest, no header. mhd and mha: MetaImage as MOQUI writes it; its header
    lacks "=" in some lines, so that only what is needed is read and the geometry is the expected one.

    Raises
    ------
    ProcessingError
        No file, another size or shape than expected, values that are not finite or negative, no dose at all.
    ConfigurationError
        A format that cannot be read.
    """
    expected = engine_input.output
    path = inside(job_folder, expected.path)
    if expected.format not in ("raw", "mhd", "mha"):
        raise ConfigurationError(
            f"engine output in the format {expected.format} cannot be read",
            case=case,
            beam=beam,
            path=path,
            todo="Set OutputFormat to raw, mhd or mha",
        )
    shape = expected.geometry.shape
    reason = ""
    values = np.empty(0)
    try:
        content = _content(path, expected.format, expected.geometry)
        if len(content) != 8 * shape[0] * shape[1] * shape[2]:
            reason = f"the dose has {len(content)} bytes instead of {8 * shape[0] * shape[1] * shape[2]}"
        else:
            values = np.frombuffer(content, dtype="<f8").astype(np.float64)
            reason = _why_no_dose(values)
    except FileNotFoundError as error:
        reason = f"the engine left no {Path(error.filename).name}"
    except (OSError, _HeaderError) as error:
        reason = f"the dose cannot be read ({error})"
    if reason:
        raise ProcessingError(reason, case=case, beam=beam, path=path, todo=_ENGINE_LOG)
    return DoseGrid(
        np.maximum(values, 0.0).reshape(shape),
        np.array(expected.geometry.origin_mm),
        np.array(expected.geometry.spacing_mm),
        np.array(expected.geometry.axes),
    )


def _why_no_dose(values: NDArray[np.float64]) -> str:
    if not np.isfinite(values).all():
        return f"{int((~np.isfinite(values)).sum())} voxels of the dose are not finite"
    if values.max() <= 0:
        return "the dose is zero everywhere"
    if values.min() < -_NOISE * values.max():
        return f"the dose is negative down to {values.min():.3g} Gy"
    return ""


class _HeaderError(Exception):
    """A MetaImage header that cannot be followed."""


def _content(path: Path, file_format: str, geometry: GridGeometry) -> bytes:
    """The bytes of the values."""
    if file_format == "raw":
        return path.read_bytes()
    content = path.read_bytes()
    header, end = _header(content)
    count = [int(text) for text in header.get("dimsize", "").split() if text.isdigit()]
    if tuple(reversed(count)) != geometry.shape:
        raise _HeaderError(f"its header has the size {header.get('dimsize', 'none')}")
    if header.get("elementtype") != "MET_DOUBLE":
        raise _HeaderError(f"its header has the type {header.get('elementtype', 'none')}")
    for key in ("binarydatabyteordermsb", "elementbyteordermsb", "compresseddata"):
        if header.get(key, "False").lower() == "true":
            raise _HeaderError(f"its header says {key}")
    data = header["elementdatafile"]
    if file_format == "mha" or data == "LOCAL":
        return content[end:]
    if Path(data).name != data:
        raise _HeaderError("its header names a file in another folder")
    return path.with_name(data).read_bytes()


def _header(content: bytes) -> tuple[dict[str, str], int]:
    """Keys in lower case, up to ElementDataFile, and where the header ends. "=" may be missing."""
    header: dict[str, str] = {}
    at = 0
    while at < min(len(content), _LONGEST_HEADER):
        end = content.find(b"\n", at)
        end = len(content) if end < 0 else end
        key, _, value = content[at:end].decode("latin-1").strip().replace("=", " ", 1).partition(" ")
        header[key.lower()] = value.strip()
        at = end + 1
        if key.lower() == "elementdatafile":
            return header, at
    raise _HeaderError("its header has no ElementDataFile")
