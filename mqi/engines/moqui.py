"""A beam's rows -> the folder that MOQUI, or an engine behind the same contract, is run on.

::

    moqui_tps.in                          its paths are @INPUT@/... and @OUTPUT@
    log/<beam>/NN_<energy>MeV.csv         one beam only: no sorting can pick another one's
    rtplan/<plan file>, CT_0001.dcm, ...  the plan, and the CT where the dose is computed in it

MOQUI wants absolute paths, and the folder's place on the host is not known when it is written: whoever
starts the job there puts this folder in place of ``@INPUT@`` and the attempt's output folder in place of
``@OUTPUT@``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mqi.engines.contract import EngineInput, EngineLayer, ExpectedOutput, GridGeometry, Medium
from mqi.engines.input_lines import INPUT_TOKEN, OUTPUT_TOKEN, input_lines
from mqi.engines.medium import CtSeries, read_ct_series, water_phantom
from mqi.engines.messages import check_report, explain_exit, progress_of
from mqi.engines.output import read_dose
from mqi.engines.pencil_beam import MODEL_VERSION
from mqi.engines.rows import layer_file_name, rows_as_csv
from mqi.engines.settings import EngineSettings
from mqi.engines.tps_input import write_tps_input
from mqi.errors import ConfigurationError, ResourceError, ValidationError
from mqi.files import sha256_of
from mqi.plan import IonPlan, PlanBeam

__all__ = [
    "INPUT_FILE",
    "INPUT_TOKEN",
    "OUTPUT_TOKEN",
    "EngineSettings",
    "check_report",
    "explain_exit",
    "progress_of",
    "read_dose",
    "write_input",
]

INPUT_FILE = "moqui_tps.in"

_DIGEST_FORMAT = 1
_LONGEST_NAME = 180  # of a beam, in bytes: its output file's name must fit a file system's 255
_TWO_CENTIMETRE_CHILD = 2  # air box, front water, then the scored slice
_OWN_ENTRIES = {INPUT_FILE, "log", "rtplan"}


def write_input(
    folder: Path,
    *,
    plan: IonPlan,
    beam: PlanBeam,
    layers: Sequence[EngineLayer],
    ct_files: Sequence[Path],
    settings: EngineSettings,
    room: str,
    mu_per_count: float,
    engine_version: str | None = None,
) -> EngineInput:
    """Write the input folder of one beam, whole or not at all, and say what the engine must leave.

    Rows without counts are not written (they deliver nothing), nor are layers without any. A folder that this
    function wrote before is replaced; any other content is left alone and refused.

    Parameters
    ----------
    ct_files
        The slices of one CT; may be empty when the medium is water.
    room
        "G1" or "G2".
    mu_per_count
        MU of one corrected count; what the analytic engine takes the counts for.
    engine_version
        Part of the digest. Left out: the analytic model's version; unknown for MOQUI.

    Raises
    ------
    ConfigurationError
        Settings and case do not go together (medium ct without a CT), or ``folder`` holds something else.
    ValidationError
        The plan, the CT or the rows cannot be computed; see read_ct_series and rows_as_csv.
    ResourceError
        The folder cannot be written, or a source file is gone.
    """
    name = _checked_name(beam)
    if not (np.isfinite(mu_per_count) and mu_per_count > 0):
        raise ConfigurationError(
            f"{mu_per_count!r} MU per count is not positive", todo="Check the calibration set"
        )
    medium = _medium(settings, ct_files, beam)
    series = read_ct_series(ct_files) if medium is Medium.CT else None
    geometry, child = _output_geometry(plan, beam, settings, series)
    written = _layer_files(layers, settings, beam)
    lines = input_lines(
        settings, plan=plan, beam=beam, water=medium is Medium.WATER, room=room, mu_per_count=mu_per_count
    )

    log = f"log/{re.sub(r'[^A-Za-z0-9_-]', '_', beam.name)}"
    tps_input = {INPUT_FILE: write_tps_input(lines)}
    try:
        sources = _write_folder(
            folder,
            plan,
            series,
            {f"{log}/{file_name}": content for file_name, content in written} | tps_input,
        )
    except OSError as error:
        raise ResourceError(
            f"the engine's input cannot be written ({error.strerror or error})",
            beam=beam.number,
            path=folder,
            todo="Check the disk's free space and permissions",
        ) from error

    version = engine_version or (MODEL_VERSION if settings.engine == "analytic" else "unknown")
    counts = sum(int(layer.counts.sum()) for layer in layers)
    output_format = str(settings.parameter("OutputFormat"))
    voxels = geometry.shape[0] * geometry.shape[1] * geometry.shape[2]
    scorer = settings.parameter("Scorer")
    return EngineInput(
        medium=medium,
        folder=str(folder),
        digest=_digest(
            {
                "format": _DIGEST_FORMAT,
                "engine": settings.engine,
                "version": version,
                "lines": [line for line in lines if line[0] != "GPUID"],
                "layers": [
                    (file_name, hashlib.sha256(content).hexdigest()) for file_name, content in written
                ],
                "plan": plan.sop_uid,
                "beam": _beam_geometry(plan, beam),
                "dicom": sources,
                "output": geometry.model_dump(),
                "mu_per_count": repr(float(mu_per_count)),
            }
        ),
        argv=(*settings.argv(), INPUT_FILE),
        rows=sum(int((layer.counts > 0).sum()) for layer in layers),
        total_counts=counts,
        total_mu=counts * mu_per_count,
        output=ExpectedOutput(
            path=f"output/{name}_{child}_{scorer}.{output_format}",
            format=output_format,
            size=8 * voxels if output_format == "raw" else None,
            geometry=geometry,
        ),
    )


def _checked_name(beam: PlanBeam) -> str:
    """The beam's name, which MOQUI makes a file name of as it is."""
    name = beam.name
    if (
        not name.strip()
        or "/" in name
        or not name.isprintable()
        or name.startswith(".")
        or len(name.encode()) > _LONGEST_NAME
    ):
        raise ValidationError(
            f"the beam's name {name[:40]!r} cannot be part of a file name; MOQUI names its output by it",
            beam=beam.number,
            todo="Rename the beam in the plan",
        )
    return name


def _medium(settings: EngineSettings, ct_files: Sequence[Path], beam: PlanBeam) -> Medium:
    if settings.medium == "ct" and not ct_files:
        raise ConfigurationError(
            "the medium is set to ct, but the case has no CT",
            beam=beam.number,
            todo="Put the CT beside the plan, or set the medium to auto or water",
        )
    wants_water = settings.medium == "water" or bool(settings.parameter("TwoCentimeterMode"))
    return Medium.WATER if wants_water or not ct_files else Medium.CT


def _output_geometry(
    plan: IonPlan, beam: PlanBeam, settings: EngineSettings, series: CtSeries | None
) -> tuple[GridGeometry, int]:
    """Where the dose stands, and the engine's number for the scored volume."""
    two_centimetres = bool(settings.parameter("TwoCentimeterMode"))
    child = len(beam.range_shifters) + (_TWO_CENTIMETRE_CHILD if two_centimetres else 0)
    if settings.output_child is not None:
        child = settings.output_child
    if series is None:
        phantom = water_phantom(
            beam,
            plan.patient_position,
            count=settings.phantom("Dim"),
            unit_mm=settings.phantom("Unit"),
            position_mm=settings.phantom("Position"),
            two_centimetre_mode=two_centimetres,
        )
        return phantom.score, child
    frames = {series.frame_of_reference_uid, plan.frame_of_reference_uid} - {""}
    if len(frames) > 1:
        raise ValidationError(
            "the CT and the plan have different frames of reference",
            beam=beam.number,
            path=series.files[0],
            todo="Export the CT that the plan was made on",
        )
    return series.geometry, child


def _layer_files(
    layers: Sequence[EngineLayer], settings: EngineSettings, beam: PlanBeam
) -> list[tuple[str, bytes]]:
    """Names and contents of the layers' files; their names sort as the layers do."""
    numbers = [layer.number for layer in layers]
    if numbers != sorted(set(numbers)) or (numbers and numbers[0] < 1):
        raise ValidationError(
            f"the layers' numbers {numbers} do not rise from 1 on", beam=beam.number, todo="Check PlanRange"
        )
    width = max(2, len(str(numbers[-1]))) if numbers else 2
    files = []
    for layer in layers:
        content = rows_as_csv(layer, settings.csv_dialect, settings.line_ending)
        if content:
            files.append((layer_file_name(layer.number, layer.energy_mev, width), content))
    if not files:
        raise ValidationError(
            "no row of the beam has any counts", beam=beam.number, todo="Check that the beam was delivered"
        )
    return files


def _write_folder(folder: Path, plan: IonPlan, series: CtSeries | None, files: dict[str, bytes]) -> list[str]:
    """Write all into a folder beside the wanted one, then put it in its place. Returns the DICOM hashes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        part.chmod(0o755)
        for relative, content in files.items():
            (part / relative).parent.mkdir(parents=True, exist_ok=True)
            (part / relative).write_bytes(content)
        hashes = _copy_dicom(part / "rtplan", plan, series)
        _publish(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return hashes


def _copy_dicom(folder: Path, plan: IonPlan, series: CtSeries | None) -> list[str]:
    """Copy the plan and the CT; return the hashes of what was copied, the plan's first."""
    folder.mkdir()
    copies = [(plan.path, folder / plan.path.name)]
    for index, path in enumerate(series.files if series else (), start=1):
        copies.append((path, folder / f"CT_{index:04d}.dcm"))
    hashes = []
    for source, target in copies:
        shutil.copyfile(source, target)
        hashes.append(sha256_of(target))
    if len(list(folder.iterdir())) != len(copies):
        raise ValidationError("the plan's file has the name of a CT slice", path=plan.path, todo="Rename it")
    return hashes


def _publish(part: Path, folder: Path) -> None:
    """Put the finished folder in its place; what was written there before by write_input makes way."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigurationError(
            "the input folder's place is taken", path=folder, todo="Remove what is there"
        )
    if folder.exists():
        strange = sorted(entry.name for entry in folder.iterdir() if entry.name not in _OWN_ENTRIES)
        if strange:
            raise ConfigurationError(
                f"the input folder holds something else: {strange[0]}",
                path=folder,
                todo="Choose another folder",
            )
        shutil.rmtree(folder)
    part.replace(folder)


def _beam_geometry(plan: IonPlan, beam: PlanBeam) -> list[object]:
    return [
        *(plan.patient_position, beam.number, beam.name, beam.machine, beam.isocentre_mm, beam.sad_mm),
        *(beam.gantry_angle_deg, beam.couch_angle_deg, beam.collimator_angle_deg, beam.snout_position_mm),
        [(shifter.number, shifter.id) for shifter in beam.range_shifters],
    ]


def _digest(description: dict[str, object]) -> str:
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
