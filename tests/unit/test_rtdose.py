"""RT Dose: what is written is valid and comes back the same; what is damaged is named."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from mqi.dose.grid import DoseGrid, checked_grid
from mqi.dose.rtdose import read_rtdose, write_rtdose
from mqi.errors import ResourceError, ValidationError
from mqi.plan import IonPlan, PlanBeam
from tests.requirement import program

BEAM = PlanBeam(
    number=2,
    name="1G000",
    description="",
    is_setup=False,
    machine="G1",
    scan_mode="MODULATED",
    gantry_angle_deg=0.0,
    couch_angle_deg=0.0,
    collimator_angle_deg=0.0,
    isocentre_mm=(0.0, 0.0, 0.0),
    snout_position_mm=0.0,
    sad_mm=(2000.0, 2000.0),
    range_shifters=(),
    meterset_mu=1.0,
    layers=(),
)


def ion_plan(**change) -> IonPlan:
    facts = {
        "path": Path("plan.dcm"),
        "sop_uid": "1.2.3.4",
        "study_uid": "1.2.3",
        "frame_of_reference_uid": "1.2.3.5",
        "patient_id": "QA01",
        "label": "plan",
        "machine": "G1",
        "patient_position": "HFS",
        "fractions_planned": 1,
        "beams": (BEAM,),
    }
    return IonPlan(**{**facts, **change})


def dose_grid(shape=(3, 4, 5), axes=None, largest=2.0, origin=(-10.5, 20.25, 1 / 3)) -> DoseGrid:
    values = np.random.default_rng(3).random(shape)
    return checked_grid(values / values.max() * largest, origin, (1.0, 2.0, 3.0), axes)


def written(tmp_path: Path, grid: DoseGrid | None = None, name="dose.dcm", **options) -> Path:
    path = tmp_path / name
    options = {"plan": ion_plan(), "beam_number": 2, **options}
    write_rtdose(path, grid or dose_grid(), **options)
    return path


def changed(path: Path, **attributes) -> Path:
    """The file with other attributes; None deletes one."""
    ds = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    ds.save_as(path)
    return path


@pytest.mark.parametrize("beam_number", [2, None])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 3, 3)])
def test_dciodvfy_finds_no_error(tmp_path, beam_number, shape):
    checker = program("dciodvfy", package="dicom3tools")
    axes = np.array([[0.8, 0.6, 0], [0, 0, -1], [-0.6, 0.8, 0]])
    path = written(
        tmp_path,
        dose_grid(shape, axes),
        beam_number=beam_number,
        bits=16,  # dciodvfy itself aborts on 32 bits
        comment="pencil beam model, no clinical engine",
        software_version="0.1",
    )
    done = subprocess.run([checker, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr + done.stdout


@pytest.mark.parametrize(("bits", "error"), [(32, 1e-9), (16, 1e-5)])
def test_dose_and_references_come_back(tmp_path, bits, error):
    grid = dose_grid()
    got = read_rtdose(written(tmp_path, grid, bits=bits, sop_uid="1.2.9", series_uid="1.2.8"))
    assert np.abs(got.dose.values - grid.values).max() <= error * grid.values.max()
    assert (got.plan_uid, got.beam_number, got.summation) == ("1.2.3.4", 2, "BEAM")
    assert (got.units, got.sop_uid, got.patient_id) == ("GY", "1.2.9", "QA01")
    assert (got.frame_of_reference_uid, got.dose_type) == ("1.2.3.5", "PHYSICAL")


def test_a_plan_dose_names_no_beam(tmp_path):
    got = read_rtdose(written(tmp_path, beam_number=None, dose_type="EFFECTIVE"))
    assert (got.plan_uid, got.beam_number, got.summation) == ("1.2.3.4", None, "PLAN")
    assert got.dose_type == "EFFECTIVE"


@settings(max_examples=60, deadline=None)
@given(
    gantry=st.one_of(st.sampled_from([0.0, 90.0, 180.0, 270.0, 359.9]), st.floats(0, 360)),
    couch=st.floats(-90, 90),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    shape=st.tuples(*[st.integers(1, 4)] * 3),
)
def test_the_dose_at_a_point_of_the_patient_is_the_same_after_write_and_read(
    gantry, couch, origin, spacing, shape
):
    g, c = np.radians(gantry), np.radians(couch)
    about_z = np.array([[np.cos(g), np.sin(g), 0], [-np.sin(g), np.cos(g), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(c), 0, -np.sin(c)], [0, 1, 0], [np.sin(c), 0, np.cos(c)]])
    values = np.random.default_rng(5).random(shape) + 0.1
    grid = checked_grid(values, origin, spacing, about_z @ about_y)
    with tempfile.TemporaryDirectory() as folder:
        got = read_rtdose(written(Path(folder), grid)).dose
    assert np.abs(got.points_mm() - grid.points_mm()).max() < 1e-6
    assert np.allclose(got.values, grid.values, rtol=1e-8)


def test_row_spacing_stands_first_in_pixel_spacing(tmp_path):
    ds = pydicom.dcmread(written(tmp_path))
    assert [float(value) for value in ds.PixelSpacing] == [2.0, 1.0]  # rows 2 mm, columns 1 mm apart
    assert (ds.Rows, ds.Columns, ds.NumberOfFrames) == (4, 5, 3)


@settings(max_examples=100, deadline=None)
@given(largest=st.floats(1e-250, 1e6), bits=st.sampled_from([16, 32]))
def test_the_written_scaling_is_the_one_the_pixels_were_made_with(largest, bits):
    with tempfile.TemporaryDirectory() as folder:
        grid = dose_grid(largest=largest)
        path = written(Path(folder), grid, bits=bits)
        ds = pydicom.dcmread(path)
        text = re.search(rb"\x04\x30\x0e\x00DS..([0-9.E+-]+)", path.read_bytes())[1].decode()
        assert len(text) <= 16
        scaling = float(text)
        assert scaling > 0
        pixels = np.frombuffer(ds.PixelData, f"<u{bits // 8}").reshape(grid.values.shape)
        assert 2**bits - 1 - 8 <= int(pixels.max()) <= 2**bits - 1
        assert np.abs(pixels * scaling - grid.values).max() <= 0.5000001 * scaling
        assert float(ds.DoseGridScaling) == scaling


def test_the_same_arguments_make_the_same_bytes(tmp_path):
    fixed = {"sop_uid": "1.2.9", "series_uid": "1.2.8", "comment": "c"}
    first = written(tmp_path, name="1.dcm", **fixed).read_bytes()
    assert first == written(tmp_path, name="2.dcm", **fixed).read_bytes()
    assert written(tmp_path, name="3.dcm").read_bytes() != written(tmp_path, name="4.dcm").read_bytes()


def test_the_patient_is_named_by_the_id_alone(tmp_path):
    ds = pydicom.dcmread(written(tmp_path, plan=ion_plan(patient_id="A^B=C")))
    assert (ds.PatientID, str(ds.PatientName)) == ("A^B=C", "A B C")
    assert (ds.PatientBirthDate, ds.PatientSex) == ("", "")


def test_a_long_comment_is_kept_whole(tmp_path):
    comment = "no clinical engine \\ " + "x" * 100
    ds = pydicom.dcmread(written(tmp_path, comment=comment))
    assert ds.DoseComment.endswith("...")
    assert len(ds.DoseComment) == 64
    assert ds.ImageComments == comment.replace("\\", "/")


@pytest.mark.parametrize(
    ("defect", "value"),
    [("not a number", np.nan), ("infinite", np.inf), ("negative", -1e-6), ("zero everywhere", 0.0)],
)
def test_a_dose_that_cannot_be_is_not_written(tmp_path, defect, value):
    grid = dose_grid()
    values = np.zeros_like(grid.values) if value == 0 else grid.values.copy()
    values[0, 0, 0] = value
    with pytest.raises(ValidationError, match=defect) as caught:
        written(tmp_path, grid.with_values(values))
    assert caught.value.beam == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("defect", "options"),
    [
        ("no beam 9", {"beam_number": 9}),
        ("no patient ID", {"plan": ion_plan(patient_id=" ")}),
        ("character", {"plan": ion_plan(patient_id="A\\B")}),
        ("character", {"plan": ion_plan(patient_id="A\nB")}),
        ("64 characters", {"plan": ion_plan(patient_id="A" * 65)}),
        ("frame of reference UID", {"plan": ion_plan(frame_of_reference_uid="")}),
        ("study instance UID", {"plan": ion_plan(study_uid="not a uid")}),
        ("SOP instance UID", {"plan": ion_plan(sop_uid="1..2")}),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_name(tmp_path, defect, options):
    with pytest.raises(ValidationError, match=defect):
        written(tmp_path, **options)


def test_a_dose_too_small_or_too_wide_for_the_format_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="too small"):
        written(tmp_path, dose_grid(largest=1e-305))
    wide = checked_grid(np.broadcast_to(1.0, (1, 1, 70000)), (0, 0, 0), (1, 1, 1))
    with pytest.raises(ValidationError, match="does not fit"):
        written(tmp_path, wide)


@pytest.mark.parametrize("options", [{"bits": 8}, {"dose_type": "RELATIVE"}])
def test_what_the_format_does_not_have_is_a_wrong_call(tmp_path, options):
    with pytest.raises(ValueError, match=r"8|RELATIVE"):
        written(tmp_path, **options)


def test_a_folder_that_cannot_be_written_may_be_tried_again(tmp_path):
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        written(tmp_path, name="missing/dose.dcm")
    assert caught.value.retryable


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: written(tmp_path), range(40)))
    assert [path.name for path in tmp_path.iterdir()] == ["dose.dcm"]
    read_rtdose(tmp_path / "dose.dcm")


def test_a_killed_writer_leaves_the_last_whole_file(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.unit.test_rtdose import *\n"
        "grid = dose_grid((40, 100, 100))\n"
        "while True: written(Path(sys.argv[1]), grid)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as writer:
        deadline = time.monotonic() + 30
        while not (tmp_path / "dose.dcm").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        writer.send_signal(signal.SIGKILL)
    assert read_rtdose(tmp_path / "dose.dcm").dose.values.shape == (40, 100, 100)


def test_descending_frames_are_turned_round(tmp_path):
    grid = dose_grid()
    flipped = grid.values[::-1]
    path = written(tmp_path, checked_grid(flipped, grid.origin_mm, grid.spacing_mm))
    last = [-10.5, 20.25, 1 / 3 + 6]
    got = read_rtdose(
        changed(path, GridFrameOffsetVector=[0, -3, -6], ImagePositionPatient=[f"{x:.10g}" for x in last])
    )
    assert np.abs(got.dose.values - grid.values).max() < 1e-8
    assert np.abs(got.dose.points_mm() - grid.points_mm()).max() < 1e-6


@pytest.mark.parametrize("handed", [1, -1])
def test_offsets_in_patient_coordinates_mean_the_same_as_relative_ones(tmp_path, handed):
    axes = np.diag([1.0, handed, handed])
    grid = dose_grid(axes=axes, origin=(0, 0, -40))
    path = written(tmp_path, grid)
    z = [-40, -40 + 3 * handed, -40 + 6 * handed]
    got = read_rtdose(changed(path, GridFrameOffsetVector=z))
    assert np.abs(got.dose.points_mm() - grid.points_mm()).max() < 1e-6


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_uncompressed_encodings_are_read(tmp_path, syntax):
    path = written(tmp_path)
    ds = pydicom.dcmread(path)
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u4").astype(">u4").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(path, ds, implicit_vr=implicit, little_endian=little, force_encoding=True)
    assert np.allclose(read_rtdose(path).dose.values, dose_grid().values, rtol=1e-8)


def test_directions_rounded_to_four_digits_are_read_as_perpendicular(tmp_path):
    path = changed(written(tmp_path), ImageOrientationPatient=[0.7071, 0.7071, 0, 0, 0, 1])
    axes = read_rtdose(path).dose.axes
    assert np.allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.allclose(axes[2], [0.5**0.5, -(0.5**0.5), 0])


def test_a_single_plane_needs_no_frames(tmp_path):
    path = written(tmp_path, dose_grid((1, 4, 5)))
    assert "NumberOfFrames" not in pydicom.dcmread(path)
    assert read_rtdose(path).dose.spacing_mm.tolist() == [1.0, 2.0, 3.0]
    changed(path, SliceThickness=None)
    got = read_rtdose(path).dose
    assert got.values.shape == (1, 4, 5)
    assert got.spacing_mm.tolist() == [1.0, 2.0, 1.0]


def test_a_dose_of_two_beams_or_without_a_plan_names_none(tmp_path):
    path = written(tmp_path)
    ds = pydicom.dcmread(path)
    beams = ds.ReferencedRTPlanSequence[0].ReferencedFractionGroupSequence[0].ReferencedBeamSequence
    beams.append(pydicom.Dataset())
    beams[1].ReferencedBeamNumber = 3
    ds.save_as(path)
    assert read_rtdose(path).beam_number is None
    got = read_rtdose(changed(path, ReferencedRTPlanSequence=None))
    assert (got.plan_uid, got.beam_number) == (None, None)


@pytest.mark.parametrize(
    ("defect", "attributes"),
    [
        ("no RT Dose", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"}),
        ("only GY", {"DoseUnits": "RELATIVE"}),
        ("only GY", {"DoseUnits": None}),
        ("DoseGridScaling 0", {"DoseGridScaling": "0"}),
        ("DoseGridScaling -1", {"DoseGridScaling": "-1"}),
        ("lacks DoseGridScaling", {"DoseGridScaling": None}),
        ("frames of 4 x 5", {"NumberOfFrames": 1}),
        ("frames of 4 x 5", {"NumberOfFrames": None}),
        ("4 x 6 voxels", {"Columns": 6}),
        ("0 bytes", {"PixelData": None}),
        ("BitsAllocated 8", {"BitsAllocated": 8}),
        ("stores 16 bits in 32", {"BitsStored": 16}),
        ("more than one sample", {"SamplesPerPixel": 3}),
        ("lacks GridFrameOffsetVector", {"GridFrameOffsetVector": None}),
        ("not 3 numbers", {"GridFrameOffsetVector": [0, 3]}),
        ("evenly spaced", {"GridFrameOffsetVector": [0, 3, 7]}),
        ("evenly spaced", {"GridFrameOffsetVector": [0, 0, 0]}),
        ("neither 0 nor the z", {"GridFrameOffsetVector": [5, 8, 11]}),
        (
            "neither 0 nor the z",
            {"GridFrameOffsetVector": [1, 4, 7], "ImageOrientationPatient": [1, 0, 0, 0, 0, 1]},
        ),
        ("perpendicular", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}),
        ("not 6 numbers", {"ImageOrientationPatient": [1, 0, 0]}),
        ("lacks ImagePositionPatient", {"ImagePositionPatient": None}),
        ("positive lengths", {"PixelSpacing": [0, 1]}),
        ("lacks SOPInstanceUID", {"SOPInstanceUID": None}),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_by_name(tmp_path, defect, attributes):
    path = changed(written(tmp_path), **attributes)
    with pytest.raises(ValidationError, match=defect) as caught:
        read_rtdose(path)
    assert caught.value.path == path
    assert caught.value.todo


def test_negative_signed_pixels_are_refused_and_positive_ones_read(tmp_path):
    path = written(tmp_path, bits=16)
    pixels = np.arange(60, dtype="<i2")
    changed(path, PixelRepresentation=1, PixelData=pixels.tobytes())
    assert read_rtdose(path).dose.values.min() == 0
    changed(path, PixelData=(pixels - 1).tobytes())
    with pytest.raises(ValidationError, match="negative"):
        read_rtdose(path)


def test_compressed_pixels_are_refused_by_name(tmp_path):
    path = written(tmp_path, bits=16)
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless)
    ds.save_as(path)
    with pytest.raises(ValidationError, match="RLE"):
        read_rtdose(path)


@pytest.mark.parametrize("content", [b"", b"DICM", b"\0" * 4096, b"\0" * 128 + b"DICM", b"Dose = 1\n" * 99])
def test_what_is_no_dicom_file_is_refused(tmp_path, content):
    path = tmp_path / "dose.dcm"
    path.write_bytes(content)
    with pytest.raises(ValidationError):
        read_rtdose(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="cannot be read"):
        read_rtdose(tmp_path / "none.dcm")
    with pytest.raises(ValidationError, match="cannot be read"):
        read_rtdose(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return written(tmp_path_factory.mktemp("whole"), sop_uid="1.2.9", series_uid="1.2.8").read_bytes()


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_truncated_file_is_never_read_as_a_dose(whole, data):
    length = data.draw(st.integers(0, len(whole) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.dcm"
        path.write_bytes(whole[:length])
        with pytest.raises(ValidationError):
            read_rtdose(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read_but_never_a_crash(whole, data):
    places = data.draw(st.lists(st.integers(128, len(whole) - 1), min_size=1, max_size=4))
    damaged = bytearray(whole)
    for place in places:
        damaged[place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.dcm"
        path.write_bytes(damaged)
        try:
            got = read_rtdose(path)
        except ValidationError:
            return
        assert got.dose.values.ndim == 3
        assert np.isfinite(got.dose.values).all()
