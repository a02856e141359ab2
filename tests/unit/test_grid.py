"""Where doses stand: construction, resampling, adding up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqi.dose.grid import DoseGrid, checked_grid, resample, same_grid, total
from mqi.errors import ValidationError


def turned(degrees: float, about: int = 2) -> np.ndarray:
    """Axes turned about one of the patient's."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    axes = np.eye(3)
    u, v = [axis for axis in range(3) if axis != about]
    axes[u, u] = axes[v, v] = c
    axes[u, v], axes[v, u] = s, -s
    return axes


def linear(grid: DoseGrid) -> DoseGrid:
    """A dose that grows evenly through the patient: trilinear interpolation reproduces it exactly."""
    return grid.with_values(50 + grid.points_mm() @ np.array([0.3, -0.2, 0.1]))


def grid(shape=(6, 7, 8), origin=(0.0, 0.0, 0.0), spacing=(2.0, 2.5, 3.0), axes=None) -> DoseGrid:
    return checked_grid(np.zeros(shape), origin, spacing, axes)


def test_indices_run_columns_rows_slices():
    points = grid(origin=(10, 20, 30)).points_mm()
    assert points.shape == (6, 7, 8, 3)
    assert points[1, 2, 3].tolist() == [10 + 3 * 2.0, 20 + 2 * 2.5, 30 + 1 * 3.0]


@pytest.mark.parametrize(
    ("defect", "change"),
    [
        ("expected slices x rows x columns", {"values": np.zeros((3, 3))}),
        ("expected slices x rows x columns", {"values": np.zeros((0, 3, 3))}),
        ("is not a point", {"origin_mm": [0, 0]}),
        ("is not a point", {"origin_mm": [0, np.nan, 0]}),
        ("three positive lengths", {"spacing_mm": [1, 0, 1]}),
        ("three positive lengths", {"spacing_mm": [1, -1, 1]}),
        ("three positive lengths", {"spacing_mm": [1, np.inf, 1]}),
        ("three directions", {"axes": np.full((3, 3), np.nan)}),
        ("three directions", {"axes": np.eye(2)}),
        ("perpendicular unit vectors", {"axes": 2 * np.eye(3)}),
        ("perpendicular unit vectors", {"axes": [[1, 0, 0], [0.1, 1, 0], [0, 0, 1]]}),
        ("left-handed", {"axes": np.diag([1, 1, -1])}),
    ],
)
def test_impossible_geometry_is_refused_by_name(defect, change):
    good = {"values": np.zeros((2, 2, 2)), "origin_mm": [0, 0, 0], "spacing_mm": [1, 1, 1], "axes": None}
    with pytest.raises(ValidationError, match=defect):
        checked_grid(**{**good, **change})


def test_values_of_another_shape_do_not_fit_a_grid():
    with pytest.raises(ValueError, match="shape"):
        grid().with_values(np.zeros((1, 1, 1)))


def test_grids_are_the_same_to_a_micrometre():
    assert same_grid(grid(), grid(origin=(5e-4, 0, 0)))
    assert not same_grid(grid(), grid(origin=(5e-2, 0, 0)))
    assert not same_grid(grid(), grid(spacing=(2.001, 2.5, 3.0)))
    assert not same_grid(grid(), grid(axes=turned(0.1)))
    assert not same_grid(grid(), grid(shape=(6, 7, 9)))


def test_resampling_to_the_same_grid_changes_nothing():
    dose = grid().with_values(np.random.default_rng(0).random((6, 7, 8)))
    assert np.array_equal(resample(dose, grid()).values, dose.values)


@settings(max_examples=60, deadline=None)
@given(
    degrees=st.one_of(st.sampled_from([0.0, 90.0, 180.0, 270.0]), st.floats(0, 360)),
    about=st.integers(0, 2),
    shift=st.tuples(*[st.floats(-4, 4)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 4)] * 3),
)
def test_a_linear_dose_is_resampled_exactly_inside_and_to_zero_outside(degrees, about, shift, spacing):
    dose = linear(grid())
    centre = np.array([7.0, 7.5, 7.5])
    axes = turned(degrees, about)
    half = (np.array([9, 6, 4]) - 1) / 2 * spacing
    like = grid((4, 6, 9), centre + np.array(shift) - half @ axes, spacing, axes)
    got = resample(dose, like)
    upper = np.array([14.0, 15.0, 15.0])
    points = like.points_mm()
    inside = ((points > 2e-3) & (points < upper - 2e-3)).all(axis=-1)
    outside = ((points < -2e-3) | (points > upper + 2e-3)).any(axis=-1)
    assert np.abs(got.values - linear(like).values)[inside].max(initial=0) < 1e-2 / 50
    assert not got.values[outside].any()
    assert same_grid(got, like)


@pytest.mark.parametrize("about", [0, 1, 2])
@pytest.mark.parametrize("degrees", [90.0, 180.0, 270.0])
def test_the_quick_way_for_parallel_axes_gives_what_the_general_way_gives(degrees, about):
    rng = np.random.default_rng(1)
    dose = grid().with_values(rng.random((6, 7, 8)))
    parallel = grid((5, 5, 5), (6.9, 7.1, 7.3), (1.7, 0.9, 1.1), turned(degrees, about))
    oblique = grid((5, 5, 5), (6.9, 7.1, 7.3), (1.7, 0.9, 1.1), turned(degrees + 0.02, about))
    difference = np.abs(resample(dose, parallel).values - resample(dose, oblique).values)
    assert np.median(difference) < 2e-3


def test_a_voxel_centre_on_the_edge_is_inside_whatever_the_rounding():
    dose = linear(grid(origin=(0.1, 0.2, 0.3)))
    like = grid(origin=(0.1 + 1e-4, 0.2, 0.3), shape=(6, 7, 8))
    coarse = grid((2, 2, 2), (0.1 - 5e-4, 0.2 + 5e-4, 0.3), (14.0, 15.0, 15.0))
    assert (resample(dose, like).values > 0).all()
    assert np.allclose(resample(dose, coarse).values, linear(coarse).values, atol=1e-3)


def test_a_single_slice_is_a_plane_without_thickness():
    plane = grid(shape=(1, 7, 8)).with_values(np.ones((1, 7, 8)))
    through = resample(plane, grid(shape=(3, 7, 8), origin=(0, 0, -3)))
    assert through.values[1].all()
    assert not through.values[[0, 2]].any()


def test_a_dose_can_be_cut_by_an_oblique_plane():
    axes = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]) @ turned(20)
    plane = grid((1, 4, 5), (3, 4, 3), (1, 1, 1), axes)
    assert np.allclose(resample(linear(grid()), plane).values, linear(plane).values)


def test_doses_add_up():
    one = grid().with_values(np.ones((6, 7, 8)))
    assert (total([one, one, one]).values == 3).all()
    moved = grid(origin=(1, 0, 0)).with_values(np.ones((6, 7, 8)))
    with pytest.raises(ValidationError, match="different grids"):
        total([one, moved])
    assert (total([one, moved], like=grid(shape=(2, 2, 2), origin=(1, 0, 0))).values == 2).all()
    with pytest.raises(ValidationError, match="no dose"):
        total([])
