"""Claims about the engine's input folder, its settings, its output and its last words."""

import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqi.engines.contract import EngineInput, EngineLayer
from mqi.engines.medium import read_ct_rsp, read_ct_series
from mqi.engines.moqui import (
    INPUT_FILE,
    EngineSettings,
    check_report,
    explain_exit,
    progress_of,
    read_dose,
    write_input,
)
from mqi.engines.rows import CsvDialect, layer_file_name, read_layer, rows_as_csv
from mqi.engines.settings import PARAMETERS
from mqi.engines.tps_input import TpsInput, read_tps_input, write_tps_input
from mqi.errors import ConfigurationError, ProcessingError, ResourceError, ValidationError
from mqi.plan import RangeShifter
from tests.unit.engine_cases import (
    MU_PER_COUNT,
    a_beam,
    a_layer,
    a_plan,
    a_setup_beam,
    small_water,
    some_layers,
    write_ct,
    write_plan,
)

MOQUI = {"engine": "moqui", "command": ("/opt/moqui/tps_env",)}


@pytest.fixture(scope="module")
def plan_path(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("plan") / "RP.1.dcm")


@pytest.fixture(scope="module")
def ct_files(tmp_path_factory):
    return write_ct(tmp_path_factory.mktemp("ct"), (8, 8, 5), 3.0)


@pytest.fixture
def write(tmp_path, plan_path):
    def _write(folder="input", **changes) -> EngineInput:
        values = {"beam": a_beam(), "layers": some_layers(), "ct_files": (), "settings": small_water()}
        values |= {"room": "G2", "mu_per_count": MU_PER_COUNT, "plan": a_plan(plan_path)}
        return write_input(tmp_path / folder, **(values | changes))

    return _write


# --- rows ---------------------------------------------------------------------------------------------------


def rows_strategy():
    row = st.tuples(st.floats(0, 1e5), st.floats(-500, 500), st.floats(-500, 500), st.integers(1, 200_000))
    return st.lists(row, min_size=1, max_size=20)


@settings(max_examples=150, deadline=None)
@given(rows=rows_strategy(), dialect=st.sampled_from(CsvDialect), ending=st.sampled_from(["lf", "crlf"]))
def test_rows_are_read_back_in_every_dialect(tmp_path_factory, rows, dialect, ending):
    time, x, y, counts = (np.array(column) for column in zip(*rows, strict=True))
    layer = EngineLayer(7, 123.45, time, x, y, counts.astype(np.int64))
    path = tmp_path_factory.getbasetemp() / "07_123.45MeV.csv"
    path.write_bytes(rows_as_csv(layer, dialect, ending))
    read = read_layer(path)
    assert (read.number, read.energy_mev) == (7, 123.45)
    assert np.abs(read.time_ms - time).max() < 0.51e-4
    assert np.abs(read.x_mm - x).max() < 0.51e-5
    assert np.abs(read.y_mm - y).max() < 0.51e-5
    assert np.array_equal(read.counts, counts)


def test_rows_look_as_the_sites_interpreter_writes_them():
    layer = EngineLayer(
        1,
        70.0,
        np.array([0.0, 0.06]),
        np.array([295.64172, -0.5]),
        np.array([-232.34996, 0.0]),
        np.array([135, 7]),
    )
    assert rows_as_csv(layer, CsvDialect.ROWS, "crlf") == (
        b"0.0000,295.64172,-232.34996,135\r\n0.0600,-0.50000,0.00000,7\r\n"
    )
    assert (
        rows_as_csv(layer, CsvDialect.ROWS_TRAILING_COMMA, "lf").splitlines()[1]
        == b"0.0600,-0.50000,0.00000,7,"
    )
    assert rows_as_csv(layer, CsvDialect.SINGLE_LINE, "lf") == (
        b"0.0000,295.64172,-232.34996,135,0.0600,-0.50000,0.00000,7"
    )


def as_the_public_fork_reads(content: bytes) -> list[tuple[float, ...]]:
    """mqi_tps_env.hpp:706-797: split at commas only, groups of four, std::stof and std::stoi."""

    def number(text):
        return float(re.match(r"\s*([+-]?[\d.]+)", text)[1])

    tokens = content.decode().split(",")
    return [tuple(map(number, tokens[at : at + 4])) for at in range(0, len(tokens) // 4 * 4, 4)]


def test_the_public_fork_reads_rows_with_a_trailing_comma_and_takes_the_others_for_garbage():
    layer = a_layer(x_mm=(10.0, 11.0, 12.0), y_mm=(20.0, 21.0, 22.0), counts=(100, 101, 102))
    right = as_the_public_fork_reads(rows_as_csv(layer, CsvDialect.ROWS_TRAILING_COMMA, "lf"))
    assert [row[1:] for row in right] == [(10, 20, 100), (11, 21, 101), (12, 22, 102)]
    wrong = as_the_public_fork_reads(rows_as_csv(layer, CsvDialect.ROWS, "lf"))
    assert wrong[1][1:] != (11, 21, 101)
    assert len(wrong) != 3  # which is what its report shows


def test_an_engine_that_read_another_number_of_rows_is_caught_by_its_own_report(write):
    given = write()
    check_report(f"Total beamlets (Spots) : {given.rows}\nTotal histories (Particles) : 5\n", given)
    check_report("a build that reports nothing", given)
    with pytest.raises(ProcessingError, match="another CSV dialect"):
        check_report(f"Total beamlets (Spots) : {given.rows * 3 // 4}\n", given)
    with pytest.raises(ProcessingError, match="no histories"):
        check_report("Total histories (Particles) : 0\n", given)


def test_rows_without_counts_are_left_out_and_reported_so(write):
    layers = [a_layer(1, 100.0, (0.0, 1.0, 2.0), (0.0,) * 3, (5, 0, 7)), a_layer(2, 98.0, counts=(0,))]
    given = write(layers=layers)
    assert (given.rows, given.total_counts) == (2, 12)
    assert given.total_mu == pytest.approx(12 * MU_PER_COUNT)
    assert [path.name for path in Path(given.folder).glob("log/*/*")] == ["01_100.00MeV.csv"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("01_100MeV.txt", b"0,0,0,1\n"),
        ("layer.csv", b"0,0,0,1\n"),
        ("01_100.00MeV.csv", b""),
        ("01_100.00MeV.csv", b"0,0,0\n"),
        ("01_100.00MeV.csv", b"0,0,0,1\n0,0,0\n"),
        ("01_100.00MeV.csv", b"0,0,0,1,5\n0,0,1\n"),
        ("01_100.00MeV.csv", b"0,0,0,1\n0,0,0,x\n"),
        ("01_100.00MeV.csv", b"Time (ms),X (mm),Y (mm),MU\n0,0,0,1\n"),
        ("01_100.00MeV.csv", b"0,0,0,1.5\n"),
        ("01_100.00MeV.csv", b"0,0,0,-1\n"),
        ("01_100.00MeV.csv", b"0,0,nan,1\n"),
        ("01_100.00MeV.csv", b"0,,0,1\n"),
        ("01_100.00MeV.csv", b"0,0,0,1,0,0,0,1\n0,0,0,1\n"),
        ("01_100.00MeV.csv", b"0,0\n0,1\n"),
        ("01_100.00MeV.csv", b"0,0,0,1\n\n0,0,0,1\n"),
        ("01_100.00MeV.csv", b'0,0,0,"1"\n'),
        ("01_100.00MeV.csv", b"0;0,0,0,1\n"),
        ("01_100.00MeV.csv", "0,0,0,１\n".encode()),
    ],
)
def test_a_layer_file_that_is_none_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProcessingError, match=re.escape(name)):
        read_layer(tmp_path / name)


@pytest.mark.parametrize(
    "layer",
    [
        a_layer(x_mm=(np.nan,)),
        a_layer(y_mm=(np.inf,)),
        a_layer(x_mm=(1e9,)),
        a_layer(counts=(-1,)),
        EngineLayer(1, 100.0, np.zeros(2), np.zeros(2), np.zeros(3), np.ones(2, np.int64)),
    ],
)
def test_rows_that_cannot_be_are_never_written(layer, write, tmp_path):
    with pytest.raises(ValidationError, match="layer 1"):
        write(layers=[layer])
    assert not list(tmp_path.iterdir())


# --- the folder ---------------------------------------------------------------------------------------------


def test_the_folder_holds_one_log_folder_the_plan_and_the_input_file(write, plan_path, tmp_path):
    given = write()
    found = sorted(
        str(path.relative_to(given.folder)) for path in (tmp_path / "input").rglob("*") if path.is_file()
    )
    assert found == [
        "log/1G180_TX/01_100.00MeV.csv",
        "log/1G180_TX/02_102.00MeV.csv",
        "log/1G180_TX/03_104.00MeV.csv",
        "moqui_tps.in",
        "rtplan/RP.1.dcm",
    ]
    assert (tmp_path / "input/rtplan/RP.1.dcm").read_bytes() == plan_path.read_bytes()


def test_the_input_file_says_what_moqui_wants_to_know(write, tmp_path):
    given = write(settings=EngineSettings(**MOQUI, parameters={"MaxHistoriesPerBatch": 600000000}))
    tps = read_tps_input(tmp_path / "input" / INPUT_FILE)
    assert tps.text("gpuid") == "0"
    assert tps.integer("RandomSeed", 0) == -1932780356
    assert tps.flag("UseAbsolutePath", False)
    assert tps.text("ParentDir") == "@INPUT@"
    assert tps.text("DicomPath") == tps.text("DicomDir") == "@INPUT@/rtplan"
    assert tps.text("logFilePath") == "@INPUT@/log"
    assert tps.text("OutputDir") == "@OUTPUT@"
    assert tps.flag("OverwriteResults", False)
    assert (tps.integer("GantryNum", 0), tps.integers("BeamNumbers")) == (2, (2,))
    assert tps.integer("MaxHistoriesPerBatch", 0) == 600_000_000
    assert tps.text("NormalizeTotalHistories") == "500000000"
    assert tps.number("RBE", 1.1) == 1.0  # upstream would multiply the dose by 1.1 and the fractions
    assert tps.integer("NumberOfFraction", -1) == 1
    assert tps.text("ParticlesPerHistory") == tps.text("MuPerCount") == ""
    assert given.argv == ("/opt/moqui/tps_env", INPUT_FILE)


def test_counts_reach_the_analytic_engine_with_the_calibrations_mu(write, tmp_path):
    given = write()
    assert read_tps_input(tmp_path / "input" / INPUT_FILE).number("MuPerCount", 0.0) == MU_PER_COUNT
    assert given.argv == (sys.executable, "-m", "mqi.engines.analytic", INPUT_FILE)


@pytest.mark.parametrize(
    ("meaning", "number"),
    [("dicom", "5"), ("position-with-setup", "3"), ("position-without-setup", "2"), ("one", "1")],
)
def test_beam_numbers_means_what_the_site_says(write, tmp_path, plan_path, meaning, number):
    beams = (a_setup_beam(), a_beam(number=4), a_beam(number=5))
    write(
        plan=a_plan(plan_path, *beams),
        beam=beams[2],
        settings=EngineSettings(**MOQUI, beam_number_meaning=meaning),
    )
    assert read_tps_input(tmp_path / "input" / INPUT_FILE).text("BeamNumbers") == number


def test_a_hundred_layers_still_sort_in_their_order(write, tmp_path):
    layers = [a_layer(number, 200.0 - number) for number in range(1, 102)]
    write(layers=layers)
    names = sorted(path.name for path in (tmp_path / "input/log").rglob("*.csv"))
    assert names[0] == "001_199.00MeV.csv"
    assert names[-1] == "101_99.00MeV.csv"
    assert [read_layer(tmp_path / "input/log/1G180_TX" / name).number for name in names] == list(
        range(1, 102)
    )
    assert layer_file_name(3, 70.4) == "03_70.40MeV.csv"


@pytest.mark.parametrize("numbers", [(2, 1), (1, 1), (0, 1)])
def test_layers_out_of_order_are_refused(write, numbers):
    with pytest.raises(ValidationError, match="do not rise"):
        write(layers=[a_layer(number) for number in numbers])


def test_a_beam_without_any_counts_is_refused(write):
    for layers in ([], [a_layer(counts=(0,))]):
        with pytest.raises(ValidationError, match="any counts"):
            write(layers=layers)


@pytest.mark.parametrize("name", ["", " ", "a/b", "../x", ".hidden", "a\nb", "a\0b", "x" * 300])
def test_a_beam_whose_name_cannot_name_a_file_is_refused(write, tmp_path, name):
    with pytest.raises(ValidationError, match="name"):
        write(beam=a_beam(name=name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["$(rm -rf ~)", "빔 1", "a b;c", "-x", "1G000:TX"])
def test_an_ugly_name_stays_as_it_is_in_the_output_and_plain_in_the_folder(write, tmp_path, name):
    given = write(beam=a_beam(name=name))
    assert given.output.path == f"output/{name}_0_Dose.raw"
    (log,) = (tmp_path / "input/log").iterdir()
    assert re.fullmatch(r"[A-Za-z0-9_-]+", log.name)


def test_writing_again_replaces_what_was_written_but_nothing_else(write, tmp_path):
    first = write(layers=some_layers(5))
    second = write(layers=some_layers(2))
    assert len(list((tmp_path / "input/log").rglob("*.csv"))) == 2
    assert first.digest != second.digest
    (tmp_path / "input/precious.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=r"precious\.txt"):
        write()
    assert (tmp_path / "input/precious.txt").exists()
    assert len(list((tmp_path / "input/log").rglob("*.csv"))) == 2
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="taken"):
        write("file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "input"]


def test_the_setup_field_and_a_strange_beam_are_refused(write):
    for beam in (a_setup_beam(), a_beam(number=9)):
        with pytest.raises(ValidationError, match="no treatment beam"):
            write(beam=beam)


def test_a_folder_that_cannot_be_written_is_tried_again_later(write, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="cannot be written"):
        write("file/input")
    with pytest.raises(ResourceError, match="No such file"):
        write(plan=a_plan(tmp_path / "gone.dcm"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mu_per_count", [0.0, -1.0, np.nan, np.inf])
def test_an_impossible_calibration_is_refused(write, mu_per_count):
    with pytest.raises(ConfigurationError, match="MU per count"):
        write(mu_per_count=mu_per_count)


def test_an_unknown_room_is_refused(write):
    with pytest.raises(ValidationError, match="G3"):
        write(room="G3")


# --- the medium ---------------------------------------------------------------------------------------------


def test_a_water_phantom_stands_in_the_beams_eye_view_right_handed_and_deepest_slice_first(write):
    geometry = write(beam=a_beam(gantry_angle_deg=90.0, isocentre_mm=(1.0, 2.0, 3.0))).output.geometry
    axes = np.array(geometry.axes)
    assert geometry.shape == (30, 20, 20)
    assert np.allclose(np.cross(axes[0], axes[1]), axes[2])
    assert np.allclose(axes[2], [1, 0, 0])  # against a beam that runs to the patient's right
    assert geometry.origin_mm[0] == pytest.approx(1.0 - 58.0)  # PhantomPositionZ -60, half a voxel of 4 mm


def test_the_ct_goes_beside_the_plan_and_gives_the_grid(write, ct_files, tmp_path):
    given = write(ct_files=ct_files, settings=EngineSettings())
    copies = sorted((tmp_path / "input/rtplan").glob("CT_*"))
    assert len(copies) == 5
    assert given.output.geometry.shape == (5, 8, 8)
    assert given.output.geometry.origin_mm == (-10.5, -10.5, -6.0)
    assert given.output.geometry.spacing_mm == (3.0, 3.0, 3.0)
    assert given.output.size == 5 * 8 * 8 * 8
    assert not read_tps_input(tmp_path / "input" / INPUT_FILE).flag("UsingPhantomGeo", True)
    assert copies[0].read_bytes() == ct_files[0].read_bytes()  # the lowest z first, whatever its name


def test_a_ct_that_is_not_wanted_is_not_copied(write, ct_files, tmp_path):
    given = write(ct_files=ct_files, settings=small_water())
    assert not list((tmp_path / "input/rtplan").glob("CT_*"))
    assert given.output.geometry.shape == (30, 20, 20)


def test_without_a_ct_auto_is_water_and_ct_is_refused(write):
    write(settings=EngineSettings())
    with pytest.raises(ConfigurationError, match="no CT"):
        write(settings=EngineSettings(medium="ct"))


def test_a_plan_with_the_name_of_a_ct_slice_is_refused(write, ct_files, tmp_path):
    plan = a_plan(write_plan(tmp_path / "case/CT_0001.dcm"))
    with pytest.raises(ValidationError, match="name of a CT slice"):
        write(plan=plan, ct_files=ct_files, settings=EngineSettings())


def test_the_two_centimetre_mode_gives_one_slice_under_its_own_number(write, ct_files):
    beam = a_beam(range_shifters=(RangeShifter(1, "SNOUT_DEG_B"),))
    mode = EngineSettings(**MOQUI, parameters={"TwoCentimeterMode": True})
    assert write(settings=mode, ct_files=ct_files).output.path == "output/1G180:TX_2_Dose.raw"
    given = write(settings=mode, beam=beam)
    assert given.output.path == "output/1G180:TX_3_Dose.raw"
    assert (given.output.geometry.shape, given.output.size) == ((1, 400, 400), 1_280_000)
    chosen = EngineSettings(**MOQUI, output_child=7)
    assert write(settings=chosen, beam=beam).output.path == "output/1G180:TX_7_Dose.raw"


CT_FAULTS = {
    "square": {"count": (8, 6, 5)},
    "axial": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
    "positive": {"PixelSpacing": [0, 3]},
}


@pytest.mark.parametrize("words", CT_FAULTS)
def test_a_ct_that_moqui_would_read_wrongly_is_refused_with_the_reason(write, tmp_path, words):
    fault = dict(CT_FAULTS[words])
    files = write_ct(tmp_path / "ct", fault.pop("count", (8, 8, 5)), **fault)
    with pytest.raises(ValidationError, match=words):
        write(ct_files=files, settings=EngineSettings())


def test_a_missing_or_doubled_or_foreign_slice_is_refused(write, tmp_path, ct_files, plan_path):
    def refused(files, words):
        with pytest.raises(ValidationError, match=words):
            write(ct_files=files, settings=EngineSettings())

    refused([*ct_files[:2], *ct_files[3:]], "missing or stands twice")
    shutil.copy(ct_files[2], tmp_path / "again.dcm")
    refused([*ct_files, tmp_path / "again.dcm"], "missing or stands twice")
    refused(ct_files[:1], "at least 2")
    refused([*ct_files, plan_path], "not a readable CT")
    refused([*ct_files, tmp_path / "nothing.dcm"], "not a readable CT")
    (tmp_path / "text.dcm").write_text("no DICOM")
    refused([*ct_files, tmp_path / "text.dcm"], "not a readable CT")
    refused(
        [*ct_files[:4], *write_ct(tmp_path / "b", (8, 8, 5), 3.0, SeriesInstanceUID="1.2.3")[4:]], "several"
    )
    refused([*ct_files[:4], *write_ct(tmp_path / "c", (10, 10, 5), 3.0)[4:]], "different sizes")
    moved = write_ct(tmp_path / "d", (8, 8, 5), 3.0, ImagePositionPatient=[-10.0, -10.5, -6.0])
    refused([*ct_files[1:], moved[0]], "above one another")
    refused(write_ct(tmp_path / "e", (8, 8, 5), FrameOfReferenceUID="1.2.3"), "frames of reference")


def test_a_slice_with_cut_pixels_is_refused(tmp_path):
    files = write_ct(tmp_path, (8, 8, 3))
    files[1].write_bytes(files[1].read_bytes()[:-20])
    with pytest.raises(ValidationError, match="pixels"):
        read_ct_rsp(read_ct_series(files))


# --- identity -----------------------------------------------------------------------------------------------


def test_the_same_inputs_have_the_same_digest_wherever_they_lie(write, ct_files, tmp_path, plan_path):
    other = tmp_path / "copy of the case"
    other.mkdir()
    moved = [shutil.copy(path, other / f"renamed-{index}") for index, path in enumerate(reversed(ct_files))]
    plan = a_plan(other / shutil.copy(plan_path, other / "plan"))
    here = write("a", ct_files=ct_files, settings=EngineSettings())
    there = write("b/../c", ct_files=moved, settings=EngineSettings(gpu_id=1, time_limit_s=5), plan=plan)
    assert here.digest == there.digest
    assert re.fullmatch(r"[0-9a-f]{64}", here.digest)


def test_each_changed_input_changes_the_digest(write, ct_files, tmp_path, plan_path):
    layers = some_layers()
    moved = EngineLayer(1, 100.0, layers[0].time_ms, layers[0].x_mm + 0.001, layers[0].y_mm, layers[0].counts)
    other_plan = write_plan(tmp_path / "other/RP.1.dcm", gantry=1.0)
    ct = {"ct_files": ct_files, "settings": EngineSettings()}
    variants = [
        {},
        {"layers": (moved, *layers[1:])},
        {"layers": layers[:2]},
        {"layers": (*layers[:2], a_layer(3, 104.01))},
        {"settings": small_water(random_seed=5)},
        {"settings": small_water(parameters={})},
        {"settings": small_water(csv_dialect="single-line")},
        {"settings": EngineSettings(**MOQUI)},
        {"settings": EngineSettings(**MOQUI, parameters={"NormalizeTotalHistories": 1e6})},
        {"engine_version": "another"},
        {"room": "G1"},
        {"mu_per_count": 2.13e-8},
        {"beam": a_beam(gantry_angle_deg=10.0)},
        {"beam": a_beam(couch_angle_deg=10.0)},
        {"beam": a_beam(isocentre_mm=(0.0, 0.0, 1.0))},
        {"beam": a_beam(snout_position_mm=251.0)},
        {"beam": a_beam(sad_mm=(2597.0, 2224.0))},
        {"beam": a_beam(range_shifters=(RangeShifter(1, "SNOUT_DEG_B"),))},
        {"plan": a_plan(plan_path, sop_uid="1.2.3")},
        {"plan": a_plan(other_plan)},
        ct,
        ct | {"ct_files": write_ct(tmp_path / "ct", (8, 8, 5), 3.0, hu=1)},
    ]
    digests = [write(**variant).digest for variant in variants]
    assert len(set(digests)) == len(digests)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=2, max_size=2, unique=True))
def test_other_counts_are_another_job(tmp_path_factory, plan_path, counts):
    def digest(count):
        return write_input(
            tmp_path_factory.getbasetemp() / "digests",
            plan=a_plan(plan_path),
            beam=a_beam(),
            layers=[a_layer(counts=(count,))],
            ct_files=(),
            settings=small_water(),
            room="G2",
            mu_per_count=MU_PER_COUNT,
        ).digest

    assert digest(counts[0]) == digest(counts[0])
    assert digest(counts[0]) != digest(counts[1])


def test_what_was_written_is_small_json(write):
    given = write()
    assert EngineInput.model_validate_json(json.dumps(given.model_dump(mode="json"))) == given


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"MaxHistoryPerBatch": 1}}, "did you mean MaxHistoriesPerBatch"),
        ({"parameters": {"SuppressStd": True}}, "did you mean SupressStd"),
        ({"parameters": {"Qqqqqq": 1}}, r"not a parameter that is known here \["),
        ({"parameters": {"GPUID": 1}}, "gpu_id"),
        ({"parameters": {"OutputDir": "/x"}}, "job's folder"),
        ({"parameters": {"MaxHistoriesPerBatch": 1.5}}, "must be a whole number"),
        ({"parameters": {"MaxHistoriesPerBatch": "many"}}, "must be a whole number"),
        ({"parameters": {"SupressStd": "perhaps"}}, "must be true or false"),
        ({"parameters": {"RBE": "nan"}}, "must be a number"),
        ({"parameters": {"BodyContourName": "a#b"}}, "must be a text"),
        ({"parameters": {"Scorer": "LETd"}}, "must be Dose"),
        ({"parameters": {"OutputFormat": "npz"}}, "raw or mhd or mha"),
        ({"parameters": {"PhantomDimX": 0}}, "1 or more"),
        ({"parameters": {"ParticlesPerHistory": 0.1, "NormalizeTotalHistories": 1}}, "not both"),
        ({"parameters": {"TwoCentimeterMode": True}, "medium": "ct"}, "water phantom"),
        ({"parameters": {"OutputFormat": "mhd"}}, "raw only"),
        ({"engine": "moqui"}, "command is missing"),
        ({"random_seed": -1}, "time of day"),
        ({"beam_number_meaning": "one"}, "DICOM beam number"),
        ({"output_child": 1}, "numbers its output"),
        ({"colour": "red"}, "Extra inputs"),
        ({"gpu_id": -1}, "greater than"),
    ],
)
def test_a_setting_that_would_be_silently_ignored_or_misread_is_refused(changes, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        EngineSettings(**changes)


def test_parameters_take_their_own_type_and_leave_the_other_normalisation_out():
    chosen = EngineSettings(
        parameters={"SupressStd": "False", "PhantomDimX": "40", "ParticlesPerHistory": "0.1", "RBE": 1}
    )
    assert chosen.parameters == {
        "SupressStd": False,
        "PhantomDimX": 40,
        "ParticlesPerHistory": 0.1,
        "RBE": 1.0,
    }
    assert "NormalizeTotalHistories" not in chosen.effective()
    assert chosen.effective()["ParticlesPerHistory"] == 0.1
    assert chosen.effective()["Scorer"] == "Dose"


def test_settings_survive_json_and_every_field_is_explained():
    chosen = EngineSettings(**MOQUI, parameters={"RBE": 1.0, "SupressStd": True})
    assert EngineSettings.model_validate_json(chosen.model_dump_json()) == chosen
    schema = EngineSettings.model_json_schema()["properties"]
    assert all(field.get("description") for field in schema.values())
    assert all(parameter.about for parameter in PARAMETERS.values())


# --- moqui_tps.in as MOQUI reads it -------------------------------------------------------------------------


def test_the_input_file_is_read_as_moqui_reads_it(tmp_path):
    path = tmp_path / "x.in"
    path.write_text(
        "# a comment\n\n  GPUID 1:0,2:1  # inline\nscorer Dose\nScorer LETd\nBeamNumbers 3, 4,,x\n"
        "Flag TRUE\nOne 1\nPosition -200.0\nParentDir /a folder/b\nAlone\nNumber 1e-3x\n"
    )
    tps = read_tps_input(path)
    assert tps.integer("gpuid", 7) == 1
    assert tps.text("SCORER") == "Dose"  # the first hit wins
    assert tps.integers("BeamNumbers") == (3, 4, 0)
    assert tps.flag("flag", False) and tps.flag("One", False) and tps.flag("absent", True)
    assert not tps.flag("ParentDir", True)
    assert tps.integer("Position", 0) == -200
    assert tps.text("ParentDir") == "/a folder/b"
    assert tps.text("Alone", "default") == "default"
    assert (tps.number("Number", 0.0), tps.number("Flag", 2.0), tps.number("absent", 2.5)) == (1e-3, 0.0, 2.5)
    with pytest.raises(ProcessingError, match="cannot open"):
        read_tps_input(tmp_path / "absent.in")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="#\r\n"), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(key=WORDS, value=WORDS)
def test_what_can_be_written_is_read_back_the_same(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "round.in"
    try:
        path.write_bytes(write_tps_input(((key, value),)))
    except ValueError:
        return
    assert read_tps_input(path) == TpsInput(((key, value),))


@pytest.mark.parametrize(
    "line", [("a b", "c"), ("a", ""), ("a", " b"), ("a", "b#c"), ("a", "b\nc"), ("", "b"), ("a#", "b")]
)
def test_what_moqui_would_misread_cannot_be_written(line):
    with pytest.raises(ValueError, match="cannot stand"):
        write_tps_input((line,))


# --- the output ---------------------------------------------------------------------------------------------


@pytest.fixture
def job(write, tmp_path):
    """A finished job's folder with a right dose of 30 x 20 x 20 voxels."""
    given = write()
    folder = tmp_path / "job"
    (folder / "output").mkdir(parents=True)
    values = np.arange(30 * 20 * 20, dtype="<f8").reshape(30, 20, 20)
    values.tofile(folder / given.output.path)
    return folder, given, values


def test_a_raw_dose_is_read_with_its_place_in_the_patient(job):
    folder, given, values = job
    dose = read_dose(folder, given, case="QA-1", beam=2)
    assert np.array_equal(dose.values, values)
    assert dose.values[3, 2, 1] == 1 + 20 * (2 + 20 * 3)  # x + nx (y + ny z)
    assert tuple(dose.origin_mm) == given.output.geometry.origin_mm
    assert np.array_equal(dose.axes, np.array(given.output.geometry.axes))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "left no"),
        (lambda path: path.write_bytes(b""), "0 bytes instead of 96000"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "95999 bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "96001 bytes"),
        (lambda path: path.write_bytes(bytes(96000)), "zero everywhere"),
        (lambda path: np.full(12000, np.nan).tofile(path), "12000 voxels of the dose are not finite"),
        (lambda path: np.full(12000, np.inf).tofile(path), "not finite"),
        (lambda path: np.linspace(-1, 1, 12000).tofile(path), "negative"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
)
def test_an_output_that_is_no_dose_is_refused_with_its_reason(job, spoil, words):
    folder, given, _ = job
    spoil(folder / given.output.path)
    with pytest.raises(ProcessingError, match=words) as caught:
        read_dose(folder, given, case="QA-1", beam=2)
    assert (caught.value.case, caught.value.beam) == ("QA-1", 2)
    assert caught.value.todo
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_negative_rounding_is_taken_for_zero(job):
    folder, given, values = job
    (values - 1e-9).tofile(folder / given.output.path)
    assert read_dose(folder, given, case="QA-1", beam=2).values.min() == 0.0


def test_an_output_outside_the_job_is_not_followed(job):
    folder, given, _ = job
    path = folder / given.output.path
    path.rename(folder.parent / "elsewhere.raw")
    path.symlink_to(folder.parent / "elsewhere.raw")
    with pytest.raises(ValidationError, match="leads out"):
        read_dose(folder, given, case="QA-1", beam=2)


# As MOQUI writes it: no "=" in the lines of TransformMatrix and Offset.
MOQUI_HEADER = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "CompressedData = False\nTransformMatrix 1 0 0 0 1 0 0 0 1\nOffset -1 -2 -3\n"
    "CenterOfRotation 0 0 0\nAnatomicalOrientation = RAI\n"
    "DimSize = 20 20 30\nElementType = MET_DOUBLE\nElementSpacing = 4 4 4\nElementDataFile = {data}\n"
)


def as_format(job, file_format, header):
    folder, given, values = job
    output = given.output.model_copy(
        update={"format": file_format, "path": f"output/B_0_Dose.{file_format}", "size": None}
    )
    path = folder / output.path
    path.write_bytes(header.encode() + (values.tobytes() if file_format == "mha" else b""))
    values.tofile(folder / "output/B_0_Dose.raw")
    return read_dose(folder, given.model_copy(update={"output": output}), case="QA-1", beam=2)


def test_metaimages_are_read_although_moquis_header_is_broken(job):
    assert np.array_equal(as_format(job, "mhd", MOQUI_HEADER.format(data="B_0_Dose.raw")).values, job[2])
    assert np.array_equal(as_format(job, "mha", MOQUI_HEADER.format(data="LOCAL")).values, job[2])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("20 20 30", "20 30 20", "size 20 30 20"),
        ("DimSize = 20 20 30\n", "", "size none"),
        ("MET_DOUBLE", "MET_FLOAT", "MET_FLOAT"),
        ("MSB = False", "MSB = True", "msb"),
        ("CompressedData = False", "CompressedData = True", "compresseddata"),
        ("B_0_Dose.raw", "../../secret", "another folder"),
        ("B_0_Dose.raw", "gone.raw", "left no gone.raw"),
        ("ElementDataFile", "Element", "no ElementDataFile"),
    ],
)
def test_a_metaimage_of_something_else_is_refused(job, old, new, words):
    with pytest.raises(ProcessingError, match=words):
        as_format(job, "mhd", MOQUI_HEADER.format(data="B_0_Dose.raw").replace(old, new))


def test_other_formats_are_refused_by_name(job):
    with pytest.raises(ConfigurationError, match="npz"):
        as_format(job, "npz", "")


# --- what the engine says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("Uploading particles with batch.. : Particle count --> 10000000 with 18 batches", 0.0),
        ("Generating particles for (1 of 18 batches) in CPU ..", 0.0),
        ("Generating particles for (10 of 18 batches) in CPU ..", 0.5),
        ("Generating particles for (19 of 18 batches) in CPU ..", 1.0),
        ("Generating particles for (1 of 0 batches) in CPU ..", None),
        ("Transporting particles...", None),
        ("", None),
    ],
)
def test_progress_is_what_the_batches_say(line, progress):
    assert progress_of(line) == progress


@pytest.mark.parametrize(
    ("code", "said", "kind", "words"),
    [
        (1, "No free GPU remains after BeamLayerMultiGpu filtering", ResourceError, "no free GPU"),
        (2, "GPUassert: out of memory in a.cu at line 3", ResourceError, "out of memory"),
        (46, "GPUassert: all CUDA-capable devices are busy or unavailable a.cu", ResourceError, "taken"),
        (100, "GPUassert: no CUDA-capable device is detected", ResourceError, "seen"),
        (255, "CUDA error after kernel: GPU is lost", ResourceError, "lost"),
        (214, "GPUassert: uncorrectable ECC error encountered", ResourceError, "memory error"),
        (255, "CUDA error after transport: unspecified launch failure", ProcessingError, "CUDA"),
        (35, "GPUassert: CUDA driver version is insufficient for CUDA runtime", ConfigurationError, "driver"),
        (134, "what():  std::bad_alloc", ResourceError, "memory"),
        (134, "terminate called\n  what():  Output directory exists.", ProcessingError, "output folder"),
        (134, "what():  ParentDir is not provided", ConfigurationError, "key"),
        (134, "No matching log folder found for beam 1G180:TX", ConfigurationError, "log folder"),
        (134, "", ProcessingError, "aborted"),
        (-6, "", ProcessingError, "134"),
        (139, "", ProcessingError, "segmentation fault"),
        (-11, "", ProcessingError, "139"),
        (137, "", ResourceError, "killed"),
        (143, "", ResourceError, "stopped"),
        (124, "", ProcessingError, "time limit"),
        (126, "", ConfigurationError, "executed"),
        (127, "sh: tps_env: not found", ConfigurationError, "tps_env: not found"),
        (255, "", ProcessingError, "CUDA"),
        (3, "\n\n", ProcessingError, "exit status 3"),
    ],
)
def test_a_failed_exit_says_what_happened_whether_it_is_retried_and_what_to_do(code, said, kind, words):
    error = explain_exit(code, said)
    assert type(error) is kind
    assert words in error.what
    assert error.todo
