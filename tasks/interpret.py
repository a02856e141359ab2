"""interpret_beam: a beam's logs, or its plan, as the engine's input."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from mqi.case import DoseSource
from mqi.engines import moqui
from mqi.engines.pencil_beam import MODEL_VERSION
from mqi.engines.settings import EngineSettings
from mqi.errors import ConfigurationError
from mqi.files import fact_of, inside, write_atomically
from mqi.hosts import connect
from mqi.hosts.base import HostSettings
from mqi.log.calibration import CalibrationSet
from mqi.log.interpret import interpret_beam as interpret_logs
from mqi.log.interpret import planned_layers, save_spots
from mqi.plan import read_plan
from tasks.caching import WhileFilesStand
from tasks.values import PreparedBeam, Unit

__all__ = ["engine_version", "interpret_beam"]


def engine_version(host: HostSettings, engine: EngineSettings) -> str:
    """The version that the engine on the host gives of itself: part of every job's identity."""
    if not engine.version_command:
        return MODEL_VERSION if engine.engine == "analytic" else "unknown"
    told = connect(host).run(engine.version_command)
    lines = (told.stdout or told.stderr).decode("utf-8", "replace").strip().splitlines()
    if told.exit_code or not lines:
        raise ConfigurationError(
            f"the engine's version command ended with status {told.exit_code} and said {lines[:1]}",
            path=engine.version_command[0],
            todo="Correct version_command in the engine's block",
        )
    return lines[0][:100]


@task(
    name="interpret-beam",
    task_run_name="interpret {unit.label}",
    persist_result=True,
    cache_policy=WhileFilesStand(),
    result_serializer="json",
)
def interpret_beam(
    unit: Unit, calibration: CalibrationSet, engine: EngineSettings, version: str
) -> PreparedBeam:
    """Write the engine's input for one beam from one source, and account for every monitor unit."""
    case_folder = Path(unit.manifest.folder)
    plan = read_plan(inside(case_folder, unit.manifest.plan.path))
    beam = plan.beam(unit.beam_number)
    account = spots = None
    unit.work.mkdir(parents=True, exist_ok=True)
    if unit.source is DoseSource.LOG:
        interpreted = interpret_logs(case_folder, unit.manifest.beam(unit.beam_number), plan, calibration)
        layers, account = interpreted.layers, interpreted.account
        folder = Path(unit.folder, "beams", f"{unit.beam_number:02d}")
        folder.mkdir(parents=True, exist_ok=True)
        save_spots(folder / "spots.npz", interpreted.spots)
        write_atomically(folder / "account.json", account.model_dump_json(indent=1).encode())
        spots = fact_of(folder / "spots.npz", Path(unit.folder))
    else:
        layers = planned_layers(beam, calibration)
    written = moqui.write_input(
        unit.work / "input",
        plan=plan,
        beam=beam,
        layers=layers,
        ct_files=[inside(case_folder, image.path) for image in unit.manifest.ct],
        settings=engine,
        room=unit.manifest.machine,
        mu_per_count=calibration.mu_per_count,
        engine_version=version,
    )
    files = tuple(
        fact_of(path, unit.work) for path in sorted((unit.work / "input").rglob("*")) if path.is_file()
    )
    return PreparedBeam(
        unit=unit,
        input=written,
        engine_version=version,
        account=account,
        files=files,
        spots=spots,
    )
