"""Claims about the embedded engine as a program: what it reads, says, leaves, and how it ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mqi.engines.analytic import REFUSED, SLOW_VARIABLE, compute_dose, main
from mqi.engines.medium import water_box, water_phantom
from mqi.engines.moqui import INPUT_FILE, EngineSettings, check_report, progress_of, read_dose, write_input
from mqi.engines.rows import CsvDialect
from mqi.plan import read_plan
from tests.unit.engine_cases import MU_PER_COUNT, small_water, some_layers, write_ct, write_plan


class Rehearsal:
    """A job folder as a host makes it: the input beside it, the tokens replaced, output/ made."""

    def __init__(self, folder: Path, *, gantry=90.0, ct_files=(), settings=None, shifter="", name="1G180:TX"):
        plan = read_plan(write_plan(folder / "case/RP.dcm", gantry, name=name, shifter=shifter))
        self.input, self.job = folder / "the input", folder / "the job"
        self.plan, self.beam, self.layers = plan, plan.beam(2), some_layers()
        self.given = write_input(
            self.input,
            plan=plan,
            beam=self.beam,
            layers=self.layers,
            ct_files=ct_files,
            settings=settings or small_water(),
            room="G2",
            mu_per_count=MU_PER_COUNT,
        )
        (self.job / "output").mkdir(parents=True)
        self.file = self.job / INPUT_FILE
        text = (self.input / INPUT_FILE).read_text()
        self.file.write_text(
            text.replace("@INPUT@", str(self.input)).replace("@OUTPUT@", str(self.job / "output"))
        )

    def edit(self, pattern: str, replacement: str) -> None:
        text, count = re.subn(pattern, replacement, self.file.read_text(), flags=re.MULTILINE)
        assert count
        self.file.write_text(text)

    def dose(self):
        return read_dose(self.job, self.given, case="QA-1", beam=2)

    def left(self) -> list[str]:
        return [path.name for path in (self.job / "output").iterdir()]


@pytest.fixture
def rehearsal(tmp_path):
    return Rehearsal(tmp_path)


def test_the_program_leaves_the_dose_that_the_function_computes_and_reports_what_it_read(rehearsal):
    done = subprocess.run(
        rehearsal.given.argv, cwd=rehearsal.job, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert rehearsal.left() == ["1G180:TX_0_Dose.raw"]
    lines = done.stdout.splitlines()
    assert "not a clinical engine" in lines[0]
    progress = [value for line in lines if (value := progress_of(line)) is not None]
    assert progress == [0.0, 0.0, 1 / 3, 2 / 3]
    check_report(done.stdout, rehearsal.given)
    assert f"Total beamlets (Spots) : {rehearsal.given.rows}" in lines
    phantom = water_phantom(
        rehearsal.beam, "HFS", count=(20, 20, 30), unit_mm=(4, 4, 4), position_mm=(-40, -40, -60)
    )
    direct = compute_dose(
        rehearsal.layers,
        beam=rehearsal.beam,
        patient_position="HFS",
        room="G2",
        mu_per_count=MU_PER_COUNT,
        medium=water_box(phantom.box),
        score=phantom.score,
    )
    dose = rehearsal.dose()
    assert np.allclose(dose.values, direct.values, atol=1e-6 * direct.values.max())  # rows have 5 decimals
    assert np.allclose(dose.origin_mm, direct.origin_mm)
    deepest = np.flatnonzero(dose.values.sum(axis=(1, 2)) > 1e-3 * dose.values.sum(axis=(1, 2)).max())[0]
    assert deepest == pytest.approx(30 - 82 / 4, abs=2)  # 104 MeV end 83 mm behind the surface


@pytest.mark.parametrize("dialect", CsvDialect)
@pytest.mark.parametrize("ending", ["lf", "crlf"])
def test_every_dialect_gives_the_same_dose(tmp_path, dialect, ending):
    rehearsals = [
        Rehearsal(tmp_path / name, settings=small_water(csv_dialect=each, line_ending=end))
        for name, each, end in (("a", dialect, ending), ("b", CsvDialect.ROWS, "lf"))
    ]
    assert [main(["engine", str(each.file)]) for each in rehearsals] == [0, 0]
    first, second = (each.dose().values for each in rehearsals)
    assert np.array_equal(first, second)


def test_a_ct_with_a_range_shifter_gives_a_dose_on_the_cts_grid_under_the_next_number(tmp_path):
    files = write_ct(tmp_path / "ct")
    job = Rehearsal(tmp_path, ct_files=files, settings=EngineSettings(), shifter="SNOUT_DEG_B")
    assert main(["engine", str(job.file)]) == 0
    assert job.left() == ["1G180:TX_1_Dose.raw"]
    assert job.dose().values.shape == (15, 20, 20)
    # The beam enters from the patient's left and stops there: 104 MeV less 46 mm.
    profile = job.dose().values.sum(axis=(0, 1))
    assert profile[-1] > 0 > 1e-6 * profile.max() - profile[-1]
    assert profile[:9].max() < 1e-3 * profile.max()


def test_the_two_centimetre_mode_leaves_one_slice(tmp_path):
    mode = EngineSettings(parameters={"TwoCentimeterMode": True})
    job = Rehearsal(tmp_path, settings=mode)
    assert main(["engine", str(job.file)]) == 0
    assert job.left() == ["1G180:TX_2_Dose.raw"]
    assert job.dose().values.shape == (1, 400, 400)


def test_an_ugly_beam_name_is_just_a_name(tmp_path):
    job = Rehearsal(tmp_path, name="$(touch x);빔")
    assert main(["engine", str(job.file)]) == 0
    assert job.left() == ["$(touch x);빔_0_Dose.raw"]
    assert job.dose().values.max() > 0


def test_paths_may_be_relative_to_parent_dir_as_in_moqui(rehearsal, tmp_path):
    rehearsal.edit("^UseAbsolutePath .*", "UseAbsolutePath false")
    rehearsal.edit("^ParentDir .*", f"ParentDir {tmp_path}")
    rehearsal.edit("^DicomPath .*", "")
    rehearsal.edit("^DicomDir .*", "DicomDir the input/rtplan")
    rehearsal.edit("^logFilePath .*", "logFilePath the input/log")
    rehearsal.edit("^OutputDir .*", "OutputDir the job/output")
    assert main(["engine", str(rehearsal.file)]) == 0
    assert rehearsal.dose().values.max() > 0


REFUSALS = [
    (r"^ParentDir .*", "", "ParentDir is not provided"),
    (r"^logFilePath .*", "", "Log Dir is not provided"),
    (r"^Dicom(Path|Dir) .*", "", "DICOM Dir is not provided"),
    (r"^DicomPath .*", "DicomPath @INPUT@/rtplan", "not replaced"),
    (r"^DicomPath .*", "DicomPath /nowhere/at/all", "no folder"),
    (r"^DicomPath (.*)/rtplan", r"DicomPath \1/log", "There is no RTPLAN"),
    (r"^logFilePath (.*)/log", r"logFilePath \1/rtplan", "No matching log folder"),
    (r"^BeamNumbers .*", "BeamNumbers 1", "Invalid beam number"),
    (r"^BeamNumbers .*", "BeamNumbers 2,3", "Invalid beam number"),
    (r"^BeamNumbers .*", "", "Invalid beam number"),
    (r"^GantryNum .*", "GantryNum 3", "GantryNum"),
    (r"^GantryNum .*", "", "GantryNum"),
    (r"^MuPerCount .*", "", "MU per count"),
    (r"^Scorer .*", "Scorer LETd", "LETd"),
    (r"^Scorer .*", "", "EnergyDeposition"),
    (r"^OutputFormat .*", "OutputFormat npz", "npz"),
    (r"^OverwriteResults .*", "", "Output directory exists."),
    (r"^OutputDir .*", "OutputDir /proc/none/output", "No such file"),
    (r"^PhantomDimX .*", "PhantomDimX zero", "PhantomDim"),
    (r"^UsingPhantomGeo .*", "UsingPhantomGeo false", "at least 2"),
]


@pytest.mark.parametrize(("pattern", "replacement", "words"), REFUSALS)
def test_bad_input_ends_as_an_abort_with_the_reason_and_without_output(
    rehearsal, capsys, pattern, replacement, words
):
    rehearsal.edit(pattern, replacement)
    assert main(["engine", str(rehearsal.file)]) == REFUSED
    assert words in capsys.readouterr().err
    assert rehearsal.left() == []


def test_missing_or_damaged_files_end_as_an_abort(rehearsal, capsys, tmp_path, monkeypatch):
    def refused(words):
        assert main(["engine", str(rehearsal.file)]) == REFUSED
        assert words in capsys.readouterr().err
        assert rehearsal.left() == []

    layer = next((rehearsal.input / "log").rglob("01_*.csv"))
    content = layer.read_bytes()
    layer.write_bytes(content[:-3] + b"x\r\n")
    refused("not a number")
    layer.write_bytes(content.replace(b"\r\n", b",", 1))
    refused("not rows of time")
    layer.write_bytes(content)
    (rehearsal.input / "log/another").mkdir()
    refused("2 folders")
    shutil.rmtree(rehearsal.input / "log/another")
    for path in (rehearsal.input / "log").rglob("*.csv"):
        path.unlink()
    refused("no layers")
    monkeypatch.chdir(tmp_path)
    assert main(["engine"]) == REFUSED
    assert INPUT_FILE in capsys.readouterr().err


def test_a_dose_that_cannot_be_written_is_no_success(rehearsal, capsys):
    (rehearsal.job / "output/1G180:TX_0_Dose.raw").mkdir()
    assert main(["engine", str(rehearsal.file)]) == REFUSED
    assert "terminate" in capsys.readouterr().err
    assert rehearsal.left() == ["1G180:TX_0_Dose.raw"]  # and no part of a file


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_rehearsals_delay_that_is_none_is_refused(rehearsal, capsys, monkeypatch, text):
    monkeypatch.setenv(SLOW_VARIABLE, text)
    assert main(["engine", str(rehearsal.file)]) == REFUSED
    assert SLOW_VARIABLE in capsys.readouterr().err


def test_a_killed_engine_leaves_no_dose_and_its_progress_was_seen_while_it_ran(rehearsal):
    with subprocess.Popen(
        [sys.executable, "-m", "mqi.engines.analytic", INPUT_FILE],
        cwd=rehearsal.job,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, SLOW_VARIABLE: "120"},
    ) as engine:
        assert engine.stdout is not None
        started = time.monotonic()
        while progress_of(engine.stdout.readline()) is None:
            assert time.monotonic() - started < 60
        assert engine.poll() is None
        engine.send_signal(signal.SIGTERM)
        assert engine.wait(10) == -signal.SIGTERM
    assert rehearsal.left() == []
