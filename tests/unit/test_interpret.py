"""Logs -> delivered dose: what counts, what does not, and what is refused."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqi.errors import ValidationError
from mqi.log.calibration import builtin_calibration
from mqi.log.interpret import InterpretedBeam, interpret_beam, load_spots, planned_layers, save_spots
from mqi.plan import PlanLayer
from tests.unit.handmade import (
    IDLE,
    MU_PER_COUNT,
    ON,
    HandmadeCase,
    Log,
    Run,
    ion_plan,
    line_layer,
    mgn_bytes,
    plan_beam,
    ptn_bytes,
    ptn_rows,
    spot_layer,
    spot_times_ms,
)

G2 = builtin_calibration("G2")
AT, LATER = "2026010112000000", "2026010112050000"


def case_of(folder: Path, *layers: PlanLayer, scan_mode: str = "LINE") -> HandmadeCase:
    return HandmadeCase(folder, ion_plan(plan_beam(layers, scan_mode=scan_mode)))


def interpreted(case: HandmadeCase) -> InterpretedBeam:
    return interpret_beam(case.folder, case.manifest(), case.plan, G2)


def rows_of(layer: PlanLayer, log: Log) -> int:
    return sum(row[7] == ON for row in ptn_rows(layer, log))


def ptn_of(case: HandmadeCase, layer: int = 1) -> Path:
    return case.folder / case.deliveries[-1] / f"02_0014046_001_002_{layer:03}.ptn"


def mgn_of(case: HandmadeCase, layer: int = 1) -> Path:
    return case.folder / case.deliveries[-1] / f"02_QA0001_001_002_{layer:03}.mgn"


def test_only_rows_with_both_beam_flags_are_delivered(tmp_path: Path) -> None:
    layer, log = line_layer(), Log(noise_counts=50)
    beam = interpreted(case_of(tmp_path, layer).deliver({1: log}))
    on = rows_of(layer, log)
    assert beam.layers[0].counts.tolist() == [4000] * on
    account = beam.account.layers[0]
    assert account.delivered_mu == pytest.approx(4000 * on * MU_PER_COUNT)
    assert account.monitor2_mu == account.delivered_mu
    assert account.idle_mu == pytest.approx(100 * 50 * MU_PER_COUNT)
    assert account.tail_mu == pytest.approx(80 * 50 * MU_PER_COUNT)
    assert account.transition_mu == pytest.approx(2 * 50 * MU_PER_COUNT)


def test_every_count_of_a_log_stands_in_exactly_one_place(tmp_path: Path) -> None:
    layer = line_layer()
    log = Log(noise_counts=37, runs=(Run(0, 0.4), Run(on_clock=False)))
    beam = interpreted(case_of(tmp_path, layer).deliver({1: log}))
    account = beam.account.layers[0]
    counts = sum(row[4] for row in ptn_rows(layer, log)) * MU_PER_COUNT
    assert account.delivered_mu + account.transition_mu + account.tail_mu + account.idle_mu == pytest.approx(
        counts
    )
    assert beam.spots.mu_log.sum() == pytest.approx(account.delivered_mu)
    assert account.samples == len(ptn_rows(layer, log))


def test_parked_rows_keep_their_dose_and_get_the_nearest_position(tmp_path: Path) -> None:
    beam = interpreted(case_of(tmp_path, line_layer()).deliver({1: Log(parked_rows=3)}))
    layer = beam.layers[0]
    assert np.abs(layer.x_mm).max() < 10
    assert np.abs(layer.y_mm).max() < 10.5
    assert (layer.x_mm[:3] == layer.x_mm[3]).all()
    assert beam.account.layers[0].parked_mu == pytest.approx(3 * 4000 * MU_PER_COUNT)


def test_a_row_that_parks_at_the_end_gets_the_position_before_it(tmp_path: Path) -> None:
    layer = line_layer()
    case = case_of(tmp_path, layer).deliver({1: Log()})
    rows = ptn_rows(layer, Log())
    last = max(index for index, row in enumerate(rows) if row[7] == ON)
    rows[last] = (65230, 65500, *rows[last][2:])
    ptn_of(case).write_bytes(ptn_bytes(rows))
    delivered = interpreted(case).layers[0]
    assert delivered.x_mm[-1] == delivered.x_mm[-2]
    assert delivered.y_mm[-1] == delivered.y_mm[-2]


def test_positions_are_the_registers_by_the_calibration(tmp_path: Path) -> None:
    layer, log = line_layer(), Log()
    beam = interpreted(case_of(tmp_path, layer).deliver({1: log}))
    row = ptn_rows(layer, log)[500]
    index = 500 - log.idle_rows
    assert beam.layers[0].x_mm[index] == pytest.approx((row[0] - 24580) * 0.00726)
    assert beam.layers[0].y_mm[index] == pytest.approx((row[1] - 32772) * 0.0071411)
    assert beam.layers[0].time_ms[index] == pytest.approx(500 * 0.06)


@pytest.mark.parametrize(("code", "factor"), [(1, 160 / 470), (3, 1400 / 470), (5, 12600 / 470)])
def test_counts_scale_with_the_range_code_and_lose_nothing_to_rounding(
    tmp_path: Path, code: int, factor: float
) -> None:
    layer, log = line_layer(), Log(range_code=code)
    beam = interpreted(case_of(tmp_path, layer).deliver({1: log}))
    expected = rows_of(layer, log) * 4000 * factor
    assert abs(int(beam.layers[0].counts.sum()) - expected) <= 0.5
    assert beam.layers[0].counts.dtype == np.int64
    assert beam.account.delivered_mu == pytest.approx(expected * MU_PER_COUNT, rel=1e-6)


def test_an_unknown_range_code_is_refused_with_beam_and_file(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log(range_code=6)})
    with pytest.raises(ValidationError, match="range code 6 is unknown") as caught:
        interpreted(case)
    assert caught.value.beam == 2
    assert caught.value.path == ptn_of(case)


def test_each_spot_of_a_line_scan_gets_its_dose_and_its_place(tmp_path: Path) -> None:
    layer = line_layer()
    on = rows_of(layer, Log())
    beam = interpreted(case_of(tmp_path, layer).deliver({1: Log(lag_rows=3)}))
    spots = beam.spots
    share = on * 4000 * MU_PER_COUNT / 12
    assert spots.mu_log[0] == 0
    np.testing.assert_allclose(spots.mu_log[1:], share, rtol=0.05)
    np.testing.assert_allclose(spots.mu_log[2:-1], share, rtol=0.01)
    np.testing.assert_allclose(spots.x_log_mm[1:-1], layer.positions_mm[1:-1, 0], atol=0.1)
    np.testing.assert_allclose(spots.y_log_mm[1:-1], layer.positions_mm[1:-1, 1], atol=0.1)
    assert beam.account.layers[0].spots == 12
    assert beam.account.layers[0].position_max_mm < 0.5


@pytest.mark.parametrize("lag", [0, 3, 7, 10])
def test_the_lag_of_the_log_is_found(tmp_path: Path, lag: int) -> None:
    layer = line_layer(spots=41)
    beam = interpreted(case_of(tmp_path, layer).deliver({1: Log(lag_rows=lag)}))
    inner = slice(1, -3)
    np.testing.assert_allclose(beam.spots.x_log_mm[inner], layer.positions_mm[inner, 0], atol=0.1)


def test_a_shift_of_the_beam_shows_as_mean_deviation(tmp_path: Path) -> None:
    beam = interpreted(case_of(tmp_path, line_layer(spots=41)).deliver({1: Log(shift_mm=(1.5, -0.7))}))
    account = beam.account.layers[0]
    assert account.x_mean_mm == pytest.approx(1.5, abs=0.1)
    assert account.y_mean_mm == pytest.approx(-0.7, abs=0.1)
    assert account.x_sd_mm < 0.1


@pytest.mark.parametrize("with_mgn", [True, False])
def test_each_spot_of_a_modulated_scan_gets_its_dose_and_its_place(tmp_path: Path, with_mgn: bool) -> None:
    layer = spot_layer()
    case = case_of(tmp_path, layer, scan_mode="MODULATED").deliver({1: Log(with_mgn=with_mgn)})
    beam = interpreted(case)
    spots = beam.spots
    nearest = np.abs(beam.layers[0].x_mm[:, np.newaxis] - layer.positions_mm[:, 0]).argmin(axis=1)
    given = np.bincount(nearest, weights=beam.layers[0].counts) * MU_PER_COUNT
    np.testing.assert_allclose(spots.mu_log, given, atol=1.5 * 4000 * MU_PER_COUNT)
    np.testing.assert_allclose(spots.x_log_mm, layer.positions_mm[:, 0], atol=0.01)
    np.testing.assert_allclose(spots.y_log_mm, layer.positions_mm[:, 1], atol=0.01)


def test_a_layer_of_one_spot_is_that_spot(tmp_path: Path) -> None:
    layer = PlanLayer(1, 80.0, np.array([[3.0, 4.0]]), np.array([0.02]))
    case = case_of(tmp_path, layer, scan_mode="MODULATED").deliver({1: Log()})
    beam = interpreted(case)
    assert beam.spots.mu_log[0] == pytest.approx(beam.account.delivered_mu)
    assert beam.spots.x_log_mm[0] == pytest.approx(3.0, abs=0.01)


def test_without_an_mgn_the_planned_meterset_stands_for_the_time(tmp_path: Path) -> None:
    layer = line_layer()
    with_file = interpreted(case_of(tmp_path, layer).deliver({1: Log()}))
    without = interpreted(case_of(tmp_path, layer).deliver({1: Log(with_mgn=False)}, at=LATER))
    np.testing.assert_allclose(without.spots.mu_log, with_file.spots.mu_log, rtol=0.02)
    np.testing.assert_allclose(without.spots.x_log_mm, with_file.spots.x_log_mm, atol=0.1)


# ------------------------------------------------------------------------- interrupted and resumed


def test_an_interrupted_delivery_and_its_resumption_make_one_beam(tmp_path: Path) -> None:
    layers = [line_layer(number, 120.0 - number, spots=41) for number in (1, 2, 3)]
    case = case_of(tmp_path, *layers)
    whole = interpreted(case.deliver({1: Log(), 2: Log(), 3: Log()}))
    first = Log(runs=(Run(0.0, 0.5),))
    rest = Log(runs=(Run(0.5, 1.0),))
    broken = case.deliver({1: Log(), 2: first}, at="2026010112010000").deliver({2: rest, 3: Log()}, at=LATER)
    beam = interpreted(broken)
    assert [layer.number for layer in beam.layers] == [1, 2, 3]
    assert beam.account.delivered_mu == pytest.approx(whole.account.delivered_mu)
    resumed = beam.spots.layer == 2
    np.testing.assert_allclose(beam.spots.mu_log[resumed], whole.spots.mu_log[resumed], rtol=0.08, atol=1e-5)
    np.testing.assert_allclose(beam.spots.x_log_mm[resumed], whole.spots.x_log_mm[resumed], atol=0.15)
    assert (np.diff(beam.layers[1].time_ms) > 0).all()


def test_the_deliveries_count_in_the_order_of_their_time(tmp_path: Path) -> None:
    layer = line_layer(spots=41)
    case = case_of(tmp_path, layer).deliver({1: Log(runs=(Run(0.5, 1.0),))}, at=LATER)
    case = case.deliver({1: Log(runs=(Run(0.0, 0.5),))}, at=AT)
    assert interpreted(case).layers[0].x_mm[0] == pytest.approx(layer.positions_mm[0, 0], abs=0.2)


def test_a_layer_that_was_scanned_twice_is_the_sum_of_both(tmp_path: Path) -> None:
    layer = line_layer()
    case = case_of(tmp_path, layer).deliver({1: Log(runs=(Run(0, 0.3),))}).deliver({1: Log()}, at=LATER)
    beam = interpreted(case)
    on = rows_of(layer, Log()) + rows_of(layer, Log(runs=(Run(0, 0.3),)))
    assert beam.account.delivered_mu == pytest.approx(on * 4000 * MU_PER_COUNT)
    once = on * 4000 * MU_PER_COUNT / 1.3 / 12
    assert beam.spots.mu_log[2] == pytest.approx(2 * once, rel=0.05)
    assert beam.spots.mu_log[8] == pytest.approx(once, rel=0.05)


@pytest.mark.parametrize("with_mgn", [True, False])
def test_an_interlock_within_a_layer_scans_it_again_from_its_first_spot(
    tmp_path: Path, with_mgn: bool
) -> None:
    layer = line_layer(spots=41, mu=4100 * 4000 * MU_PER_COUNT)
    log = Log(runs=(Run(0, 0.3), Run(on_clock=False)), with_mgn=with_mgn)
    beam = interpreted(case_of(tmp_path, layer).deliver({1: log}))
    np.testing.assert_allclose(beam.spots.x_log_mm[1:-1], layer.positions_mm[1:-1, 0], atol=0.3)
    assert beam.spots.mu_log[5] == pytest.approx(2 * beam.spots.mu_log[30], rel=0.1)


def test_an_idle_shot_does_not_disturb(tmp_path: Path) -> None:
    layer = line_layer()
    case = case_of(tmp_path, layer)
    plain = interpreted(case.deliver({1: Log()}))
    shot = Log(runs=(Run(0.0, 0.02, counts=0), Run(on_clock=False)))
    with_shot = interpreted(case.deliver({1: shot}, at=LATER))
    assert with_shot.account.delivered_mu == plain.account.delivered_mu
    np.testing.assert_allclose(with_shot.spots.x_log_mm, plain.spots.x_log_mm, atol=0.1)
    np.testing.assert_allclose(with_shot.spots.mu_log, plain.spots.mu_log, rtol=0.05, atol=1e-6)


def test_an_idle_shot_that_never_had_a_position_is_no_dose(tmp_path: Path) -> None:
    layer = line_layer()
    shot = Log(runs=(Run(0.0, 0.05, counts=0),), parked_rows=99)
    case = case_of(tmp_path, layer).deliver({1: shot}).deliver({1: Log()}, at=LATER)
    assert interpreted(case).account.delivered_mu == pytest.approx(
        rows_of(layer, Log()) * 4000 * MU_PER_COUNT
    )


# ---------------------------------------------------------------------------------- what is refused


def test_a_half_written_log_is_cut_off(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log()})
    content = ptn_of(case).read_bytes()
    ptn_of(case).write_bytes(content[: len(content) // 32 * 16])
    with pytest.raises(ValidationError, match="cut off: it ends while the beam is still on") as caught:
        interpreted(case)
    assert (caught.value.beam, caught.value.path) == (2, ptn_of(case))


@pytest.mark.parametrize("cut_rows", [80, 81, 82, 83])
def test_a_log_without_its_tail_is_cut_off(tmp_path: Path, cut_rows: int) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log()})
    ptn_of(case).write_bytes(ptn_of(case).read_bytes()[: -16 * cut_rows])
    with pytest.raises(ValidationError, match="cut off"):
        interpreted(case)


def test_a_beam_that_was_on_for_too_short_is_cut_off(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log(runs=(Run(0, 0.95),))})
    with pytest.raises(ValidationError, match=r"planned are 78\.0 ms"):
        interpreted(case)


def test_a_resumption_that_leaves_a_gap_is_cut_off(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer(spots=41)).deliver({1: Log(runs=(Run(0, 0.3),))})
    with pytest.raises(ValidationError, match="cut off"):
        interpreted(case.deliver({1: Log(runs=(Run(0.5, 1.0),))}, at=LATER))


def test_only_the_last_layer_of_an_interrupted_delivery_may_be_short(tmp_path: Path) -> None:
    layers = [line_layer(1), line_layer(2)]
    case = case_of(tmp_path, *layers).deliver({1: Log(runs=(Run(0, 0.5),)), 2: Log()})
    with pytest.raises(ValidationError, match="layer 1 is cut off"):
        interpreted(case.deliver({1: Log(), 2: Log()}, at=LATER))


def test_a_layer_without_beam_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log(runs=())})
    with pytest.raises(ValidationError, match="no dose with beam on"):
        interpreted(case)


def test_dose_that_never_had_a_position_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log(parked_rows=9999)})
    with pytest.raises(ValidationError, match="never a beam position"):
        interpreted(case)


def test_a_log_of_another_layer_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log(layer_number=7)})
    with pytest.raises(
        ValidationError, match="the log is of layer 7, PlanRange names it for layer 1"
    ) as caught:
        interpreted(case)
    assert (caught.value.beam, caught.value.path) == (2, ptn_of(case))


def test_one_row_of_another_layer_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log()})
    content = bytearray(ptn_of(case).read_bytes())
    content[16 * 500 + 12 : 16 * 500 + 14] = struct.pack(">H", 3)
    ptn_of(case).write_bytes(content)
    with pytest.raises(ValidationError, match="the log is of layer 3"):
        interpreted(case)


@pytest.mark.parametrize(("energy", "fits"), [(100.09, True), (100.11, False), (99.89, False)])
def test_the_energy_must_be_the_plans(tmp_path: Path, energy: float, fits: bool) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log(energy=energy)})
    if fits:
        assert interpreted(case).layers[0].energy_mev == 100.0
    else:
        with pytest.raises(ValidationError, match="planned at 100 MeV"):
            interpreted(case)


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    case = case_of(tmp_path, *(line_layer(number) for number in (1, 2, 3))).deliver({1: Log()})
    with pytest.raises(ValidationError, match="no delivery has layer 2, 3"):
        interpreted(case)


def test_a_layer_too_many_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer(1), line_layer(2)).deliver({1: Log(), 2: Log()})
    shorter = ion_plan(plan_beam([line_layer(1)]))
    manifest = case.manifest().model_copy(update={"layer_count": 1})
    with pytest.raises(ValidationError, match="it logs layer 2, the plan has 1"):
        interpret_beam(case.folder, manifest, shorter, G2)


def test_what_belongs_to_another_case_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log()})
    manifest = case.manifest()
    delivery = manifest.deliveries[0]
    strange = [
        (manifest.model_copy(update={"number": 5}), "no beam with this number"),
        (manifest.model_copy(update={"layer_count": 2}), "the plan has 1 layers, not 2"),
        (
            manifest.model_copy(update={"deliveries": (delivery.model_copy(update={"beam_number": 3}),)}),
            "the delivery is of beam 3",
        ),
        (
            manifest.model_copy(update={"deliveries": (delivery.model_copy(update={"patient_id": "X"}),)}),
            "different patient IDs",
        ),
    ]
    for wrong, message in strange:
        with pytest.raises(ValidationError, match=message):
            interpret_beam(case.folder, wrong, case.plan, G2)
    with pytest.raises(ValidationError, match="the plan is for G2, the calibration set for G1"):
        interpret_beam(case.folder, manifest, case.plan, builtin_calibration("G1"))
    setup = ion_plan(replace(case.plan.beam(2), is_setup=True))
    with pytest.raises(ValidationError, match="is a setup field"):
        interpret_beam(case.folder, manifest, setup, G2)


def test_a_magnet_file_of_another_plan_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log()})
    mgn_of(case).write_bytes(mgn_bytes(line_layer(spots=14)))
    with pytest.raises(ValidationError, match="it has 16 records, the plan's layer 13 spots"):
        interpreted(case)
    layer = line_layer()
    layer.positions_mm[4] += 0.2
    mgn_of(case).write_bytes(mgn_bytes(layer))
    with pytest.raises(ValidationError, match=r"spot 5 is 0.28 mm from the plan's"):
        interpreted(case)


def test_flags_that_flicker_are_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, line_layer()).deliver({1: Log()})
    row = (24580, 32772, 0, 0, 100, 100, 1)
    ptn_of(case).write_bytes(ptn_bytes([(*row, flag) for flag in (IDLE, ON) * 1001]))
    with pytest.raises(ValidationError, match="on and off 1001 times"):
        interpreted(case)


def test_one_damaged_flag_does_not_move_the_rest_of_the_layer(tmp_path: Path) -> None:
    layer = line_layer(spots=41)
    case = case_of(tmp_path, layer).deliver({1: Log()})
    rows = ptn_rows(layer, Log())
    rows[1500] = (*rows[1500][:7], IDLE)
    ptn_of(case).write_bytes(ptn_bytes(rows))
    beam = interpreted(case)
    np.testing.assert_allclose(beam.spots.x_log_mm[1:-1], layer.positions_mm[1:-1, 0], atol=0.3)
    assert beam.account.layers[0].tail_mu == pytest.approx(4000 * MU_PER_COUNT)


def test_paintings_follow_each_other_and_add_up(tmp_path: Path) -> None:
    once = line_layer()
    layer = replace(once, meterset_mu=2 * once.meterset_mu, paintings=2)
    case = case_of(tmp_path, layer).deliver({1: Log()})
    first = ptn_rows(layer, Log(tail_rows=198))
    second = [(*row[:7], (row[7] & 0xFF80) | 2) for row in ptn_rows(layer, Log())]
    ptn_of(case).write_bytes(ptn_bytes(first + second))
    mgn = mgn_bytes(layer)
    records = list(struct.iter_unpack(">IHHHHH", mgn))
    start_us = 60 * len(first)
    again = b"".join(struct.pack(">IHHHHH", record[0] + start_us, *record[1:]) for record in records)
    mgn_of(case).write_bytes(mgn + again)
    beam = interpreted(case)
    assert len(first) * 0.06 > spot_times_ms(layer)[-1]
    np.testing.assert_allclose(beam.spots.x_log_mm[1:-1], layer.positions_mm[1:-1, 0], atol=0.2)
    np.testing.assert_allclose(beam.spots.mu_log[2:-1], beam.spots.mu_log[2], rtol=0.02)
    assert beam.spots.mu_log.sum() == pytest.approx(2 * 4000 * rows_of(layer, Log()) * MU_PER_COUNT)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["ptn", "mgn"]), st.integers(0, 10**6), st.binary(min_size=1, max_size=64), st.booleans()
)
def test_any_damage_gives_a_beam_whose_sums_agree_or_an_error(
    kind: str, at: int, content: bytes, replaces: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        case = case_of(Path(folder), line_layer()).deliver({1: Log()})
        path = {"ptn": ptn_of, "mgn": mgn_of}[kind](case)
        whole = path.read_bytes()
        at %= len(whole)
        path.write_bytes(whole[:at] + content + whole[at + len(content) * replaces :])
        try:
            beam = interpreted(case)
        except ValidationError as error:
            assert error.path == path
        else:
            counts = int(beam.layers[0].counts.sum())
            assert beam.account.delivered_mu == pytest.approx(counts * MU_PER_COUNT)
            assert beam.spots.mu_log.sum() == pytest.approx(beam.account.delivered_mu)
            assert np.isfinite(beam.spots.x_log_mm).all()


# ---------------------------------------------------------------------------------- plan as rows


def test_a_planned_line_is_cut_into_steps_of_a_millimetre_and_keeps_its_meterset() -> None:
    layer = line_layer(mu=0.777)
    rows = planned_layers(plan_beam([layer]), G2)[0]
    assert len(rows.counts) == 12 * 6
    step = np.hypot(np.diff(rows.x_mm), np.diff(rows.y_mm))
    assert step.max() <= 1.0 + 1e-9
    assert abs(int(rows.counts.sum()) - 0.777 / MU_PER_COUNT) <= 1
    assert np.ptp(rows.counts) <= 1
    assert (rows.x_mm[0], rows.y_mm[0]) == (-8.5, -9.0)
    assert (np.diff(rows.time_ms) > 0).all()


def test_planned_spots_are_one_row_each_and_those_without_meterset_none() -> None:
    layer = spot_layer()
    layer.meterset_mu[2] = 0.0
    rows = planned_layers(plan_beam([layer], scan_mode="MODULATED"), G2)[0]
    assert rows.x_mm.tolist() == [-20.0, -10.0, 10.0, 20.0]
    np.testing.assert_allclose(rows.counts, layer.meterset_mu[[0, 1, 3, 4]] / MU_PER_COUNT, atol=1)


def test_plan_and_log_in_the_same_rows_agree_on_the_dose(tmp_path: Path) -> None:
    layer = line_layer(spots=41)
    mu = rows_of(layer, Log()) * 4000 * MU_PER_COUNT
    layer = replace(layer, meterset_mu=layer.meterset_mu * mu / layer.total_mu)
    case = case_of(tmp_path, layer).deliver({1: Log()})
    logged, planned = interpreted(case).layers[0], planned_layers(case.plan.beam(2), G2)[0]
    assert int(logged.counts.sum()) == int(planned.counts.sum())
    for axis in ("x_mm", "y_mm"):
        means = [np.average(getattr(rows, axis), weights=rows.counts) for rows in (logged, planned)]
        assert means[0] == pytest.approx(means[1], abs=0.1)


# ------------------------------------------------------------------------------------- spot tables


def test_a_table_of_spots_comes_back_as_it_was_written(tmp_path: Path) -> None:
    spots = interpreted(case_of(tmp_path, line_layer(), line_layer(2)).deliver({1: Log(), 2: Log()})).spots
    save_spots(tmp_path / "spots.npz", spots)
    again = load_spots(tmp_path / "spots.npz")
    assert [path.name for path in tmp_path.glob("spots*")] == ["spots.npz"]
    for name in ("layer", "x_plan_mm", "y_plan_mm", "x_log_mm", "y_log_mm", "mu_plan", "mu_log"):
        np.testing.assert_array_equal(getattr(again, name), getattr(spots, name))
    assert len(again.layer) == 26


def test_what_is_no_table_of_spots_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spots.npz"
    spots = interpreted(case_of(tmp_path, line_layer()).deliver({1: Log()})).spots
    save_spots(path, replace(spots, mu_log=spots.mu_log[:-1]))
    with pytest.raises(ValidationError, match="differ in length"):
        load_spots(path)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], b"\x93NUMPY", b"\x80\x04."):
        path.write_bytes(content)
        with pytest.raises(ValidationError, match="no table of spots"):
            load_spots(path)
    with pytest.raises(ValidationError):
        load_spots(tmp_path / "missing.npz")
