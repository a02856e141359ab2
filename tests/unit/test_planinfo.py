"""PlanInfo and PlanRange: read as the machine writes them, refused where they contradict."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi.errors import ValidationError
from mqi.log.planinfo import read_delivery, read_plan_info, read_plan_range
from tests.unit.handmade import HEADER, PATIENT, STUDY, plan_info, plan_info_text

AT = "2026010112000000"


def row(number: int = 1, **changes: object) -> str:
    values: dict[str, object] = {
        "RESULT_ID": AT,
        "LAYER_NO": number,
        "LAYER_ENERGY": 138.8 - number,
        "PATIENT_ID": PATIENT,
        "FLD_NO": 2,
        "DOSE1_RANGE": 2,
        "DOSE2_RANGE": 3,
        "PLAN_DOSE1_RANGE": 2,
        "PLAN_DOSE2_RANGE": 3,
        "SCAN_OUT_FL_NM": f"02_0014046_001_002_{number:03}.ptn",
        "PLAN_SCAN_OUT_FL_NM": f"02_{PATIENT}_001_002_{number:03}.mgn",
    }
    return ",".join(str(value) for value in (values | changes).values())


def table(*rows: str) -> str:
    return "\n".join([HEADER, *rows]) + "\n"


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    folder = tmp_path / "study" / AT
    folder.mkdir(parents=True)
    (folder / "PlanInfo.txt").write_text(plan_info_text(plan_info()))
    (folder / "PlanRange.txt").write_text(table(row(1), row(2)))
    return folder


def change_info(folder: Path, **changes: str) -> None:
    values = {key: value for key, value in (plan_info() | changes).items() if value != "-"}
    (folder / "PlanInfo.txt").write_text(plan_info_text(values))


def test_a_delivery_is_what_its_two_files_say(delivery: Path, tmp_path: Path) -> None:
    read = read_delivery(delivery, tmp_path)
    assert (read.id, read.folder) == (AT, f"study/{AT}")
    assert (read.patient_id, read.study_uid, read.beam_number) == (PATIENT, STUDY, 2)
    assert (read.start_layer, read.stop_layer) == (1, 2)
    assert read.irradiated_at == datetime(2026, 1, 1, 12, 0, 0)
    layer = read.layers[1]
    assert (layer.number, layer.energy_mev, layer.ptn) == (2, 136.8, "02_0014046_001_002_002.ptn")
    assert (layer.dose1_range, layer.dose2_range) == (2, 3)
    assert layer.mgn == f"02_{PATIENT}_001_002_002.mgn"


def test_the_files_are_read_as_korean_windows_writes_them(delivery: Path, tmp_path: Path) -> None:
    expected = read_delivery(delivery, tmp_path)
    text = plan_info_text(plan_info() | {"SHARE_DIR": "\\\\서버\\공유"}) + "OPERATOR,누구\n\n"
    for encoding, end in (("cp949", "\r\n"), ("utf-8-sig", "\n"), ("utf-8", "\r\n")):
        (delivery / "PlanInfo.txt").write_bytes(text.replace("\n", end).encode(encoding))
        (delivery / "PlanRange.txt").write_bytes(table(row(1), row(2)).replace("\n", end).encode(encoding))
        assert read_delivery(delivery, tmp_path) == expected


def test_the_table_may_be_a_csv_but_two_must_agree(delivery: Path, tmp_path: Path) -> None:
    expected = read_delivery(delivery, tmp_path)
    (delivery / "PlanRange.csv").write_text(table(row(2), row(1)))
    assert read_delivery(delivery, tmp_path) == expected
    (delivery / "PlanRange.csv").write_text(table(row(1), row(2, DOSE1_RANGE=3)))
    with pytest.raises(ValidationError, match="contradict each other"):
        read_delivery(delivery, tmp_path)
    (delivery / "PlanRange.txt").unlink()
    assert read_delivery(delivery, tmp_path).layers[1].dose1_range == 3


def test_the_machines_time_goes_before_the_folders_name(delivery: Path, tmp_path: Path) -> None:
    change_info(delivery, TCSC_IRRAD_DATETIME="2026010111595925")
    assert read_delivery(delivery, tmp_path).irradiated_at == datetime(2026, 1, 1, 11, 59, 59, 250000)
    change_info(delivery, TCSC_IRRAD_DATETIME="-")
    assert read_delivery(delivery, tmp_path).irradiated_at == datetime(2026, 1, 1, 12, 0, 0)
    renamed = delivery.rename(delivery.with_name("by-hand"))
    (renamed / "PlanRange.txt").write_text(table(row(1, RESULT_ID="by-hand"), row(2, RESULT_ID="by-hand")))
    with pytest.raises(ValidationError, match="when it was irradiated"):
        read_delivery(renamed, tmp_path)


def test_a_resumed_delivery_has_the_layers_from_start_to_stop(delivery: Path, tmp_path: Path) -> None:
    change_info(delivery, START_LAYER_NUMBER="2", STOP_LAYER_NUMBER="3")
    (delivery / "PlanRange.txt").write_text(table(row(1), row(2), row(3), row(4)))
    read = read_delivery(delivery, tmp_path)
    assert (read.start_layer, [layer.number for layer in read.layers]) == (2, [2, 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DICOM_PATIENT_ID": "-"}, "DICOM_PATIENT_ID is missing"),
        ({"DICOM_STUDY_INS_UID": ""}, "DICOM_STUDY_INS_UID is missing"),
        ({"DICOM_BEAM_NUMBER": "two"}, "DICOM_BEAM_NUMBER is 'two'"),
        ({"DICOM_BEAM_NUMBER": "-2"}, "DICOM_BEAM_NUMBER is '-2'"),
        ({"START_LAYER_NUMBER": "0"}, "START_LAYER_NUMBER is '0'"),
        ({"START_LAYER_NUMBER": "3"}, "STOP_LAYER_NUMBER 2 is before START_LAYER_NUMBER 3"),
        ({"STOP_LAYER_NUMBER": "999999999"}, "layer 3 of 1 to 999999999"),
        ({"STOP_LAYER_NUMBER": "\u0663"}, "STOP_LAYER_NUMBER is"),
        ({"TCSC_IRRAD_DATETIME": "20261301000000"}, "is no time"),
        ({"TCSC_IRRAD_DATETIME": "2026130100000000"}, "is no time"),
        ({"DICOM_PATIENT_ID": "OTHER"}, "PATIENT_ID is not the DICOM_PATIENT_ID"),
        ({"TCSC_FIELD_NUMBER": "3"}, "FLD_NO 2 is not the field 3"),
        ({"TCSC_FIELD_NUMBER": "-", "DICOM_BEAM_NUMBER": "3"}, "FLD_NO 2 is not the field 3"),
    ],
)
def test_a_plan_info_that_cannot_be_true_is_refused(
    delivery: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    change_info(delivery, **changes)
    with pytest.raises(ValidationError, match=message) as caught:
        read_delivery(delivery, tmp_path)
    assert caught.value.path is not None


def test_a_key_with_two_values_and_a_line_without_a_comma_are_refused(delivery: Path) -> None:
    path = delivery / "PlanInfo.txt"
    path.write_text(plan_info_text(plan_info()) + "DICOM_BEAM_NUMBER,2\n")
    assert read_plan_info(path).beam_number == 2
    path.write_text(plan_info_text(plan_info()) + "DICOM_BEAM_NUMBER,3\n")
    with pytest.raises(ValidationError, match="DICOM_BEAM_NUMBER is given twice"):
        read_plan_info(path)
    path.write_text(plan_info_text(plan_info()) + "half a li")
    with pytest.raises(ValidationError, match="line 12 is not KEY,VALUE"):
        read_plan_info(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns are missing"),
        (HEADER, "it has no layers"),
        (HEADER.replace("FLD_NO,", "") + "\n", "given twice: FLD_NO"),
        (HEADER + ",FLD_NO\n", "given twice: FLD_NO"),
        (table(row(1)[:-20].rpartition(",")[0]), "a row has 10 values, the header has 11"),
        (table(row(1), row(1, SCAN_OUT_FL_NM="x.ptn")), "layer 1 has two rows"),
        (table(row(1), row(2, SCAN_OUT_FL_NM="02_0014046_001_002_001.ptn")), "another layer has"),
        (table(row(1), row(2, RESULT_ID="2026010112000001")), "rows disagree"),
        (table(row(1), row(2, PATIENT_ID="X")), "rows disagree"),
        (table(row(1), row(2, FLD_NO=3)), "rows disagree"),
        (table(row(0)), "LAYER_NO is '0'"),
        (table(row(1, LAYER_ENERGY="nan")), "LAYER_ENERGY of layer 1 is 'nan'"),
        (table(row(1, LAYER_ENERGY="0.0")), "no energy"),
        (table(row(1, DOSE1_RANGE="")), "DOSE1_RANGE is missing"),
        (table(row(1, DOSE1_RANGE="2.0")), "DOSE1_RANGE is '2.0'"),
        (table(row(1, SCAN_OUT_FL_NM="../../etc/x.ptn")), "is not a plain file name"),
        (table(row(1, SCAN_OUT_FL_NM="a\\b.ptn")), "is not a plain file name"),
        (table(row(1, SCAN_OUT_FL_NM="C:x.ptn")), "is not a plain file name"),
        (table(row(1, SCAN_OUT_FL_NM=".ptn")), "is not a plain file name"),
        (table(row(1, SCAN_OUT_FL_NM="x.txt")), "is not a .ptn file"),
        (table(row(1, PLAN_SCAN_OUT_FL_NM="x.ptn")), "is not a .mgn file"),
        (table('"' + row(1)), "it is no table"),
    ],
)
def test_a_plan_range_that_cannot_be_true_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "PlanRange.txt"
    path.write_text(text)
    with pytest.raises(ValidationError, match=message) as caught:
        read_plan_range(path)
    assert caught.value.path == path


def test_a_table_of_another_delivery_and_a_missing_row_are_refused(delivery: Path, tmp_path: Path) -> None:
    (delivery / "PlanRange.txt").write_text(table(row(1, RESULT_ID="2026010112000001")))
    with pytest.raises(ValidationError, match="is not the folder's name"):
        read_delivery(delivery, tmp_path)
    (delivery / "PlanRange.txt").write_text(table(row(1)))
    with pytest.raises(ValidationError, match=r"layer 2 of 1 to 2 \(PlanInfo\) has no row"):
        read_delivery(delivery, tmp_path)


def test_a_layer_may_come_without_a_magnet_file(tmp_path: Path) -> None:
    path = tmp_path / "PlanRange.txt"
    path.write_text(table(row(1, PLAN_SCAN_OUT_FL_NM="")))
    assert read_plan_range(path)[0].mgn == ""


def test_missing_binary_and_endless_files_are_refused(delivery: Path, tmp_path: Path) -> None:
    path = delivery / "PlanInfo.txt"
    for content, message in (
        (b"\xff\xff\xff", "it is no text"),
        (b"A,\0\n", "it is no text"),
        (b"A,1\n" * 2**21, "too long"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValidationError, match=message):
            read_plan_info(path)
    path.unlink()
    with pytest.raises(ValidationError, match="cannot be read"):
        read_delivery(delivery, tmp_path)
    with pytest.raises(ValidationError, match="outside its case folder"):
        read_delivery(delivery, tmp_path / "other")


@given(st.binary(max_size=300), st.integers(0, 400), st.booleans())
def test_any_damage_gives_a_value_or_an_error(content: bytes, at: int, keep: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text, read in (
            ("PlanInfo.txt", plan_info_text(plan_info()), read_plan_info),
            ("PlanRange.txt", table(row(1), row(2)), read_plan_range),
        ):
            path = Path(folder) / name
            path.write_bytes(text.encode()[:at] + content + text.encode()[at:] * keep)
            try:
                assert read(path)
            except ValidationError as error:
                assert error.path == path
