"""``moqui_tps.in`` as MOQUI reads it (base/mqi_file_handler.hpp of the public trees).

One ``Key value`` a line, the key up to the first blank; keys in any case, the first hit wins; ``#`` begins a
comment anywhere; whole numbers as ``atoi`` reads them. What MOQUI ignores in silence is ignored here too, so
that a file that works here means there what it means here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mqi.errors import ProcessingError

__all__ = ["TpsInput", "read_tps_input", "write_tps_input"]

_INTEGER = re.compile(r"\s*([+-]?\d+)")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")


@dataclass(frozen=True)
class TpsInput:
    """The lines of an input file in their order: (key, value)."""

    lines: tuple[tuple[str, str], ...]

    def text(self, key: str, default: str = "") -> str:
        """Value of the first line with this key, in any case; ``default`` when there is none."""
        return next((value for name, value in self.lines if name.lower() == key.lower()), default)

    def integer(self, key: str, default: int) -> int:
        """As ``atoi``: the leading whole number, 0 for none ("-200.0" is -200, "1:0,2:1" is 1)."""
        text = self.text(key, str(default))
        match = _INTEGER.match(text)
        return int(match[1]) if match else 0

    def integers(self, key: str) -> tuple[int, ...]:
        """A list with commas, each as ``atoi``; empty pieces are left out."""
        pieces = (piece.strip() for piece in self.text(key).split(","))
        found = (_INTEGER.match(piece) for piece in pieces if piece)
        return tuple(int(match[1]) if match else 0 for match in found)

    def number(self, key: str, default: float) -> float:
        """As ``atof``: the leading number, 0 for none."""
        match = _NUMBER.match(self.text(key, repr(default)))
        return float(match[1]) if match else 0.0

    def flag(self, key: str, default: bool) -> bool:
        """True for "true" in any case or a whole number other than 0."""
        return self.text(key, str(default)).lower() == "true" or self.integer(key, int(default)) != 0


def read_tps_input(path: Path) -> TpsInput:
    """Read an input file. Raises ProcessingError when it cannot be read."""
    try:
        content = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ProcessingError(f"cannot open the input parameter file ({error})", path=path) from error
    lines = []
    for raw in content.split("\n"):
        key, blank, value = raw.strip().partition("#")[0].partition(" ")
        if key and blank:
            lines.append((key.strip(), value.strip()))
    return TpsInput(tuple(lines))


def write_tps_input(lines: tuple[tuple[str, str], ...]) -> bytes:
    """The file's content. Raises ValueError for what MOQUI could not read back as it was meant."""
    for key, value in lines:
        if (
            re.search(r"[\s#]", key)
            or not key
            or re.search(r"[\r\n#]", value)
            or value != value.strip()
            or not value
        ):
            raise ValueError(f"{key!r} {value!r} cannot stand in an input file")
    return "".join(f"{key} {value}\n" for key, value in lines).encode()
