"""Which engine a site runs, and with which of MOQUI's parameters."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mqi.case import Frozen
from mqi.engines.rows import CsvDialect, LineEnding

__all__ = ["PARAMETERS", "EngineSettings", "Parameter", "ParameterValue"]

ParameterValue = bool | int | float | str

_DAY_S = 86_400


@dataclass(frozen=True)
class Parameter:
    """One of MOQUI's parameters that a site may set.

    ``default`` None: not written unless the site sets it. ``choices``: the values that this project can use.
    """

    kind: type[bool] | type[int] | type[float] | type[str]
    default: ParameterValue | None
    about: str
    choices: tuple[ParameterValue, ...] = ()


PARAMETERS: dict[str, Parameter] = {
    "TotalThreads": Parameter(int, -1, "CPU threads that prepare particles; below 0: the engine decides"),
    "MaxHistoriesPerBatch": Parameter(
        int, 10_000_000, "Histories on the GPU at once; 0: all, and then no progress"
    ),
    "Verbosity": Parameter(int, 0, "Not read by the public trees"),
    "Scorer": Parameter(str, "Dose", "What is scored", ("Dose",)),
    "SupressStd": Parameter(bool, True, "Leave out the standard deviation (MOQUI's spelling)"),
    "SourceType": Parameter(str, "FluenceMap", "Kind of source", ("FluenceMap",)),
    "SimulationType": Parameter(str, "perBeam", "One dose for the beam", ("perBeam",)),
    "NormalizeTotalHistories": Parameter(
        float, 500_000_000, "Histories of a beam (moqui_SMC); left out when ParticlesPerHistory is set"
    ),
    "ParticlesPerHistory": Parameter(float, None, "Scale of histories and dose in the older builds"),
    "ReadStructure": Parameter(bool, False, "Read an RT Structure Set"),
    "BodyContourName": Parameter(str, "External", "Structure of the body's outline"),
    "ScoreToCTGrid": Parameter(bool, True, "Score on the CT's grid (forced by the engine)", (True,)),
    "OutputFormat": Parameter(str, "raw", "File format of the dose", ("raw", "mhd", "mha")),
    "TwoCentimeterMode": Parameter(
        bool, False, "One slice at 2 cm depth in water, 400 x 400 pixels of 1 mm, in place of the phantom"
    ),
    # The site's box (400 mm wide, 20 mm of water before the isocentre) in steps of 2 mm instead of 1.
    "PhantomDimX": Parameter(int, 200, "Voxels of the water phantom"),
    "PhantomDimY": Parameter(int, 200, "Voxels of the water phantom"),
    "PhantomDimZ": Parameter(int, 200, "Voxels of the water phantom"),
    "PhantomUnitX": Parameter(int, 2, "Voxel size, whole mm"),
    "PhantomUnitY": Parameter(int, 2, "Voxel size, whole mm"),
    "PhantomUnitZ": Parameter(int, 2, "Voxel size, whole mm"),
    "PhantomPositionX": Parameter(int, -200, "Lower corner from the isocentre, whole mm"),
    "PhantomPositionY": Parameter(int, -200, "Lower corner from the isocentre, whole mm"),
    "PhantomPositionZ": Parameter(
        int, -380, "Lower corner from the isocentre, whole mm; the beam runs to -z"
    ),
    # Upstream multiplies the dose by these two; the fork does not know them.
    "RBE": Parameter(float, 1.0, "Factor on the dose (upstream)"),
    "NumberOfFraction": Parameter(int, 1, "Factor on the dose (upstream)"),
    "EnableBeamLayerMultiGpu": Parameter(
        bool, False, "Spread a beam over GPUs (moqui_SMC); a job here holds one GPU", (False,)
    ),
    "Machine": Parameter(str, None, "Beam model (upstream), e.g. PBS:/path/beam.txt"),
    "Calibration": Parameter(str, None, "CT calibration (upstream)"),
    "DensityScaling": Parameter(float, None, "Factor on the CT's density (upstream)"),
    "RangeshifterDensity": Parameter(float, None, "g/cm3 (upstream, 1.19)"),
    "StoppingStatistics": Parameter(bool, None, "Stop when the dose is precise enough (upstream)"),
    "StoppingCriteria": Parameter(float, None, "Percent (upstream)"),
    "StatThreshold": Parameter(float, None, "Threshold of the stopping statistics (upstream)"),
    "DebugMode": Parameter(bool, None, "More output"),
}

_KIND_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text without # in one line",
}

# Written by the program for each job; a site cannot set them.
_OURS = {
    "GPUID": "gpu_id",
    "RandomSeed": "random_seed",
    "UsingPhantomGeo": "medium",
    "BeamNumbers": "beam_number_meaning",
    "GantryNum": "the plan's TreatmentMachineName",
    **dict.fromkeys(("ParentDir", "DicomDir", "DicomPath", "logFilePath", "OutputDir"), "the job's folder"),
    **dict.fromkeys(("UseAbsolutePath", "OverwriteResults"), "the program (always true)"),
    "MuPerCount": "the calibration set",
}


class EngineSettings(Frozen):
    """The dose engine of a site. With no setting at all it is the embedded analytic model.

    Raises pydantic's ValidationError for an unknown parameter, with the nearest known name, and for values
    that the engine would silently take for something else.
    """

    engine: Literal["analytic", "moqui"] = Field(
        default="analytic",
        description="analytic: the embedded pencil-beam model, for trying out, no clinical engine. "
        "moqui: the Monte Carlo engine on the host's GPU",
    )
    command: tuple[str, ...] = Field(
        default=(),
        description="Engine program and its leading arguments on the host. Empty: the embedded engine",
    )
    version_command: tuple[str, ...] = Field(
        default=(), description="Prints the engine's version on the host. Empty: the version is not asked"
    )
    medium: Literal["auto", "ct", "water"] = Field(
        default="auto",
        description="What the dose is computed in. auto: the CT if there is one, else water",
    )
    random_seed: int = Field(
        default=-1932780356,
        ge=-(2**31),
        lt=2**31,
        description="Recorded with each result. -1 would be the time of day and is refused",
    )
    gpu_id: int = Field(
        default=0, ge=0, description="GPU that the engine asks for. A job sees one GPU only, number 0"
    )
    parameters: dict[str, ParameterValue] = Field(
        default_factory=dict, description="MOQUI's parameters that differ from the defaults, by MOQUI's names"
    )
    csv_dialect: CsvDialect = Field(
        default=CsvDialect.ROWS, description="How the engine build tells the log's rows apart"
    )
    line_ending: LineEnding = Field(default="crlf", description="End of a row")
    beam_number_meaning: Literal["dicom", "position-with-setup", "position-without-setup", "one"] = Field(
        default="dicom",
        description="What the build takes BeamNumbers for: the DICOM beam number, the beam's place in the "
        "plan with or without setup fields, or always 1",
    )
    output_child: int | None = Field(
        default=None,
        ge=0,
        description="Number in the output's name, <Beam>_<number>_<Scorer>. Empty: as the public trees count "
        "(0, in the two centimetre mode 2, and one more for each range shifter)",
    )
    time_limit_s: int = Field(
        default=4 * 3600, ge=1, le=7 * _DAY_S, description="An engine that runs longer is stopped"
    )

    @field_validator("parameters")
    @classmethod
    def _known(cls, given: dict[str, ParameterValue]) -> dict[str, ParameterValue]:
        return {name: _checked(name, value) for name, value in given.items()}

    @model_validator(mode="after")
    def _consistent(self) -> EngineSettings:
        if self.engine == "moqui" and not self.command:
            raise ValueError("command is missing: the path of MOQUI's tps_env on the host")
        if self.engine == "analytic" and self.beam_number_meaning != "dicom":
            raise ValueError("the analytic engine takes BeamNumbers for the DICOM beam number")
        if self.engine == "analytic" and self.parameter("OutputFormat") != "raw":
            raise ValueError("the analytic engine writes OutputFormat raw only")
        if self.engine == "analytic" and self.output_child is not None:
            raise ValueError("the analytic engine numbers its output by itself: leave output_child empty")
        if self.random_seed == -1:
            raise ValueError(
                "random_seed -1 means the time of day: the same job would not give the same dose"
            )
        if {"NormalizeTotalHistories", "ParticlesPerHistory"} <= self.parameters.keys():
            raise ValueError("set NormalizeTotalHistories or ParticlesPerHistory, not both")
        if self.parameter("TwoCentimeterMode") and self.medium == "ct":
            raise ValueError("TwoCentimeterMode is a water phantom; the medium is set to ct")
        for axis in "XYZ":
            if self.integer(f"PhantomDim{axis}") < 1 or self.integer(f"PhantomUnit{axis}") < 1:
                raise ValueError(f"PhantomDim{axis} and PhantomUnit{axis} must be 1 or more")
        return self

    def parameter(self, name: str) -> ParameterValue | None:
        """A parameter as the site set it, or its default."""
        return self.parameters.get(name, PARAMETERS[name].default)

    def integer(self, name: str) -> int:
        """A whole-number parameter."""
        return int(self.parameter(name) or 0)

    def phantom(self, what: Literal["Dim", "Unit", "Position"]) -> tuple[int, int, int]:
        """The water phantom's PhantomDim, PhantomUnit or PhantomPosition along x, y, z."""
        x, y, z = (self.integer(f"Phantom{what}{axis}") for axis in "XYZ")
        return x, y, z

    def effective(self) -> dict[str, ParameterValue]:
        """All parameters that are written, in the table's order."""
        left_out = {"NormalizeTotalHistories"} if "ParticlesPerHistory" in self.parameters else set()
        values = {name: self.parameter(name) for name in PARAMETERS if name not in left_out}
        return {name: value for name, value in values.items() if value is not None}

    def argv(self) -> tuple[str, ...]:
        """The engine's command without its input file."""
        return self.command or (sys.executable, "-m", "mqi.engines.analytic")


def _checked(name: str, value: ParameterValue) -> ParameterValue:
    """The value in the parameter's own type. Raises ValueError with what to do."""
    if name in _OURS:
        raise ValueError(f"{name} cannot be set: it comes from {_OURS[name]}")
    if name not in PARAMETERS:
        lower = {known.lower(): known for known in PARAMETERS}
        near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
        hint = f"; did you mean {lower[near[0]]}?" if near else ""
        raise ValueError(f"{name} is not a parameter that is known here{hint}")
    known = PARAMETERS[name]
    text = str(value).strip()
    try:
        result = _converted(known.kind, text)
    except ValueError:
        raise ValueError(f"{name} must be {_KIND_WORDS[known.kind]}, not {value!r}") from None
    if known.choices and result not in known.choices:
        raise ValueError(f"{name} must be {' or '.join(map(str, known.choices))}, not {value!r}")
    return result


def _converted(kind: type[ParameterValue], text: str) -> ParameterValue:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    if kind is int:
        if not float(text).is_integer():
            raise ValueError(text)
        return int(float(text))
    if kind is float:
        number = float(text)
        if number - number != 0:  # infinite or not a number
            raise ValueError(text)
        return number
    if not text or any(character in text for character in "#\r\n"):
        raise ValueError(text)
    return text
