"""A synthetic case is what planning system, record system and machine leave, and what its recipe says.

The formats are read here with a few lines of numpy and pydicom, not with the project's own readers.
"""

from __future__ import annotations

import csv
import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError as ModelError

from mqi.engines.proton_physics import MEV_PER_G_GY, depth_dose, protons_per_mu
from mqi.errors import ConfigurationError
from mqi.log.calibration import builtin_calibration
from mqi.plan import PlanLayer
from mqi.synthesize import (
    READY_MARKER,
    SPOILS,
    CtSize,
    Interruption,
    Recipe,
    Shift,
    SyntheticCase,
    Target,
    synthesize_case,
)
from mqi.synthesize.machine import Part, choose_range_code, record_layer
from mqi.synthesize.phantom import make_phantom
from mqi.synthesize.sobp import layer_weights, plan_beams
from mqi.synthesize.timing import plan_timeline
from tests.requirement import program

SMALL = Recipe.small()
BOTH = 0xC000


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash; links with where they lead."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() or path.is_symlink()
    }


def read_ptn(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), dtype=">u2").reshape(-1, 8).astype(np.int64)


def read_mgn(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), dtype=[("t", ">u4"), ("v", ">u2", 5)])


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "PlanRange.txt").open(newline="") as file:
        return list(csv.DictReader(file))


def info(folder: Path) -> dict[str, str]:
    return dict(line.split(",", 1) for line in (folder / "PlanInfo.txt").read_text().splitlines())


def private(point: pydicom.Dataset, element: int) -> bytes:
    return bytes(point[0x300B, 0x1000 | element].value)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SyntheticCase:
    return synthesize_case(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="module")
def deliveries(small: SyntheticCase) -> list[Path]:
    return sorted(path.parent for path in small.study.rglob("PlanInfo.txt"))


# --- the whole case -------------------------------------------------------------------------------


def test_the_same_recipe_writes_the_same_bytes(small: SyntheticCase, tmp_path: Path) -> None:
    again = synthesize_case(tmp_path, SMALL)
    assert tree(again.folder) == tree(small.folder)


def test_another_seed_is_another_case(small: SyntheticCase, tmp_path: Path) -> None:
    other = synthesize_case(tmp_path, Recipe.small(seed=2, tps_dose=False))
    assert other.plan.sop_uid != small.plan.sop_uid
    assert other.study.name != small.study.name
    ours, theirs = (read_ptn(sorted(case.study.rglob("*.ptn"))[0]) for case in (small, other))
    assert ours.shape != theirs.shape or (ours != theirs).any()


def test_a_small_case_has_every_file_at_its_place_and_below_1_mb_of_logs(small: SyntheticCase) -> None:
    study = small.study
    plan = pydicom.dcmread(small.plan_path)
    assert (small.folder / READY_MARKER).is_file()
    assert small.folder.name == plan.PatientID == "SYN00001"
    assert study.name == plan.StudyInstanceUID
    assert small.plan_path.name == f"RP.{plan.SOPInstanceUID}.dcm"
    assert len(list((study / "CT").glob("*.dcm"))) == SMALL.ct.slices
    assert {pydicom.dcmread(path).SOPInstanceUID for path in study.glob("RD.*.dcm")} == {
        path.name[3:-4] for path in small.doses.values()
    }
    assert sum(path.stat().st_size for path in study.rglob("*.ptn")) < 1_000_000


def test_a_case_is_never_written_over_another(small: SyntheticCase) -> None:
    with pytest.raises(ConfigurationError, match="there already"):
        synthesize_case(small.folder.parent, SMALL)


def test_no_marker_stands_while_a_second_study_of_the_patient_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = synthesize_case(tmp_path, Recipe.small(tps_dose=False))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mqi.synthesize.build.write_delivery", killed)
    with pytest.raises(KeyboardInterrupt):
        synthesize_case(tmp_path, Recipe.small(revision=1, tps_dose=False))
    assert not (first.folder / READY_MARKER).exists()


# --- the plan -------------------------------------------------------------------------------------


def test_the_plan_is_a_valid_rt_ion_plan_but_for_the_unit_of_the_sites_setup_field(
    small: SyntheticCase, tmp_path: Path
) -> None:
    dciodvfy = program("dciodvfy", package="dicom3tools")
    spots = synthesize_case(
        tmp_path, Recipe.small(scan_mode="MODULATED", spot_tags="standard", tps_dose=False)
    )
    for path in (small.plan_path, spots.plan_path, spots.ct[0]):
        report = subprocess.run([dciodvfy, str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in report.stderr.splitlines() if line.startswith("Error")]
        # Measured: the site's setup field counts minutes, which DICOM knows for photon plans only.
        assert [line for line in errors if "<MINUTE>" not in line] == [], path.name


def test_the_setup_field_is_the_sites(small: SyntheticCase) -> None:
    setup = pydicom.dcmread(small.plan_path).IonBeamSequence[0]
    assert (setup.BeamNumber, setup.BeamName, setup.BeamDescription) == (1, "SETUP", "Site Setup")
    assert (setup.TreatmentDeliveryType, setup.ScanMode, setup.RadiationType) == ("SETUP", "NONE", "PHOTON")
    assert setup.PrimaryDosimeterUnit == "MINUTE"
    assert setup.FinalCumulativeMetersetWeight == 1.0
    assert [point.NominalBeamEnergy for point in setup.IonControlPointSequence] == [100, 100]


def test_control_points_come_in_pairs_of_one_layer_and_sum_up_to_the_beam(small: SyntheticCase) -> None:
    plan = pydicom.dcmread(small.plan_path)
    for item, beam in zip(plan.IonBeamSequence[1:], small.plan.treatment_beams, strict=True):
        points = item.IonControlPointSequence
        assert len(points) == item.NumberOfControlPoints == 2 * len(beam.layers)
        for even, odd, layer in zip(points[::2], points[1::2], beam.layers, strict=True):
            weights = np.frombuffer(private(even, 0x96), "<f4")
            assert even.NominalBeamEnergy == odd.NominalBeamEnergy == layer.energy_mev
            assert private(even, 0x94) == private(odd, 0x94)
            assert weights[0] == 0.0
            assert int(private(even, 0x92)) == len(weights)
            assert not np.frombuffer(private(odd, 0x96), "<f4").any()
            step = odd.CumulativeMetersetWeight - even.CumulativeMetersetWeight
            assert step == pytest.approx(weights.astype(float).sum(), abs=2e-6)
        assert points[-1].CumulativeMetersetWeight == item.FinalCumulativeMetersetWeight
        energies = [layer.energy_mev for layer in beam.layers]
        assert energies == sorted(energies, reverse=True)


def test_private_and_standard_spot_tags_say_the_same(tmp_path: Path) -> None:
    both = synthesize_case(tmp_path, Recipe.small(spot_tags="both", tps_dose=False))
    plan = pydicom.dcmread(both.plan_path)
    compared = 0
    for item in plan.IonBeamSequence[1:]:
        for point in item.IonControlPointSequence:
            positions = np.frombuffer(private(point, 0x94), "<f4")
            weights = np.frombuffer(private(point, 0x96), "<f4")
            np.testing.assert_array_equal(positions, np.array(point.ScanSpotPositionMap, np.float32))
            np.testing.assert_array_equal(weights, np.array(point.ScanSpotMetersetWeights, np.float32))
            assert point[0x300B, 0x1094].VR == point[0x300B, 0x1096].VR == "UN"
            assert float(private(point, 0x90)) == float(point.ScanSpotTuneID)
            assert int(private(point, 0x9A)) == point.NumberOfPaintings == 1
            compared += len(weights)
    assert compared > 100


def test_each_choice_of_spot_tags_holds_those_only(tmp_path: Path, small: SyntheticCase) -> None:
    standard = synthesize_case(tmp_path, Recipe.small(spot_tags="standard", tps_dose=False))
    for path, has_standard in ((standard.plan_path, True), (small.plan_path, False)):
        point = pydicom.dcmread(path).IonBeamSequence[1].IonControlPointSequence[0]
        assert ("ScanSpotPositionMap" in point) is has_standard
        assert ((0x300B, 0x1094) in point) is not has_standard


def test_the_layers_make_a_flat_spread_out_bragg_peak() -> None:
    recipe = Recipe()
    phantom = make_phantom(recipe.model_copy(update={"medium": "water"}))
    beam = plan_beams(recipe, phantom)[0]
    # Dose in the middle of a broad field: all protons that pass the central square of nine spots.
    depth_mm = np.arange(0.0, 140.0, 0.5)
    dose = np.zeros_like(depth_mm)
    side_mm = 3 * recipe.spot_spacing_mm
    for layer in beam.layers:
        middle = (layer.positions_mm + np.roll(layer.positions_mm, 1, axis=0)) / 2
        inside = (np.abs(middle) < side_mm / 2).all(axis=1)
        protons = layer.meterset_mu[inside].sum() * protons_per_mu(layer.energy_mev)
        dose += protons * depth_dose(depth_mm / 10, layer.energy_mev) * MEV_PER_G_GY / (side_mm / 10) ** 2
    target = np.abs(depth_mm - recipe.target.depth_mm) <= recipe.target.diameter_mm / 2 - 2
    share = recipe.prescription_gy / 3
    assert np.abs(dose[target] / share - 1).max() < 0.04
    assert dose[depth_mm > recipe.target.depth_mm + recipe.target.diameter_mm / 2 + 8].max() < 0.1 * share


def test_one_gy_of_layer_weights_is_one_gy() -> None:
    energies = tuple(float(e) for e in range(120, 90, -3))
    weights = layer_weights(energies, near_mm=80, far_mm=100)
    depth_mm = np.arange(82.0, 98.0)
    dose = sum(w * depth_dose(depth_mm / 10, e) for w, e in zip(weights, energies, strict=True))
    assert np.abs(dose * MEV_PER_G_GY - 1).max() < 0.04


def test_the_beams_of_the_demo_give_the_target_their_shares_and_together_the_prescription(
    tmp_path: Path,
) -> None:
    case = synthesize_case(tmp_path, Recipe())
    assert sum(path.stat().st_size for path in case.study.rglob("*.ptn")) < 25_000_000
    assert all(18 <= len(beam.layers) <= 26 for beam in case.plan.treatment_beams)
    isocentre = np.array(case.plan.treatment_beams[0].isocentre_mm)
    for number, path in case.doses.items():
        file = pydicom.dcmread(path)
        dose = file.pixel_array * float(file.DoseGridScaling)
        place = (isocentre - np.array(file.ImagePositionPatient, float)) / case.recipe.ct.voxel_mm
        i, j, k = np.rint(place).astype(int)
        middle = dose[k - 3 : k + 4, j - 3 : j + 4, i - 3 : i + 4]
        share = case.recipe.prescription_gy / (1 if number is None else 3)
        assert middle.mean() == pytest.approx(share, rel=0.03)
        assert np.abs(middle / share - 1).max() < 0.06
        reference = file.ReferencedRTPlanSequence[0]
        assert reference.ReferencedSOPInstanceUID == case.plan.sop_uid
        assert file.DoseSummationType == ("PLAN" if number is None else "BEAM")
        if number is not None:
            beam = reference.ReferencedFractionGroupSequence[0].ReferencedBeamSequence[0]
            assert beam.ReferencedBeamNumber == number


def test_the_ct_is_square_complete_and_has_bone_and_lung(small: SyntheticCase) -> None:
    slices = sorted((pydicom.dcmread(path) for path in small.ct), key=lambda s: s.ImagePositionPatient[2])
    steps = np.diff([float(s.ImagePositionPatient[2]) for s in slices])
    np.testing.assert_allclose(steps, SMALL.ct.voxel_mm)
    assert slices[0].Rows == slices[0].Columns == SMALL.ct.columns
    assert slices[0].file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    plan = pydicom.dcmread(small.plan_path)
    assert {s.FrameOfReferenceUID for s in slices} == {plan.FrameOfReferenceUID}
    numbers = {int(v) for s in slices for v in np.unique(s.pixel_array)}
    assert numbers == {-1000, -700, 0, 700}


def test_a_case_in_water_has_no_ct_and_a_dose_per_beam_below_the_surface(tmp_path: Path) -> None:
    water = synthesize_case(tmp_path, Recipe.small(medium="water"))
    assert water.ct == ()
    assert not (water.study / "CT").exists()
    assert sorted(water.doses) == [2, 3]
    dose = pydicom.dcmread(water.doses[2])
    values = dose.pixel_array * float(dose.DoseGridScaling)
    # Gantry 0: the first slice lies deepest, 20 mm of water stand before the isocentre.
    along = values[:, values.shape[1] // 2, values.shape[2] // 2]
    depth_mm = 2.0 * (len(along) - np.arange(len(along))) - 1.0
    assert depth_mm[along > 0.9 * along.max()].mean() == pytest.approx(SMALL.target.depth_mm, abs=3)


def test_a_target_beyond_the_machines_energies_is_refused() -> None:
    recipe = Recipe.small(target=Target(diameter_mm=20, depth_mm=25), medium="water")
    with pytest.raises(ConfigurationError, match="beyond the machine's energies"):
        plan_beams(recipe, make_phantom(recipe))


# --- the machine ----------------------------------------------------------------------------------


def test_plan_info_and_plan_range_name_what_is_there(small: SyntheticCase, deliveries: list[Path]) -> None:
    assert [int(info(folder)["DICOM_BEAM_NUMBER"]) for folder in deliveries] == [2, 3]
    for folder, beam in zip(deliveries, small.plan.treatment_beams, strict=True):
        facts, rows = info(folder), table(folder)
        assert facts["DICOM_PATIENT_ID"] == "SYN00001"
        assert facts["DICOM_STUDY_INS_UID"] == small.study.name
        assert facts["TCSC_IRRAD_DATETIME"] == folder.name
        assert (facts["START_LAYER_NUMBER"], facts["STOP_LAYER_NUMBER"]) == ("1", str(len(beam.layers)))
        assert [float(row["LAYER_ENERGY"]) for row in rows] == [layer.energy_mev for layer in beam.layers]
        assert {row["RESULT_ID"] for row in rows} == {folder.name}
        named = {row[key] for row in rows for key in ("SCAN_OUT_FL_NM", "PLAN_SCAN_OUT_FL_NM")}
        assert named == {path.name for path in folder.iterdir()} - {"PlanInfo.txt", "PlanRange.txt"}
    seconds = [
        int(folder.name[8:10]) * 3600 + int(folder.name[10:12]) * 60 + int(folder.name[12:14])
        for folder in deliveries
    ]
    assert 300 <= seconds[1] - seconds[0] <= 360


@pytest.mark.parametrize("changes", [{}, {"room": "G1"}, {"range_codes": (1, 2, 3, 4, 5)}, {"paintings": 3}])
def test_beam_on_counts_are_the_planned_meterset(tmp_path: Path, changes: dict[str, object]) -> None:
    recipe = Recipe.small(tps_dose=False, mu_scale={3: 1.03}, **changes)
    case = synthesize_case(tmp_path, recipe)
    calibration = builtin_calibration(recipe.room)
    used: set[int] = set()
    for delivery in case.deliveries:
        beam = case.plan.beam(delivery.shot.beam_number)
        for row, layer in zip(table(delivery.folder), beam.layers, strict=True):
            code = int(row["DOSE1_RANGE"])
            log = read_ptn(delivery.folder / row["SCAN_OUT_FL_NM"])
            on = log[:, 7] & BOTH == BOTH
            factor = calibration.range_factors[code - 1] / calibration.dose_divisor
            mu = log[on, 4].sum() * factor * calibration.mu_per_count
            assert mu == pytest.approx(layer.total_mu * {2: 1.0, 3: 1.03}[beam.number], rel=1e-3)
            assert mu == pytest.approx(delivery.layer_mu[layer.number], rel=1e-9)
            assert log[on, 5].sum() == pytest.approx(0.999 * log[on, 4].sum(), rel=2e-3)
            assert set(log[:, 7] & 0x7F) == set(range(1, recipe.paintings + 1))
            assert set(log[:, 6]) == {layer.number}
            used.add(code)
    assert case.delivered_mu[3] == pytest.approx(1.03 * case.planned_mu[3], rel=1e-5)
    assert used == (set(recipe.range_codes) or {2})


def test_a_log_runs_idle_transition_on_transition_tail(deliveries: list[Path]) -> None:
    for path in sorted(deliveries[0].glob("*.ptn")):
        log, flags = read_ptn(path), read_ptn(path)[:, 7]
        starts = np.flatnonzero(np.diff(flags, prepend=-1))
        assert flags[starts].tolist() == [1, 0x8001, 0xC001, 0x4001, 1]
        lengths = np.diff(np.append(starts, len(flags)))
        assert 94 <= lengths[0] <= 370
        assert (lengths[1], lengths[3]) == (2, 2)
        idle = log[: starts[1]]
        assert len(np.unique(idle[:, :2], axis=0)) == 1, "parked registers stand still"
        assert (idle[:, 0] > 60000).all()
        assert not idle[:, 2:4].any()
        assert idle[:, 4].max() <= 100
        on = log[starts[2] : starts[3], 4]
        assert 3000 < np.median(on) < 6000
        assert on[2] < 0.4 * np.median(on), "the signal rises"
        after = log[starts[3] :, 4]
        assert after[0] > 0.5 * np.median(on) > 10 * after[40:].max(), "and decays"


def test_the_position_follows_the_magnets_180_us_late_with_0_12_mm_noise(
    small: SyntheticCase, deliveries: list[Path]
) -> None:
    calibration = builtin_calibration("G2")
    path = max(deliveries[0].glob("*.ptn"), key=lambda p: p.stat().st_size)
    log = read_ptn(path)
    mgn = read_mgn(path.with_name(path.name.replace(path.name.split("_")[1], "SYN00001")).with_suffix(".mgn"))
    assert (mgn["v"][[0, -1], :4] == 0x8000).all()
    assert mgn["v"][:, 4].tolist() == [0, *[1] * (len(mgn) - 3), 0, 0]
    assert mgn["t"][-1] - mgn["t"][-2] == 12_000
    assert len(log) * 60 == pytest.approx(int(mgn["t"][-1]), abs=60)
    spots = np.stack([(mgn["v"][1:-1, n] - 32768.0) * g for n, g in ((2, 0.005445), (3, 0.0071411))], axis=1)
    layer = small.plan.beam(2).layers[int(log[0, 6]) - 1]
    assert np.abs(spots - layer.positions_mm).max() < 0.004
    rows = np.flatnonzero(log[:, 7] & BOTH == BOTH)[10:-10]
    for bank, (gain, offset) in enumerate(
        (
            (calibration.x_pos_gain_mm, calibration.x_pos_offset),
            (calibration.y_pos_gain_mm, calibration.y_pos_offset),
        )
    ):
        logged = (log[rows, bank] - offset) * gain
        residual = [
            (logged - np.interp(rows * 60.0 - lag, mgn["t"][1:-1].astype(float), spots[:, bank])).std()
            for lag in (0, 60, 120, 180, 240, 300, 360)
        ]
        assert int(np.argmin(residual)) == 3
        assert residual[3] == pytest.approx(0.12, rel=0.1)


def test_spots_are_flown_to_and_then_stood_on_in_mode_modulated() -> None:
    layer = PlanLayer(1, 100.0, np.array([[0.0, 0], [6, 0], [12, 0]]), np.array([0.03, 0.03, 0.03]))
    timeline = plan_timeline(layer, "MODULATED")
    assert timeline.end_ms == pytest.approx(3 * 1000 * 0.03 / 1.5)
    standing = timeline.position_mm(np.array([5.0, 21.0, 39.0, 41.0]))[:, 0]
    np.testing.assert_allclose(standing, [0, 6, 6, 12])
    assert timeline.delivered_mu(np.array([20.0, 40.0])) == pytest.approx([0.03, 0.06])


def test_a_line_goes_no_faster_than_the_magnets_and_at_the_slowest_feasible_rate() -> None:
    layer = PlanLayer(
        1, 100.0, np.array([[0.0, 0], [6, 0], [12, 0], [12, 6]]), np.array([0.0, 0.03, 0.0006, 0.0])
    )
    timeline = plan_timeline(layer, "LINE")
    assert timeline.rate_mu_s == pytest.approx(2000 * 0.0006 / 0.6)
    np.testing.assert_allclose(np.diff(timeline.spot_ms), [15.0, 0.3, 0.3])
    only_slow = replace(layer, meterset_mu=np.array([0.0, 0.0001, 0.0001, 0.0]))
    assert plan_timeline(only_slow, "LINE").rate_mu_s == 1.4


def test_range_codes_follow_the_intensity_and_too_small_a_range_is_refused() -> None:
    calibration = builtin_calibration("G2")
    assert [choose_range_code(rate, calibration) for rate in (1.5, 4.0, 12.0, 20.0, 1000.0)] == [
        2,
        3,
        4,
        5,
        5,
    ]
    bright = PlanLayer(7, 100.0, np.array([[0.0, 0], [6, 0]]), np.array([0.0, 0.5]))
    with pytest.raises(ConfigurationError, match="layer 7 at 20 MU/s is too intense for range code 1"):
        record_layer(bright, "LINE", calibration, np.random.default_rng(1), range_code=1)


@settings(max_examples=20, deadline=None)
@given(
    st.floats(0.06, 0.94),
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.sampled_from(["LINE", "MODULATED"]),
)
def test_two_parts_of_a_layer_make_the_whole_wherever_it_was_cut(
    cut: float, seed: int, code: int, mode: str
) -> None:
    calibration = builtin_calibration("G2")
    x = np.arange(8) * 6.0
    layer = PlanLayer(
        3, 100.0, np.stack([x, 0 * x], axis=1), np.array([0, 0.000452, 0.05, 0.04, 0.1, 0.03, 0.02, 0.06])
    )
    parts = [
        record_layer(layer, mode, calibration, np.random.default_rng([seed, n]), range_code=code, part=part)
        for n, part in enumerate((Part(0, cut), Part(cut, 1)))
    ]
    assert sum(part.delivered_mu for part in parts) == pytest.approx(layer.total_mu, rel=1e-3)
    for part in parts:
        on = part.ptn[:, 7] & BOTH == BOTH
        assert part.ptn[on, 4].sum() * calibration.range_factors[code - 1] == pytest.approx(
            part.delivered_mu * calibration.dose_divisor / calibration.mu_per_count
        )
    # The resumption flies idle over what was delivered: planned on, not on, no dose, parked.
    idle = parts[1].ptn[parts[1].ptn[:, 7] == 0x8001]
    planned_rows = cut * plan_timeline(layer, mode).end_ms / calibration.time_gain_ms
    assert len(idle) == pytest.approx(planned_rows + 2, abs=1.5)
    assert idle[:, 4].max() <= 100
    assert (idle[:, 0] > 60000).all()


# --- what a recipe may say ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"mu_scale": {1: 1.0}},
        {"shifts": (Shift(beam_number=9, x_mm=1),)},
        {"delivery_order": (2, 7)},
        {"interruption": Interruption(beam_number=8, layer=1)},
        {"patient_id": "a/b"},
        {"patient_id": ".."},
        {"patient_id": "a\nb"},
        {"range_codes": (6,)},
        {"colour": "blue"},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        Recipe.small(**changes)


def test_recipes_go_through_json(small: SyntheticCase) -> None:
    recipe = Recipe.small(mu_scale={2: 1.02}, ct=CtSize(columns=32, slices=20, voxel_mm=4))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


# --- what goes wrong ------------------------------------------------------------------------------

MIDDLE = "02_0201636_001_003_003.ptn"  # the third layer of the second beam

CHANGED = {
    "half-copied-file": {MIDDLE},
    "empty-layer": {MIDDLE},
    "wrong-layer-number": {MIDDLE},
    "link-out": {MIDDLE},
    "patient-mismatch": {"PlanInfo.txt", "PlanRange.txt"},
    "unknown-range-code": {"PlanRange.txt"},
    "unknown-machine": {"RP"},
    "damaged-dicom": {"RP"},
}
"""Names of the files that a spoil changes; all others of these spoils stay as they are."""


def spoilt(out: Path, name: str) -> SyntheticCase:
    # The unspoilt case has doses; leaving them out here saves time and changes nothing else.
    return synthesize_case(out, Recipe.small(tps_dose=False), name)


def without_doses(files: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if "/RD." not in name}


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_a_spoil_changes_what_it_says_and_nothing_else(
    small: SyntheticCase, tmp_path: Path, name: str
) -> None:
    before, after = without_doses(tree(small.folder)), tree(spoilt(tmp_path, name).folder)
    assert before.keys() == after.keys()
    different = [path for path in before if before[path] != after[path]]
    assert {"RP" if "/RP." in path else path.rpartition("/")[2] for path in different} == CHANGED[name]
    assert len({path.split("/")[-2] for path in different}) == 1


def test_each_file_spoil_does_what_its_name_says(tmp_path: Path) -> None:
    def log(name: str) -> Path:
        return next(spoilt(tmp_path / name, name).study.rglob(MIDDLE), Path("gone"))

    assert log("half-copied-file").stat().st_size % 16 != 0
    assert log("missing-layer") == Path("gone")
    assert log("empty-layer").stat().st_size == 0
    assert set(read_ptn(log("wrong-layer-number"))[:, 6]) == {4}
    assert tmp_path / "link-out" == log("link-out").resolve().parent
    assert table(log("unknown-range-code").parent)[0]["DOSE1_RANGE"] == "7"
    assert info(log("patient-mismatch").parent)["DICOM_PATIENT_ID"] == "SYN00009"


def test_only_the_case_without_marker_has_none(tmp_path: Path) -> None:
    assert not (spoilt(tmp_path / "a", "no-marker").folder / READY_MARKER).exists()
    assert (spoilt(tmp_path / "b", "damaged-dicom").folder / READY_MARKER).exists()


@pytest.mark.parametrize(
    ("name", "beams"),
    [
        ("other-order", [3, 2]),
        ("two-fractions", [2, 3, 2, 3]),
        ("beam-twice", [2, 3, 2]),
        ("missing-beam", [2]),
        ("interrupted", [2, 3]),
        ("interrupted-resumed", [2, 2, 3]),
        ("interlock", [2, 3]),
    ],
)
def test_a_spoilt_course_delivers_these_beams_in_this_order(
    tmp_path: Path, name: str, beams: list[int]
) -> None:
    case = spoilt(tmp_path, name)
    folders = sorted(path.parent for path in case.study.rglob("PlanInfo.txt"))
    assert [int(info(folder)["DICOM_BEAM_NUMBER"]) for folder in folders] == beams
    days = {folder.name[:8] for folder in folders}
    assert len(days) == (2 if name == "two-fractions" else 1)


def test_an_interrupted_beam_and_its_resumption_share_a_layer_and_sum_up(tmp_path: Path) -> None:
    case = spoilt(tmp_path, "interrupted-resumed=0.3")
    first, second, _ = case.deliveries
    assert (info(first.folder)["STOP_LAYER_NUMBER"], info(second.folder)["START_LAYER_NUMBER"]) == ("2", "2")
    planned = case.plan.beam(2).layers[1].total_mu
    assert first.layer_mu[2] + second.layer_mu[2] == pytest.approx(planned, rel=1e-5)
    assert first.layer_mu[2] < 0.6 * planned
    assert case.delivered_mu == pytest.approx(case.planned_mu, rel=1e-5)
    never = spoilt(tmp_path / "never", "interrupted=0.3")
    assert sorted(never.deliveries[0].layer_mu) == [1, 2]
    assert never.delivered_mu[2] < 0.9 * never.planned_mu[2]


def test_an_interlock_leaves_two_stretches_of_beam_in_one_log(tmp_path: Path) -> None:
    case = spoilt(tmp_path, "interlock")
    path = sorted(case.deliveries[0].folder.glob("*.ptn"))[1]
    on = read_ptn(path)[:, 7] & BOTH == BOTH
    assert np.count_nonzero(np.diff(on.astype(int)) == 1) == 2
    assert case.delivered_mu == pytest.approx(case.planned_mu, rel=1e-5)


def test_a_re_plan_is_a_second_whole_case_of_the_same_patient(tmp_path: Path) -> None:
    case = spoilt(tmp_path, "re-plan")
    plans = [pydicom.dcmread(path) for path in case.folder.rglob("RP.*.dcm")]
    assert len({plan.SOPInstanceUID for plan in plans}) == len({plan.StudyInstanceUID for plan in plans}) == 2
    assert {plan.PatientID for plan in plans} == {"SYN00001"}


@pytest.mark.parametrize("name", sorted(name for name in SPOILS if name.startswith("hostile-name")))
def test_a_hostile_folder_name_holds_an_unchanged_case(
    small: SyntheticCase, tmp_path: Path, name: str
) -> None:
    case = spoilt(tmp_path, name)
    assert [path.name for path in tmp_path.iterdir()] == [SPOILS[name].folder_name]
    assert tree(case.folder) == without_doses(tree(small.folder))


def test_errors_of_the_delivery_are_of_the_size_that_was_asked_for(
    small: SyntheticCase, tmp_path: Path
) -> None:
    more = spoilt(tmp_path / "mu", "mu-off=5")
    assert more.delivered_mu[3] == pytest.approx(1.05 * more.planned_mu[3], rel=1e-5)
    assert more.delivered_mu[2] == pytest.approx(more.planned_mu[2], rel=1e-5)
    moved = spoilt(tmp_path / "shift", "position-off=4")
    for path in sorted(moved.study.rglob("*.ptn")):
        log, straight = read_ptn(path), read_ptn(small.folder / path.relative_to(moved.folder))
        seen = (log[:, 7] & BOTH == BOTH) & (log[:, 0] < 60000)
        apart_mm = 0.00726 * (log[seen, 0] - straight[seen, 0]).mean()
        assert apart_mm == pytest.approx(
            4.0 if path.name == MIDDLE.replace("_003.", "_002.") else 0.0, abs=0.01
        )
        assert (log[:, 1] == straight[:, 1]).all()


@pytest.mark.parametrize("text", ["nonsense", "mu-off=much", "mu-off=nan", "no-marker=3", ""])
def test_an_unknown_spoil_is_refused_with_what_can_be_chosen(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Choose one of|Write ") as caught:
        synthesize_case(tmp_path, SMALL, text)
    assert caught.value.todo
    assert list(tmp_path.iterdir()) == []


def test_every_spoil_says_what_happens_and_what_must_come_of_it() -> None:
    for name, spoil in SPOILS.items():
        assert spoil.name == name
        assert spoil.description.endswith(".")
        assert spoil.message or spoil.expect == "computed"
