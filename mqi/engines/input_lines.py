"""The keys of ``moqui_tps.in`` for one beam."""

from __future__ import annotations

from mqi.engines.settings import EngineSettings
from mqi.errors import ValidationError
from mqi.plan import IonPlan, PlanBeam

__all__ = ["INPUT_TOKEN", "OUTPUT_TOKEN", "input_lines"]

INPUT_TOKEN, OUTPUT_TOKEN = "@INPUT@", "@OUTPUT@"

_GANTRY = {"G1": 1, "G2": 2}


def input_lines(
    settings: EngineSettings, *, plan: IonPlan, beam: PlanBeam, water: bool, room: str, mu_per_count: float
) -> tuple[tuple[str, str], ...]:
    """All keys of the input file in order. Raises ValidationError for a room or beam that is none."""
    if room not in _GANTRY:
        raise ValidationError(
            f"there is no room {room}; there are {', '.join(_GANTRY)}",
            beam=beam.number,
            todo="Check the machine",
        )
    lines = {
        "GPUID": settings.gpu_id,
        "RandomSeed": settings.random_seed,
        "UseAbsolutePath": True,
        "ParentDir": INPUT_TOKEN,
        "DicomDir": f"{INPUT_TOKEN}/rtplan",
        "DicomPath": f"{INPUT_TOKEN}/rtplan",
        "logFilePath": f"{INPUT_TOKEN}/log",
        "GantryNum": _GANTRY[room],
        "BeamNumbers": _beam_number(settings, plan, beam),
        "UsingPhantomGeo": water,
        **settings.effective(),
        "OutputDir": OUTPUT_TOKEN,
        "OverwriteResults": True,
    }
    if settings.engine == "analytic":
        lines["MuPerCount"] = repr(float(mu_per_count))
    return tuple((key, _as_text(value)) for key, value in lines.items())


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # MOQUI reads counts of histories with atof or atoi: no exponent, no needless point.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _beam_number(settings: EngineSettings, plan: IonPlan, beam: PlanBeam) -> int:
    numbers = {
        "dicom": list(range(beam.number + 1)),
        "position-with-setup": [0, *(each.number for each in plan.beams)],
        "position-without-setup": [0, *(each.number for each in plan.treatment_beams)],
        "one": [0, beam.number],
    }[settings.beam_number_meaning]
    if beam.number not in [each.number for each in plan.treatment_beams]:
        raise ValidationError(
            "the plan has no treatment beam of this number",
            beam=beam.number,
            path=plan.path,
            todo="Check the plan",
        )
    return numbers.index(beam.number, 1)
