"""The embedded dose engine as a program: ``python -m mqi.engines.analytic moqui_tps.in``.

It stands behind MOQUI's contract: reads the same input file and rows, prints the same progress lines, leaves
the same file, and ends with 0 only when that file is whole. What it refuses ends with 134 and a reason on
stderr, as an uncaught exception does in MOQUI. It is for trying out and for tests, no clinical engine, and
says so.

For rehearsals, ``MQI_ANALYTIC_SLOW_S`` makes it take that many seconds longer, spread over its layers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from mqi.dose.grid import DoseGrid
from mqi.engines.contract import EngineLayer, GridGeometry
from mqi.engines.input_lines import INPUT_TOKEN, OUTPUT_TOKEN
from mqi.engines.medium import read_ct_rsp, read_ct_series, water_box, water_phantom
from mqi.engines.pencil_beam import MODEL_VERSION, compute_dose
from mqi.engines.proton_physics import protons_per_mu
from mqi.engines.rows import read_layer
from mqi.engines.tps_input import TpsInput, read_tps_input
from mqi.errors import MQIError, ProcessingError
from mqi.files import atomic_path
from mqi.plan import IonPlan, PlanBeam, read_plan

__all__ = ["REFUSED", "SLOW_VARIABLE", "compute_dose", "main"]

REFUSED = 134
"""Exit status for input that cannot be computed: that of abort(), which ends MOQUI then."""

SLOW_VARIABLE = "MQI_ANALYTIC_SLOW_S"

_BANNER = f"""MQI analytic pencil beam ({MODEL_VERSION}): not a clinical engine
The doses of this program are for trials and tests only."""


@dataclass(frozen=True)
class _Job:
    """All that the input file names, read."""

    plan: IonPlan
    beam: PlanBeam
    room: str
    layers: tuple[EngineLayer, ...]
    medium: DoseGrid
    score: GridGeometry | None
    mu_per_count: float
    output: Path


def main(argv: Sequence[str]) -> int:
    """Run the engine on the input file that ``argv[1]`` names (./moqui_tps.in); return its exit status."""
    started_s = time.monotonic()
    _say(_BANNER)
    try:
        slow_s = _slow_s()
        job = _read_job(read_tps_input(Path(argv[1] if len(argv) > 1 else "moqui_tps.in")))
        _say(f"Total beamlets (Spots) : {sum(len(layer.counts) for layer in job.layers)}")
        protons = sum(
            int(layer.counts.sum()) * job.mu_per_count * protons_per_mu(layer.energy_mev)
            for layer in job.layers
        )
        _say(f"Total histories (Particles) : {int(protons)}")
        _say(f"Uploading particles with batch.. : {int(protons)} with {len(job.layers)} batches")

        def on_layer(number: int, count: int) -> None:
            _say(f"Generating particles for ({number} of {count} batches) in CPU ..")
            time.sleep(slow_s / count)

        dose = compute_dose(
            job.layers,
            beam=job.beam,
            patient_position=job.plan.patient_position,
            room=job.room,
            mu_per_count=job.mu_per_count,
            medium=job.medium,
            score=job.score,
            on_layer=on_layer,
        )
        with atomic_path(job.output) as part:
            dose.values.astype("<f8").tofile(part)
    except (MQIError, OSError) as error:
        sys.stdout.flush()
        sys.stderr.write(f"terminate called after throwing an error: {error}\n")
        return REFUSED
    _say(f"Output : {job.output.name!a}")
    _say(f"Time taken by analytic engine: {(time.monotonic() - started_s) * 1000:.0f} milli-seconds")
    return 0


def _say(line: str) -> None:
    """A line of the log, sent at once: progress is read while the engine runs."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _slow_s() -> float:
    text = os.environ.get(SLOW_VARIABLE, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise ProcessingError(f"{SLOW_VARIABLE} is {text!r}, not a number of seconds")
    return seconds


def _read_job(tps: TpsInput) -> _Job:
    folder = _place(tps, "DicomPath" if tps.text("DicomPath") else "DicomDir", "DICOM Dir")
    plan_path, ct_files = _sort_dicom(folder)
    plan = read_plan(plan_path)
    numbers = tps.integers("BeamNumbers")
    found = [beam for beam in plan.treatment_beams if (beam.number,) == numbers]
    if not found:
        raise ProcessingError(f"Invalid beam number. {tps.text('BeamNumbers') or 'none'}")
    beam = found[0]
    room = {1: "G1", 2: "G2"}.get(tps.integer("GantryNum", 0))
    if room is None:
        raise ProcessingError(f"GantryNum must be 1 or 2, not {tps.text('GantryNum') or 'left out'}")
    mu_per_count = tps.number("MuPerCount", 0.0)
    scorer, output_format = tps.text("Scorer", "EnergyDeposition"), tps.text("OutputFormat", "raw")
    if scorer != "Dose" or output_format != "raw":
        raise ProcessingError(f"this engine writes Dose as raw, not {scorer} as {output_format}")
    layers = _read_layers(_place(tps, "logFilePath", "Log Dir"))
    two_centimetres = tps.flag("TwoCentimeterMode", False)
    score = None
    if tps.flag("UsingPhantomGeo", False):
        phantom = water_phantom(
            beam,
            plan.patient_position,
            count=_triple(tps, "Dim", 200),
            unit_mm=_triple(tps, "Unit", 1),
            position_mm=_triple(tps, "Position", 1),
            two_centimetre_mode=two_centimetres,
        )
        medium, score = water_box(phantom.box), phantom.score
    else:
        medium = read_ct_rsp(read_ct_series(ct_files))
    child = len(beam.range_shifters) + (2 if two_centimetres else 0)
    return _Job(
        plan,
        beam,
        room,
        layers,
        medium,
        score,
        mu_per_count,
        _output_folder(tps) / f"{beam.name}_{child}_{scorer}.raw",
    )


def _place(tps: TpsInput, key: str, what: str) -> Path:
    """The folder that a key names: absolute, or below ParentDir where UseAbsolutePath is not set."""
    parent, value = tps.text("ParentDir"), tps.text(key)
    if not parent:
        raise ProcessingError("ParentDir is not provided")
    if not value:
        raise ProcessingError(f"{what} is not provided")
    if INPUT_TOKEN in value or OUTPUT_TOKEN in value:
        raise ProcessingError(f"{key} is still {value}: it was not replaced when the job was started")
    path = Path(value) if tps.flag("UseAbsolutePath", False) else Path(parent) / value
    if key != "OutputDir" and not path.is_dir():
        raise ProcessingError(f"{key} is no folder", path=path)
    return path


def _output_folder(tps: TpsInput) -> Path:
    """OutputDir, made here if its parent exists (one level, as MOQUI does)."""
    path = _place(tps, "OutputDir", "Output Dir")
    if path.exists() and not tps.flag("OverwriteResults", False):
        raise ProcessingError("Output directory exists.", path=path)
    path.mkdir(mode=0o755, exist_ok=True)
    return path


def _triple(tps: TpsInput, what: str, default: int) -> tuple[int, int, int]:
    x, y, z = (tps.integer(f"Phantom{what}{axis}", default) for axis in "XYZ")
    if what != "Position" and min(x, y, z) < 1:
        raise ProcessingError(f"Phantom{what} must be 1 or more, not {x}, {y}, {z}")
    return x, y, z


def _sort_dicom(folder: Path) -> tuple[Path, list[Path]]:
    """The first plan of a folder by name, and its CT slices."""
    plans, slices = [], []
    for path in sorted(folder.iterdir()):
        try:
            modality = pydicom.dcmread(path, specific_tags=["Modality"], stop_before_pixels=True).get(
                "Modality"
            )
        except (InvalidDicomError, OSError):
            continue
        if modality == "RTPLAN":
            plans.append(path)
        elif modality == "CT":
            slices.append(path)
    if not plans:
        raise ProcessingError("There is no RTPLAN in the path. Exiting.", path=folder)
    return plans[0], slices


def _read_layers(folder: Path) -> tuple[EngineLayer, ...]:
    """The rows of the only beam in the log folder, layer by layer in the order of the names."""
    beams = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(beams) != 1:
        raise ProcessingError(f"No matching log folder found: {len(beams)} folders", path=folder)
    files = sorted(beams[0].glob("*.csv"))
    if not files:
        raise ProcessingError("the log folder has no layers", path=beams[0])
    return tuple(read_layer(path) for path in files)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
