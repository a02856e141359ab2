"""Claims about the way from a beam's own coordinates to the patient's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi.errors import ValidationError
from mqi.geometry import bev_axes

LEFT, POSTERIOR, SUPERIOR = np.eye(3)  # DICOM patient axes

ANGLES = st.floats(-720, 720)


@pytest.mark.parametrize(
    ("gantry", "couch", "beam_runs"),
    [
        (0, 0, POSTERIOR),  # from above: anterior to posterior
        (90, 0, -LEFT),  # the source stands at the patient's left
        (180, 0, -POSTERIOR),
        (270, 0, LEFT),
        (0, 90, POSTERIOR),  # turning the couch does nothing to a vertical beam
        (360, 360, POSTERIOR),
    ],
)
def test_the_beam_runs_where_iec_61217_says(gantry, couch, beam_runs):
    assert np.array_equal(bev_axes(gantry, couch, 0, "HFS")[2], beam_runs)


def test_a_turned_couch_brings_the_feet_or_the_head_towards_a_lateral_beam():
    # IEC: the couch turns counter-clockwise seen from above; at 90 degrees the head is at -x of the room,
    # away from the source of a gantry at 90 degrees: the beam enters from the feet.
    assert np.allclose(bev_axes(90, 90, 0, "HFS")[2], SUPERIOR)
    assert np.allclose(bev_axes(90, 270, 0, "HFS")[2], -SUPERIOR)


def test_spots_of_an_upright_beam_lie_left_and_superior():
    x_b, y_b, _ = bev_axes(0, 0, 0, "HFS")
    assert np.array_equal(x_b, LEFT)
    assert np.array_equal(y_b, SUPERIOR)


def test_y_stays_along_the_couch_for_every_gantry_angle():
    for gantry in range(0, 360, 15):
        assert np.allclose(bev_axes(gantry, 0, 0, "HFS")[1], SUPERIOR)


@given(gantry=ANGLES, couch=ANGLES)
def test_the_axes_are_orthonormal_and_x_y_against_the_beam_are_right_handed(gantry, couch):
    x_b, y_b, downstream = axes = bev_axes(gantry, couch, 0, "HFS")
    assert np.allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.allclose(np.cross(x_b, y_b), -downstream, atol=1e-12)


@given(gantry=ANGLES, couch=ANGLES)
def test_opposed_beams_run_against_each_other(gantry, couch):
    here, there = bev_axes(gantry, couch, 0, "HFS"), bev_axes(gantry + 180, couch, 0, "HFS")
    assert np.allclose(here[2], -there[2], atol=1e-9)


@pytest.mark.parametrize("position", ["FFS", "HFP", "FFP", "", "hfs"])
def test_another_patient_position_is_refused_by_name(position):
    with pytest.raises(ValidationError, match=position or "not given"):
        bev_axes(0, 0, 0, position)


def test_a_turned_collimator_is_refused_but_a_whole_turn_is_none():
    with pytest.raises(ValidationError, match="90 degrees"):
        bev_axes(0, 0, 90, "HFS")
    assert np.array_equal(bev_axes(0, 0, 360, "HFS"), bev_axes(0, 0, 0, "HFS"))


@pytest.mark.parametrize("angles", [(np.nan, 0, 0), (0, np.inf, 0), (0, 0, np.nan)])
def test_an_angle_that_is_no_number_is_refused(angles):
    with pytest.raises(ValidationError):
        bev_axes(*angles, "HFS")
