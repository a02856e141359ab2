"""RT Ion Plans: exact spots, one layer per pair, and a reason for each refusal."""

from __future__ import annotations

import struct
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset

from mqi.errors import ResourceError, ValidationError
from mqi.plan import IonPlan, PlanLayer, machine_room, read_plan
from tests.unit.handmade import (
    PATIENT,
    STUDY,
    add_private_spots,
    beam_item,
    control_points,
    line_layer,
    plan_dataset,
    setup_item,
    spot_layer,
    write_plan,
)

LAYERS = [line_layer(1, 120.0), line_layer(2, 110.0, mu=0.3)]
FINAL = 0.42


def dataset(
    layers: list[PlanLayer] | None = None, *, private: bool = True, standard: bool = False
) -> FileDataset:
    points = control_points(layers or LAYERS, private=private, standard=standard)
    final = sum(layer.total_mu for layer in layers or LAYERS)
    return plan_dataset(setup_item(), beam_item(2, points, round(final, 9)), metersets={2: "0.42"})


def read(folder: Path, ds: FileDataset, *, implicit: bool = True) -> IonPlan:
    return read_plan(write_plan(folder / "RP.dcm", ds, implicit=implicit))


def beam_of(ds: FileDataset) -> Dataset:
    return ds.IonBeamSequence[1]


def point_of(ds: FileDataset, index: int) -> Dataset:
    return beam_of(ds).IonControlPointSequence[index]


def test_a_plan_gives_its_beams_with_their_setup(tmp_path: Path) -> None:
    plan = read(tmp_path, dataset())
    assert (plan.patient_id, plan.study_uid, plan.label, plan.machine) == (
        PATIENT,
        STUDY,
        "G2 Treatment",
        "G2",
    )
    assert (plan.patient_position, plan.fractions_planned) == ("HFS", 14)
    assert [beam.number for beam in plan.beams] == [1, 2]
    (beam,) = plan.treatment_beams
    assert (beam.name, beam.scan_mode, beam.machine) == ("2G090:TX", "LINE", "G2")
    assert (beam.gantry_angle_deg, beam.couch_angle_deg, beam.collimator_angle_deg) == (90.0, 5.0, 0.0)
    assert (beam.isocentre_mm, beam.snout_position_mm, beam.sad_mm) == (
        (1.0, 2.0, 3.0),
        465.0,
        (2597.0, 2223.0),
    )
    assert beam.meterset_mu == pytest.approx(FINAL)
    assert plan.beam(2) is beam
    with pytest.raises(KeyError):
        plan.beam(9)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize(("private", "standard"), [(True, False), (False, True), (True, True)])
def test_spots_come_from_private_or_standard_tags_alike(
    tmp_path: Path, implicit: bool, private: bool, standard: bool
) -> None:
    plan = read(tmp_path, dataset(private=private, standard=standard), implicit=implicit)
    layers = plan.treatment_beams[0].layers
    assert [(layer.number, layer.energy_mev, layer.paintings) for layer in layers] == [
        (1, 120, 1),
        (2, 110, 1),
    ]
    for layer, made in zip(layers, LAYERS, strict=True):
        np.testing.assert_array_equal(layer.positions_mm, made.positions_mm)
        np.testing.assert_allclose(layer.meterset_mu, made.meterset_mu, rtol=1e-6)
        assert layer.total_mu == pytest.approx(made.total_mu, rel=1e-9)
        assert layer.meterset_mu[0] == 0


def test_private_positions_are_whole_float32(tmp_path: Path) -> None:
    layer = line_layer()
    layer.positions_mm[:, 0] = np.float32(np.linspace(-0.987654, 123.456789, 13))
    layers = read(tmp_path, dataset([layer], standard=False)).treatment_beams[0].layers
    np.testing.assert_array_equal(layers[0].positions_mm[:, 0], layer.positions_mm[:, 0])


@pytest.mark.parametrize("vr", ["UN", "OB", "FL"])
def test_private_spots_are_read_whatever_vr_they_carry(tmp_path: Path, vr: str) -> None:
    ds = dataset()
    for index in range(4):
        layer = LAYERS[index // 2]
        add_private_spots(point_of(ds, index), layer.positions_mm, layer.meterset_mu * (index % 2 == 0), vr)
    layers = read(tmp_path, ds, implicit=vr == "UN").treatment_beams[0].layers
    np.testing.assert_array_equal(layers[1].positions_mm, LAYERS[1].positions_mm)


def test_private_tags_of_another_creator_are_not_spots(tmp_path: Path) -> None:
    ds = dataset()
    for point in beam_of(ds).IonControlPointSequence:
        point[0x300B0010].value = "SOMEONE"
    with pytest.raises(ValidationError, match="layer 1 has no spots"):
        read(tmp_path, ds)


def test_two_layers_of_one_energy_stay_two(tmp_path: Path) -> None:
    twice = [line_layer(1, 120.0), line_layer(2, 120.0, mu=0.3)]
    layers = read(tmp_path, dataset(twice)).treatment_beams[0].layers
    assert [layer.energy_mev for layer in layers] == [120.0, 120.0]
    assert [round(layer.total_mu, 6) for layer in layers] == [0.12, 0.3]


def test_paintings_are_read_from_both_kinds_of_tags(tmp_path: Path) -> None:
    ds = dataset()
    point_of(ds, 0)[0x300B109A].value = b"3 "
    assert read(tmp_path, ds).treatment_beams[0].layers[0].paintings == 3
    ds = dataset(private=False, standard=True)
    point_of(ds, 2).NumberOfPaintings = 2
    assert read(tmp_path, ds).treatment_beams[0].layers[1].paintings == 2


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("0.4", FINAL),
        ("0.42", FINAL),
        ("0.420", FINAL),
        ("0.43", 0.43),
        ("0.84", 0.84),
        ("50.5", 50.5),
        ("4.2e-1", FINAL),
    ],
)
def test_a_rounded_beam_meterset_does_not_rescale_the_layers(tmp_path: Path, text: str, total: float) -> None:
    ds = dataset()
    ds.FractionGroupSequence[0].ReferencedBeamSequence[0].BeamMeterset = text
    beam = read(tmp_path, ds).treatment_beams[0]
    assert beam.meterset_mu == pytest.approx(total)
    assert sum(layer.total_mu for layer in beam.layers) == pytest.approx(total)


def test_a_failing_disk_is_tried_again(tmp_path: Path) -> None:
    loop = tmp_path / "RP.dcm"
    loop.symlink_to(loop)
    with pytest.raises(ResourceError, match="cannot be read now"):
        read_plan(loop)


def test_a_reference_without_a_meterset_leaves_the_weights_as_they_are(tmp_path: Path) -> None:
    ds = dataset()
    del ds.FractionGroupSequence[0].ReferencedBeamSequence[0].BeamMeterset
    assert read(tmp_path, ds).treatment_beams[0].meterset_mu == pytest.approx(FINAL)


def test_without_a_fraction_group_the_weights_are_the_meterset(tmp_path: Path) -> None:
    ds = dataset()
    del ds.FractionGroupSequence
    plan = read(tmp_path, ds)
    assert plan.fractions_planned == 0
    assert plan.treatment_beams[0].meterset_mu == pytest.approx(FINAL)


def test_a_setup_field_is_known_by_its_delivery_type_or_else_by_its_name(tmp_path: Path) -> None:
    for change in ({}, {"BeamName": "x"}, {"BeamDescription": "x"}, {"IonControlPointSequence": []}):
        ds = dataset()
        item = ds.IonBeamSequence[0]
        for keyword, value in change.items():
            setattr(item, keyword, value)
        if "BeamName" in change or "BeamDescription" in change:
            del item.TreatmentDeliveryType
        plan = read(tmp_path, ds)
        assert plan.beam(1).is_setup
        assert plan.beam(1).layers == ()
    ds = dataset()
    beam_of(ds).BeamName = "SETUP"
    assert not read(tmp_path, ds).beam(2).is_setup


def test_range_shifters_are_read(tmp_path: Path) -> None:
    ds = dataset()
    shifter = Dataset()
    shifter.RangeShifterNumber = 1
    shifter.RangeShifterID = "SNOUT_DEG_B"
    beam_of(ds).RangeShifterSequence = [shifter]
    beam_of(ds).NumberOfRangeShifters = 1
    (found,) = read(tmp_path, ds).treatment_beams[0].range_shifters
    assert (found.number, found.id) == (1, "SNOUT_DEG_B")
    beam_of(ds).NumberOfRangeShifters = 2
    with pytest.raises(ValidationError, match="NumberOfRangeShifters"):
        read(tmp_path, ds)


def test_modulated_spots_keep_their_first_weight(tmp_path: Path) -> None:
    layer = spot_layer()
    ds = dataset([layer])
    beam_of(ds).ScanMode = "MODULATED"
    ds.FractionGroupSequence = []
    np.testing.assert_allclose(read(tmp_path, ds).treatment_beams[0].layers[0].meterset_mu, layer.meterset_mu)


def test_without_a_patient_setup_the_patient_lies_head_first_supine(tmp_path: Path) -> None:
    ds = dataset()
    del ds.PatientSetupSequence
    assert read(tmp_path, ds).patient_position == "HFS"


def _set(keyword: str, value: object) -> Callable[[FileDataset], None]:
    return lambda ds: setattr(beam_of(ds), keyword, value)


def _point(index: int, keyword: str, value: object) -> Callable[[FileDataset], None]:
    return lambda ds: setattr(point_of(ds, index), keyword, value)


def _drop(index: int, keyword: str) -> Callable[[FileDataset], None]:
    return lambda ds: delattr(point_of(ds, index), keyword)


def _raw(index: int, tag: int, value: bytes) -> Callable[[FileDataset], None]:
    return lambda ds: setattr(point_of(ds, index)[tag], "value", value)


def _two_metersets(ds: FileDataset) -> None:
    ds.FractionGroupSequence.append(plan_dataset(metersets={2: "5.0"}).FractionGroupSequence[0])


def _two_positions(ds: FileDataset) -> None:
    second = Dataset()
    second.PatientPosition = "FFS"
    ds.PatientSetupSequence.append(second)


def _named_but_not_there(ds: FileDataset) -> None:
    ds.FractionGroupSequence[0].ReferencedBeamSequence.append(Dataset())
    ds.FractionGroupSequence[0].ReferencedBeamSequence[-1].ReferencedBeamNumber = 7
    ds.FractionGroupSequence[0].ReferencedBeamSequence[-1].BeamMeterset = 1.0


def _second_machine(ds: FileDataset) -> None:
    other = beam_item(3, control_points(LAYERS), FINAL)
    other.TreatmentMachineName = "G1"
    ds.IonBeamSequence.append(other)


def _contradiction(ds: FileDataset) -> None:
    shifted = LAYERS[0].positions_mm + 0.02
    point = point_of(ds, 0)
    point.ScanSpotPositionMap = [float(value) for value in shifted.ravel()]
    point.ScanSpotMetersetWeights = [float(value) for value in LAYERS[0].meterset_mu]


def _other_count(ds: FileDataset) -> None:
    point_of(ds, 0).ScanSpotPositionMap = [1.0, 2.0]
    point_of(ds, 0).ScanSpotMetersetWeights = 0.12


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_set("RadiationType", "PHOTON"), "radiation type PHOTON is not supported"),
        (_set("RadiationType", "ION"), "radiation type ION"),
        (_set("ScanMode", "UNIFORM"), "scan mode UNIFORM is not supported"),
        (_set("ScanMode", "NONE"), "scan mode NONE"),
        (_set("PrimaryDosimeterUnit", "NP"), "primary dosimeter unit NP"),
        (_set("NumberOfBlocks", 1), "blocks in the beam"),
        (_set("NumberOfWedges", 1), "wedges in the beam"),
        (_set("NumberOfCompensators", 2), "compensators in the beam"),
        (_set("NumberOfBoli", 1), "boli in the beam"),
        (_set("NumberOfRangeModulators", 1), "range modulators in the beam"),
        (_set("TreatmentDeliveryType", "OPEN_PORTFILM"), "delivery type OPEN_PORTFILM"),
        (_set("BeamNumber", 1), "beam number 1 is given twice"),
        (_set("VirtualSourceAxisDistances", [0.0, 2223.0]), "VirtualSourceAxisDistances"),
        (_set("VirtualSourceAxisDistances", 2597.0), "readable DICOM|VirtualSourceAxisDistances"),
        (_set("IonControlPointSequence", []), "no control points"),
        (_set("FinalCumulativeMetersetWeight", 0.5), "cumulative weights end at 0.42, not at 0.5"),
        (_set("FinalCumulativeMetersetWeight", 0.0), "no usable numbers"),
        (_point(3, "GantryAngle", 91.0), "GantryAngle changes during the beam"),
        (_point(0, "TableTopPitchAngle", 2.0), "TableTopPitchAngle 2 is not supported"),
        (_drop(0, "GantryAngle"), "GantryAngle is missing"),
        (_drop(0, "SnoutPosition"), "SnoutPosition is missing"),
        (_point(0, "SnoutPosition", float("nan")), "SnoutPosition is no number"),
        (
            lambda ds: [setattr(point_of(ds, 0)[tag], "value", b"") for tag in (0x300B1094, 0x300B1096)],
            "no spots",
        ),
        (_drop(0, "IsocenterPosition"), "IsocenterPosition is not a position"),
        (_drop(0, "NominalBeamEnergy"), "layer 1 has no energy"),
        (_point(1, "NominalBeamEnergy", 119.0), "control points of layer 1 differ in energy"),
        (_point(2, "CumulativeMetersetWeight", 0.2), "pairs are no layers"),
        (_point(1, "CumulativeMetersetWeight", 0.0), "pairs are no layers"),
        (_raw(0, 0x300B1096, struct.pack("<13f", *[0.0102] * 13)), "spots of layer 1 add up to 0.1326"),
        (_raw(0, 0x300B1092, b"14"), "says 14 spots"),
        (_raw(0, 0x300B1094, bytes(4 * 24)), "24 coordinates, 13 weights"),
        (_raw(0, 0x300B1094, bytes(6)), "no whole number of float32"),
        (_raw(0, 0x300B1094, b""), "0 coordinates, 13 weights"),
        (_raw(0, 0x300B1096, struct.pack("<13f", *[float("nan")] * 13)), "no number, or a negative weight"),
        (_raw(0, 0x300B1096, struct.pack("<13f", *[-0.01] * 13)), "no number, or a negative weight"),
        (_raw(0, 0x300B109A, b"-1"), "painted -1 times"),
        (_raw(1, 0x300B1096, struct.pack("<13f", *[0.01] * 13)), "spot weights after the layer's end"),
        (_contradiction, "contradict each other"),
        (_other_count, "different numbers of spots"),
        (_point(0, "ScanSpotPositionMap", [1.0, 2.0]), "positions without weights"),
        (_two_metersets, "different metersets"),
        (_two_positions, "patient position FFS and HFS"),
        (_second_machine, "different machines: G1, G2"),
        (lambda ds: ds.IonBeamSequence.pop(1), "no treatment beam"),
        (_named_but_not_there, "names this beam, but the plan ends before it"),
        (lambda ds: beam_of(ds).IonControlPointSequence.pop(), "3 control points do not stand in pairs"),
        (lambda ds: setattr(ds, "PatientID", ""), "PatientID is missing"),
        (
            lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.5"),
            "no RT Ion Plan .RT Plan Storage",
        ),
        (lambda ds: setattr(ds, "SOPClassUID", "1.2.3"), "no RT Ion Plan"),
        (lambda ds: delattr(ds, "SOPClassUID"), "no SOP class"),
    ],
)
def test_a_plan_that_cannot_be_computed_is_refused(
    tmp_path: Path, damage: Callable[[FileDataset], object], message: str
) -> None:
    ds = dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        damage(ds)
        path = tmp_path / "RP.dcm"
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
        ds.save_as(path)
        with pytest.raises(ValidationError, match=message) as caught:
            read_plan(path)
    assert caught.value.path == path


def test_a_meterset_that_is_no_number_is_refused(tmp_path: Path) -> None:
    ds = dataset()
    ds.FractionGroupSequence[0].ReferencedBeamSequence[0].BeamMeterset = "-1"
    with pytest.raises(ValidationError, match="BeamMeterset is -1"):
        read(tmp_path, ds)


def test_spot_weights_may_differ_from_the_meterset_by_rounding_only(tmp_path: Path) -> None:
    weights = replace(LAYERS[0]).meterset_mu * 1.005
    ds = dataset()
    point_of(ds, 0)[0x300B1096].value = struct.pack("<13f", *weights)
    assert read(tmp_path, ds).treatment_beams[0].layers[0].total_mu == pytest.approx(0.12)


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_dicom_file_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"hello", bytes(200), bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\xff" * 50):
        path = tmp_path / "RP.dcm"
        path.write_bytes(content)
        with pytest.raises(ValidationError) as caught:
            read_plan(path)
        assert caught.value.path == path
    with pytest.raises(ValidationError, match="cannot be read"):
        read_plan(tmp_path / "none.dcm")
    with pytest.raises(ValidationError, match="cannot be read"):
        read_plan(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_no_error_shows_a_name(tmp_path: Path) -> None:
    ds = dataset()
    ds.PatientName = "Secret^Name"
    path = write_plan(tmp_path / "RP.dcm", ds)
    content = path.read_bytes()
    for end in range(200, len(content), 97):
        path.write_bytes(content[:end])
        try:
            read_plan(path)
        except ValidationError as error:
            assert "Secret" not in str(error)


_WHOLE = {}


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@example(136, b"", 1)
@given(st.integers(132, 5000), st.binary(max_size=12), st.integers(0, 12))
def test_any_damage_gives_a_plan_or_an_error(at: int, content: bytes, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "RP.dcm"
        if not _WHOLE:
            _WHOLE["bytes"] = write_plan(path, dataset()).read_bytes()
        whole = _WHOLE["bytes"]
        path.write_bytes(whole[: at % len(whole)] + content + whole[at % len(whole) + cut :])
        try:
            assert read_plan(path).treatment_beams
        except ValidationError as error:
            assert error.path == path


@pytest.mark.parametrize(
    ("name", "room"),
    [("G1", "G1"), ("G2", "G2"), ("GTR1", "G1"), ("GTR2", "G2"), ("SMC Gantry 2", "G2"), ("G-1b", "G1")],
)
def test_the_room_is_in_the_machines_name(name: str, room: str) -> None:
    assert machine_room(name) == room


@pytest.mark.parametrize("name", ["", "G3", "G12", "TR1", "G21", "1", "GTR"])
def test_another_machine_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError, match="is not known"):
        machine_room(name)
