"""The CSV rows of a layer, ``time_ms,x_mm,y_mm,count``, in the dialects that MOQUI builds have wanted.

The public fork splits at commas only, so that rows without a comma at their end reach it as garbage, and it
says nothing. Which dialect a build reads is therefore a setting, and what the engine reports to have read is
compared with what was written (mqi.engines.messages.check_report).
"""

from __future__ import annotations

import csv
import io
import re
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mqi.engines.contract import EngineLayer
from mqi.errors import ProcessingError, ValidationError

__all__ = ["CsvDialect", "LineEnding", "layer_file_name", "read_layer", "rows_as_csv"]

LineEnding = Literal["lf", "crlf"]

_TIME_DECIMALS, _POSITION_DECIMALS = 4, 5
_LARGEST = 1e7  # keeps the fixed-point digits within 64 bits; nothing real comes near it
_FILE_NAME = re.compile(r"(\d+)_(\d+(?:\.\d+)?)MeV\.csv")


class CsvDialect(StrEnum):
    """How the rows of a layer are told apart."""

    ROWS = "rows"  # a line each; the site's interpreter since 2026-03
    ROWS_TRAILING_COMMA = "rows-trailing-comma"  # a line each, with a comma at its end; the public fork
    SINGLE_LINE = "single-line"  # all values in one line, joined by commas; the interpreter until 2026-03


def layer_file_name(number: int, energy_mev: float, width: int = 2) -> str:
    """Name of a layer's file: MOQUI sorts by name and takes the energy from it."""
    return f"{number:0{width}d}_{energy_mev:.2f}MeV.csv"


def rows_as_csv(layer: EngineLayer, dialect: CsvDialect, line_ending: LineEnding) -> bytes:
    """The layer's rows that have counts, as a file's content (about 1 s for 900,000 rows).

    Times have 4 decimals, positions 5, as the site writes them. Raises ValidationError for arrays of unequal
    length, values that are not finite or beyond 1e7, and negative counts.
    """
    numbers = (layer.time_ms, layer.x_mm, layer.y_mm)
    if len({len(values) for values in (*numbers, layer.counts)}) != 1:
        raise ValidationError(f"layer {layer.number}: its columns have different lengths")
    if not all((np.abs(values) < _LARGEST).all() for values in (*numbers, layer.counts)):
        raise ValidationError(f"layer {layer.number}: a time, position or count is not a number in its range")
    if (layer.counts < 0).any():
        raise ValidationError(f"layer {layer.number}: a count is negative")
    some = layer.counts > 0
    row_end = b"\r\n" if line_ending == "crlf" else b"\n"
    if dialect is CsvDialect.ROWS_TRAILING_COMMA:
        row_end = b"," + row_end
    elif dialect is CsvDialect.SINGLE_LINE:
        row_end = b","
    columns = [
        (layer.time_ms[some], _TIME_DECIMALS, b","),
        (layer.x_mm[some], _POSITION_DECIMALS, b","),
        (layer.y_mm[some], _POSITION_DECIMALS, b","),
        (layer.counts[some].astype(np.float64), 0, row_end),
    ]
    written = [_decimal_text(values, decimals, end) for values, decimals, end in columns]
    characters = np.concatenate([text for text, _ in written], axis=1)
    kept = np.concatenate([kept for _, kept in written], axis=1)
    content = bytes(characters[kept].tobytes())
    return content.removesuffix(b",") if dialect is CsvDialect.SINGLE_LINE else content


def _decimal_text(
    values: NDArray[np.float64], decimals: int, end: bytes
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Each number as fixed-point text and ``end``: (n, width) characters and which of them are meant."""
    scaled = np.rint(values * 10.0**decimals).astype(np.int64)
    rest = np.abs(scaled)
    digits = max(len(str(int(rest.max(initial=0)))), decimals + 1)
    width = 1 + digits + (1 if decimals else 0) + len(end)
    text = np.empty((len(values), width), dtype=np.uint8)
    kept = np.ones(text.shape, dtype=bool)
    text[:, 0], kept[:, 0] = ord("-"), scaled < 0
    at = width - len(end)
    text[:, at:] = np.frombuffer(end, dtype=np.uint8)
    for place in range(digits):
        if decimals and place == decimals:
            at -= 1
            text[:, at] = ord(".")
        at -= 1
        kept[:, at] = (rest > 0) | (place <= decimals)
        rest, digit = np.divmod(rest, 10)
        text[:, at] = digit + ord("0")
    return text, kept


def read_layer(path: Path) -> EngineLayer:
    """Read a layer's file in any of the dialects; its number and energy come from its name.

    Raises ProcessingError for a name without them, a line without its four values, what is not a number, and
    counts that are negative or not whole.
    """
    match = _FILE_NAME.fullmatch(path.name)
    if not match:
        raise ProcessingError("the name is not NN_<energy>MeV.csv", path=path)
    content = path.read_bytes().replace(b"\r\n", b"\n").rstrip(b"\n,").replace(b",\n", b"\n")
    characters = np.frombuffer(content, dtype=np.uint8)
    ends = characters[(characters == ord(",")) | (characters == ord("\n"))]  # what stands after each value
    in_lines = ends[3::4] == ord("\n")
    if (
        len(ends) % 4 != 3
        or (in_lines.any() and not in_lines.all())
        or in_lines.sum() != (ends == ord("\n")).sum()
    ):
        raise ProcessingError("its values are not rows of time, x, y, count", path=path)
    values = _numbers(content.replace(b",", b"\n"), path)
    rows = values.reshape(-1, 4)
    counts = rows[:, 3].astype(np.int64)
    if (counts != rows[:, 3]).any() or (counts < 0).any():
        raise ProcessingError("a count is not a whole number of 0 or more", path=path)
    return EngineLayer(int(match[1]), float(match[2]), rows[:, 0], rows[:, 1], rows[:, 2], counts)


def _numbers(lines: bytes, path: Path) -> NDArray[np.float64]:
    """The values, one a line. Empty lines and text are refused, "nan" and "inf" too."""
    import pandas as pd  # half a second, which only a reader pays

    try:
        table = pd.read_csv(
            io.BytesIO(lines),
            header=None,
            dtype=np.float64,
            na_filter=False,
            skip_blank_lines=False,
            encoding="ascii",
            quoting=csv.QUOTE_NONE,
        )
    except ValueError as error:
        raise ProcessingError("the rows hold something that is not a number", path=path) from error
    values = table.to_numpy()[:, 0]
    if table.shape != (lines.count(b"\n") + 1, 1) or not np.isfinite(values).all():
        raise ProcessingError("the rows hold something that is not a number", path=path)
    return values
