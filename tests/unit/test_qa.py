import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError as BadCriteria

from mqi.case import DoseSource, Verdict
from mqi.dose.gamma import GammaCriteria, GammaResult
from mqi.errors import ValidationError
from mqi.log.account import BeamAccount, LayerAccount
from mqi.qa import (
    PLANNING_SYSTEM,
    SAME_ENGINE,
    GammaFinding,
    MeasureKind,
    QaCriteria,
    QaVerdict,
    gamma_finding,
    judge_beam,
    judge_case,
    layer_verdicts,
    measure_beam,
)

CRITERIA = QaCriteria()
SEVERITY = [Verdict.PASS, Verdict.ACTION, Verdict.NOT_EVALUABLE, Verdict.FAIL]


def layer(number=1, planned=2.0, **changes):
    values = {
        "number": number,
        "energy_mev": 150.0 - number,
        "samples": 5000,
        "planned_mu": planned,
        "delivered_mu": planned,
        "parked_mu": 0.001,
        "transition_mu": 0.0004,
        "tail_mu": 0.002,
        "idle_mu": 0.003,
        "monitor2_mu": planned * 0.999,
        "spots": 200,
        "x_mean_mm": 0.03,
        "x_sd_mm": 0.12,
        "y_mean_mm": -0.02,
        "y_sd_mm": 0.12,
        "position_max_mm": 0.6,
        "spot_mu_mean": 0.0,
        "spot_mu_sd": 0.0001,
        "spot_mu_max": 0.001,
    }
    return LayerAccount(**(values | changes))


def account(*layers, number=2, name="1G180:TX", source=DoseSource.LOG):
    return BeamAccount(
        beam_number=number,
        beam_name=name,
        source=source,
        calibration="G2",
        calibration_sha256="ab" * 32,
        layers=layers or tuple(layer(n) for n in range(1, 21)),
    )


def finding(rate=99.2, against=SAME_ENGINE, points=40_000, **changes):
    values = {
        "against": against,
        "pass_rate_percent": rate,
        "evaluated_points": points,
        "mean": None if rate is None else 0.3,
        "maximum": None if rate is None else 1.1,
        "reference_max_gy": 2.0,
        "evaluated_max_gy": 2.01,
        "dose_percent": 3.0,
        "distance_mm": 2.0,
        "threshold_percent": 10.0,
        "local": False,
        "interpolation": 20,
    }
    return GammaFinding(**(values | changes))


def judged(*layers, rate=99.2, **changes):
    return judge_beam(account(*layers, **changes), [finding(rate)], CRITERIA)


def scaled(factor, count=20):
    return tuple(layer(n, delivered_mu=2.0 * factor) for n in range(1, count + 1))


def test_a_good_beam_passes_and_gives_no_reason():
    beam = judged()
    assert (beam.verdict, beam.reasons) == (Verdict.PASS, ())


def test_three_percent_more_mu_on_one_beam_fails_that_beam_only():
    good, more = judged(number=2), judged(*scaled(1.03), number=3, name="2G225:TX")
    case = judge_case([good, more], [finding()], CRITERIA)
    assert [beam.verdict for beam in case.beams] == [Verdict.PASS, Verdict.FAIL]
    assert case.verdict is Verdict.FAIL
    assert "Beam 3 (2G225:TX): Beam meterset +3.00 %" in case.reasons[0]
    assert "action limit 2 %" in case.reasons[0]
    assert not any("Beam 2" in reason for reason in case.reasons)


def test_two_millimetres_on_one_layer_fail_that_beam_only_and_name_the_layer():
    layers = [layer(n, x_mean_mm=2.0, position_max_mm=2.6) if n == 12 else layer(n) for n in range(1, 21)]
    good, off = judged(number=2), judged(*layers, number=3)
    case = judge_case([good, off], [], CRITERIA)
    assert [beam.verdict for beam in case.beams] == [Verdict.PASS, Verdict.FAIL]
    assert off.reasons == ("Layer 12 (138.0 MeV): spots +2.00 mm off in x on average; action limit 1.5 mm",)


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [
        (100.0, Verdict.PASS),
        (95.0, Verdict.PASS),
        (94.99, Verdict.ACTION),
        (90.0, Verdict.ACTION),
        (89.99, Verdict.FAIL),
        (0.0, Verdict.FAIL),
        (None, Verdict.NOT_EVALUABLE),
        (math.nan, Verdict.NOT_EVALUABLE),
    ],
)
def test_gamma_pass_rate_is_graded_by_tg_218(rate, verdict):
    beam = judged(rate=rate)
    assert beam.verdict is verdict
    assert bool(beam.reasons) is (verdict is not Verdict.PASS)


def test_nothing_above_the_threshold_is_never_a_pass():
    for gamma in (finding(None, points=0), finding(100.0, points=0)):
        beam = judge_beam(account(), [gamma], CRITERIA)
        assert beam.verdict is Verdict.NOT_EVALUABLE
        assert "no point lies above the threshold" in beam.reasons[0]


def test_a_beam_that_was_not_compared_is_never_a_pass():
    for gammas in ([], [finding(against=PLANNING_SYSTEM)]):
        beam = judge_beam(account(), gammas, CRITERIA)
        assert beam.verdict is Verdict.NOT_EVALUABLE
        assert "was not compared" in beam.reasons[0]


def test_a_gamma_of_other_criteria_than_asked_for_is_never_a_pass():
    for change in ({"dose_percent": 5.0}, {"local": True}, {"interpolation": 5}, {"threshold_percent": 50.0}):
        beam = judge_beam(account(), [finding(100.0, **change)], CRITERIA)
        assert beam.verdict is Verdict.NOT_EVALUABLE


def test_the_planning_system_decides_too_where_its_dose_is_there():
    beam = judge_beam(account(), [finding(), finding(88.0, PLANNING_SYSTEM)], CRITERIA)
    assert beam.verdict is Verdict.FAIL
    assert "against the planning system: 88.0 % of 40\u00a0000 points" in beam.reasons[0]
    assert not judge_case([beam], [], CRITERIA).not_evaluated
    alone = judge_case([judged(number=2), judged(number=3)], [], CRITERIA)
    assert alone.not_evaluated == (
        "Beams 2-3: the comparison with the planning system, which sent no dose in the same medium",
        "The sum of all beams was not compared",
    )


def test_a_case_with_a_beam_without_a_dose_is_never_a_pass():
    case = judge_case([judged()], [finding()], CRITERIA, {3: "the engine was killed"})
    assert case.verdict is Verdict.NOT_EVALUABLE
    assert case.reasons == ("Beam 3: no dose was computed: the engine was killed",)
    assert case.failed_beams[0].beam_number == 3
    assert "Beam 3: nothing, it has no dose" in case.not_evaluated
    assert case.beams[0].verdict is Verdict.PASS


def test_a_case_without_beams_is_never_a_pass():
    assert judge_case([], [], CRITERIA).verdict is Verdict.NOT_EVALUABLE
    assert judge_case([], [finding()], CRITERIA).verdict is Verdict.NOT_EVALUABLE
    assert judge_case([], [], CRITERIA).reasons == ("No beam was judged",)


def test_the_sum_of_the_beams_decides_too():
    case = judge_case([judged()], [finding(92.0)], CRITERIA)
    assert case.verdict is Verdict.ACTION
    assert case.reasons[0].startswith("All beams together: Gamma 3 %/2 mm")


def test_a_beam_judged_twice_is_refused():
    for failed in ({}, {2: "also failed"}):
        with pytest.raises(ValidationError, match="beam 2: the beam is to be judged twice"):
            judge_case([judged()] * (1 if failed else 2), [], CRITERIA, failed)


def test_the_account_of_a_plan_is_not_judged_for_it_agrees_with_itself():
    with pytest.raises(ValidationError, match="that of the plan"):
        judge_beam(account(source=DoseSource.PLAN), [finding()], CRITERIA)


def test_a_small_layer_does_not_alarm_for_what_is_tiny_in_mu():
    small = layer(1, planned=0.1, delivered_mu=0.109)
    assert layer_verdicts(small, CRITERIA)[MeasureKind.LAYER_MU] is Verdict.PASS
    bigger = layer(1, planned=0.1, delivered_mu=0.112)
    assert layer_verdicts(bigger, CRITERIA)[MeasureKind.LAYER_MU] is Verdict.FAIL


def test_limits_are_inclusive_whatever_the_last_bits_of_a_float_say():
    assert judged(*scaled(1.01)).verdict is Verdict.PASS
    assert judged(*scaled(1.02)).verdict is Verdict.ACTION
    exactly = layer(1, x_mean_mm=1.0, y_sd_mm=1.5, position_max_mm=3.0)
    assert layer_verdicts(exactly, CRITERIA)[MeasureKind.POSITION] is Verdict.PASS


def test_dose_where_none_was_planned_fails():
    layers = [*scaled(1.0), layer(21, planned=0.0, delivered_mu=0.05)]
    beam = judged(*layers)
    assert beam.verdict is Verdict.FAIL
    assert "Layer 21 (129.0 MeV): 0.0500 MU delivered where none was planned" in beam.reasons[0]


def test_an_empty_layer_does_not_alarm():
    empty = layer(21, planned=0.0, spots=0, x_mean_mm=math.nan, position_max_mm=math.nan)
    assert judged(*scaled(1.0), empty).verdict is Verdict.PASS


def test_a_layer_whose_spots_are_not_known_is_never_a_pass():
    for change in ({"spots": 0}, {"y_sd_mm": math.nan}):
        beam = judged(*scaled(1.0), layer(21, **change))
        assert beam.verdict is Verdict.NOT_EVALUABLE
        assert beam.reasons[0].startswith("Layer 21 (129.0 MeV): spots")
        assert "not known" in beam.reasons[0]


def test_a_log_without_layers_or_a_plan_without_meterset_is_never_a_pass():
    bare = account().model_copy(update={"layers": ()})
    beam = judge_beam(bare, [finding()], CRITERIA)
    assert beam.verdict is Verdict.NOT_EVALUABLE
    assert {"The log has no layer", "The plan has no meterset for this beam"} <= set(beam.reasons)


def test_many_layers_are_said_in_one_sentence_and_the_worst_reason_first():
    layers = [layer(n, y_mean_mm=-1.2 if n in (3, 4, 5, 9) else 0.0) for n in range(1, 21)]
    layers[8] = layer(9, y_mean_mm=-1.4)
    layers[0] = layer(1, position_max_mm=9.0)
    beam = judged(*layers)
    assert beam.reasons == (
        "Layer 1 (149.0 MeV): a spot 9.00 mm away from its planned place; action limit 4.5 mm",
        "4 layers (3-5, 9): spots up to -1.40 mm off in y on average, "
        "worst in layer 9 (141.0 MeV); tolerance 1 mm",
    )


def test_a_stricter_site_fails_whatever_is_beyond_tolerance():
    strict = QaCriteria(position_action_factor=1.0)
    beam = judge_beam(account(layer(x_mean_mm=1.2)), [finding()], strict)
    assert beam.verdict is Verdict.FAIL


def test_criteria_that_contradict_themselves_are_refused():
    for wrong in (
        {"action_percent": 96.0},
        {"layer_mu_tolerance_percent": 6.0},
        {"beam_mu_action_percent": 0.5},
        {"gamma_distance_mm": 0.0},
        {"position_mean_mm": math.nan},
        {"unknown": 1},
    ):
        with pytest.raises(BadCriteria):
            QaCriteria(**wrong)


def test_every_criterion_says_what_it_is():
    assert all(field.description for field in QaCriteria.model_fields.values())
    assert CRITERIA.gamma.model_dump(exclude={"maximum"}) == {
        "dose_percent": 3.0,
        "distance_mm": 2.0,
        "threshold_percent": 10.0,
        "local": False,
        "interpolation": 20,
    }


def test_a_verdict_written_as_json_reads_back_the_same():
    empty = GammaResult(None, 0, 0, None, None, None, 0.0, GammaCriteria())
    filled = GammaResult(None, 100, 99, 99.0, 0.4, 1.2, 2.0, GammaCriteria())
    beam = judge_beam(account(), [gamma_finding(SAME_ENGINE, filled, 2.02)], CRITERIA)
    case = judge_case([beam], [gamma_finding(PLANNING_SYSTEM, empty, 0.0)], CRITERIA, {7: "why"})
    assert QaVerdict.model_validate_json(case.model_dump_json()) == case
    assert case.plan_gammas[0].pass_rate_percent is None


def test_each_kind_of_measure_stands_once():
    kinds = [m.kind for m in measure_beam(account(), [finding(), finding(against=PLANNING_SYSTEM)], CRITERIA)]
    assert sorted(kinds) == sorted(MeasureKind)


FIGURES = ("x_mean_mm", "y_mean_mm", "x_sd_mm", "y_sd_mm", "position_max_mm")


@settings(max_examples=150, deadline=None)
@given(
    rate=st.floats(0, 100),
    drop=st.floats(0, 100),
    size=st.floats(0, 8),
    more=st.floats(0, 5),
    name=st.sampled_from(FIGURES),
    delivered=st.floats(1.0, 3.0),
    growth=st.floats(0, 1.0),
)
def test_worse_numbers_never_give_a_better_verdict(rate, drop, size, more, name, delivered, growth):
    away = growth if delivered >= 2.0 else -growth

    def verdict(rate, size, delivered):
        layers = [layer(n) for n in range(1, 4)] + [layer(4, delivered_mu=delivered, **{name: size})]
        beam = judge_beam(account(*layers), [finding(rate)], CRITERIA)
        assert bool(beam.reasons) is (beam.verdict is not Verdict.PASS)
        return judge_case([beam], [], CRITERIA).verdict

    before = verdict(rate, size, delivered)
    after = verdict(max(0.0, rate - drop), size + more, max(0.0, delivered + away))
    assert SEVERITY.index(after) >= SEVERITY.index(before)


@settings(max_examples=60, deadline=None)
@given(rates=st.lists(st.one_of(st.none(), st.floats(0, 100)), min_size=1, max_size=4), failed=st.booleans())
def test_a_case_is_never_better_than_its_worst_beam(rates, failed):
    beams = [judged(number=n, rate=rate) for n, rate in enumerate(rates)]
    case = judge_case(beams, [], CRITERIA, {99: "no"} if failed else None)
    assert SEVERITY.index(case.verdict) >= max(SEVERITY.index(beam.verdict) for beam in beams)
    if failed:
        assert case.verdict is not Verdict.PASS
