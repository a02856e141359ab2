"""PlanInfo and PlanRange: the text files that say what a delivery is and which file logged which layer.

PlanInfo is ``KEY,VALUE`` a line; PlanRange is a table with a header, one row an energy layer. Both are
written on a Korean Windows: UTF-8 or cp949, LF or CRLF. Values are never guessed: what contradicts is
refused with the file and the field.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from mqi.case import Delivery, Frozen, LayerLog
from mqi.errors import ValidationError
from mqi.log.records import cannot_read

__all__ = ["PlanInfo", "read_delivery", "read_plan_info", "read_plan_range"]

_LARGEST_BYTES = 4 * 1024 * 1024  # a real PlanRange is 5 kB; more is another file
_STAMP = re.compile(r"([0-9]{4})" + r"([0-9]{2})" * 6)
_COLUMNS = (
    "RESULT_ID",
    "LAYER_NO",
    "LAYER_ENERGY",
    "PATIENT_ID",
    "FLD_NO",
    "DOSE1_RANGE",
    "DOSE2_RANGE",
    "PLAN_DOSE1_RANGE",
    "PLAN_DOSE2_RANGE",
    "SCAN_OUT_FL_NM",
    "PLAN_SCAN_OUT_FL_NM",
)
_RESEND = "Transfer the delivery again, or ask the machine's vendor what the file means"


class PlanInfo(Frozen):
    """One delivery's PlanInfo. ``irradiated_at`` and ``field_number`` are None where the file has none."""

    patient_id: str
    study_uid: str
    beam_number: int  # DICOM beam number
    start_layer: int
    stop_layer: int
    irradiated_at: datetime | None
    field_number: int | None  # the machine's own field number


class _PlanRange(Frozen):
    result_id: str
    patient_id: str
    field_number: int
    layers: tuple[LayerLog, ...]


def read_plan_info(path: Path) -> PlanInfo:
    """Read PlanInfo.txt.

    Keys that are not used here are ignored (the vendor adds some); a key given twice with two values,
    a missing key or an impossible value raises ValidationError naming the file and the key.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        key, comma, value = line.partition(",")
        key, value = key.strip(), value.strip()
        if not comma:
            raise _bad(path, f"line {number} is not KEY,VALUE")
        if values.setdefault(key, value) != value:
            raise _bad(path, f"{key[:40]} is given twice with two values")
    start = _integer(path, values, "START_LAYER_NUMBER", least=1)
    stop = _integer(path, values, "STOP_LAYER_NUMBER", least=1)
    if stop < start:
        raise _bad(path, f"STOP_LAYER_NUMBER {stop} is before START_LAYER_NUMBER {start}")
    stamp = values.get("TCSC_IRRAD_DATETIME", "")
    irradiated_at = _moment(stamp)
    if stamp and irradiated_at is None:
        raise _bad(path, f"TCSC_IRRAD_DATETIME {stamp[:40]!r} is no time (YYYYMMDDHHMMSScc)")
    return PlanInfo(
        patient_id=_required(path, values, "DICOM_PATIENT_ID"),
        study_uid=_required(path, values, "DICOM_STUDY_INS_UID"),
        beam_number=_integer(path, values, "DICOM_BEAM_NUMBER", least=0),
        start_layer=start,
        stop_layer=stop,
        irradiated_at=irradiated_at,
        field_number=_integer(path, values, "TCSC_FIELD_NUMBER", least=0)
        if values.get("TCSC_FIELD_NUMBER")
        else None,
    )


def read_plan_range(path: Path) -> tuple[LayerLog, ...]:
    """Read PlanRange (.txt or .csv): its layers by number.

    Raises ValidationError for a missing column, an impossible value, a layer or log file named twice, a
    file name that is more than a plain name, or rows that disagree on RESULT_ID, PATIENT_ID or FLD_NO.
    """
    return _read_table(path).layers


def read_delivery(folder: Path, case_folder: Path) -> Delivery:
    """Read a timestamp folder's PlanInfo and PlanRange into a Delivery with the layers START to STOP.

    The time of irradiation is PlanInfo's, else the folder's name. Log files themselves are not looked at.

    Raises
    ------
    ValidationError
        The two files contradict each other or the folder, or a layer from START to STOP has no row.
    """
    if not folder.is_relative_to(case_folder):
        raise ValidationError("the delivery lies outside its case folder", path=folder)
    info_path = folder / "PlanInfo.txt"
    info = read_plan_info(info_path)
    path, table = _only_table(folder)
    if table.result_id != folder.name:
        raise _bad(path, f"RESULT_ID {table.result_id[:40]!r} is not the folder's name {folder.name!r}")
    if table.patient_id != info.patient_id:
        raise _bad(path, "PATIENT_ID is not the DICOM_PATIENT_ID of PlanInfo")
    field_number = info.beam_number if info.field_number is None else info.field_number
    if table.field_number != field_number:
        raise _bad(path, f"FLD_NO {table.field_number} is not the field {field_number} of PlanInfo")
    logged = tuple(layer for layer in table.layers if info.start_layer <= layer.number <= info.stop_layer)
    numbers = {layer.number for layer in logged}
    if len(numbers) != info.stop_layer - info.start_layer + 1:
        first = next(n for n in range(info.start_layer, info.stop_layer + 1) if n not in numbers)
        raise _bad(path, f"layer {first} of {info.start_layer} to {info.stop_layer} (PlanInfo) has no row")
    irradiated_at = info.irradiated_at or _moment(folder.name)
    if irradiated_at is None:
        raise _bad(info_path, "neither TCSC_IRRAD_DATETIME nor the folder's name says when it was irradiated")
    return Delivery(
        id=folder.name,
        folder=folder.relative_to(case_folder).as_posix(),
        patient_id=info.patient_id,
        study_uid=info.study_uid,
        beam_number=info.beam_number,
        irradiated_at=irradiated_at,
        start_layer=info.start_layer,
        stop_layer=info.stop_layer,
        layers=logged,
    )


def _only_table(folder: Path) -> tuple[Path, _PlanRange]:
    paths = [path for path in (folder / "PlanRange.txt", folder / "PlanRange.csv") if path.exists()]
    path = paths[0] if paths else folder / "PlanRange.txt"
    table = _read_table(path)
    if len(paths) > 1 and _read_table(paths[1]) != table:
        raise _bad(path, "PlanRange.txt and PlanRange.csv contradict each other")
    return path, table


def _read_table(path: Path) -> _PlanRange:
    try:
        rows = [row for row in csv.reader(_text(path).splitlines(), strict=True) if any(row)]
    except csv.Error as error:
        raise _bad(path, f"it is no table ({error})") from error
    header = [name.strip() for name in rows[0]] if rows else []
    if missing := [name for name in _COLUMNS if header.count(name) != 1]:
        raise _bad(path, f"these columns are missing or given twice: {', '.join(missing)}")
    if len(rows) == 1:
        raise _bad(path, "it has no layers")
    heads: set[tuple[str, str, int]] = set()
    layers: dict[int, LayerLog] = {}
    files: set[str] = set()
    for row in rows[1:]:
        if len(row) != len(header):
            raise _bad(path, f"a row has {len(row)} values, the header has {len(header)}")
        values = {name: value.strip() for name, value in zip(header, row, strict=True)}
        heads.add(
            (
                _required(path, values, "RESULT_ID"),
                _required(path, values, "PATIENT_ID"),
                _integer(path, values, "FLD_NO", least=0),
            )
        )
        layer = _layer(path, values)
        if layer.number in layers:
            raise _bad(path, f"layer {layer.number} has two rows")
        if layer.ptn in files:
            raise _bad(path, f"layer {layer.number} names a log file that another layer has")
        layers[layer.number] = layer
        files.add(layer.ptn)
    if len(heads) > 1:
        raise _bad(path, "its rows disagree on RESULT_ID, PATIENT_ID or FLD_NO")
    result_id, patient_id, field_number = heads.pop()
    return _PlanRange(
        result_id=result_id,
        patient_id=patient_id,
        field_number=field_number,
        layers=tuple(layers[number] for number in sorted(layers)),
    )


def _layer(path: Path, values: Mapping[str, str]) -> LayerLog:
    number = _integer(path, values, "LAYER_NO", least=1)
    energy = _required(path, values, "LAYER_ENERGY")
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,9})?", energy) or float(energy) <= 0:
        raise _bad(path, f"LAYER_ENERGY of layer {number} is {energy[:40]!r}, no energy in MeV")
    return LayerLog(
        number=number,
        energy_mev=float(energy),
        dose1_range=_integer(path, values, "DOSE1_RANGE", least=0),
        dose2_range=_integer(path, values, "DOSE2_RANGE", least=0),
        plan_dose1_range=_integer(path, values, "PLAN_DOSE1_RANGE", least=0),
        plan_dose2_range=_integer(path, values, "PLAN_DOSE2_RANGE", least=0),
        ptn=_plain_name(path, _required(path, values, "SCAN_OUT_FL_NM"), ".ptn"),
        mgn=_plain_name(path, values["PLAN_SCAN_OUT_FL_NM"], ".mgn") if values["PLAN_SCAN_OUT_FL_NM"] else "",
    )


def _plain_name(path: Path, name: str, suffix: str) -> str:
    """Refuse a file name that could lead out of the delivery's folder."""
    if len(name) > 200 or re.search(r'[/\\:*?"<>|\x00-\x1f]', name) or name.startswith("."):
        raise _bad(path, f"{name[:60]!r} is not a plain file name")
    if not name.lower().endswith(suffix):
        raise _bad(path, f"{name[:60]!r} is not a {suffix} file")
    return name


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise cannot_read(path, error) from error
    if len(content) > _LARGEST_BYTES:
        raise _bad(path, "it is too long to be what its name says")
    for encoding in ("utf-8-sig", "cp949"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        return text
    raise _bad(path, "it is no text (neither UTF-8 nor cp949)")


def _required(path: Path, values: Mapping[str, str], key: str) -> str:
    value = values.get(key, "")
    if not value:
        raise _bad(path, f"{key} is missing")
    return value


def _integer(path: Path, values: Mapping[str, str], key: str, *, least: int) -> int:
    value = _required(path, values, key)
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < least:
        raise _bad(path, f"{key} is {value[:40]!r}, it must be a whole number from {least}")
    return int(value)


def _moment(stamp: str) -> datetime | None:
    found = _STAMP.fullmatch(stamp)
    if not found:
        return None
    year, month, day, hour, minute, second, hundredths = (int(part) for part in found.groups())
    try:  # the machine's clock has no zone
        return datetime(year, month, day, hour, minute, second, 10_000 * hundredths)
    except ValueError:
        return None


def _bad(path: Path, what: str) -> ValidationError:
    return ValidationError(what, path=path, todo=_RESEND)
