"""Claims about the physics of the embedded engine, against sources and integrals of their own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gamma, pbdv

from mqi.dose.grid import DoseGrid
from mqi.engines.medium import read_ct_rsp, read_ct_series, relative_stopping_power, water_box, water_phantom
from mqi.engines.pencil_beam import RANGE_SHIFTER_RSP, SPOT_SIGMA_MM, compute_dose, range_shifter_mm
from mqi.engines.proton_physics import (
    MEV_PER_G_GY,
    depth_dose,
    proton_table,
    protons_per_mu,
    range_g_cm2,
)
from mqi.errors import ValidationError
from mqi.geometry import bev_axes
from mqi.plan import RangeShifter
from tests.unit.engine_cases import MU_PER_COUNT, a_beam, a_layer, some_layers, water, write_ct

# NIST PSTAR, liquid water, CSDA range in g/cm2, typed in anew.
PSTAR = {
    70: 4.080,
    80: 5.184,
    90: 6.398,
    100: 7.718,
    125: 11.46,
    150: 15.77,
    175: 20.62,
    200: 25.96,
    225: 31.74,
}
ELECTRON_MEV, PROTON_MEV = 0.510999, 938.272


def dose_of(layers, medium, beam=None, **changes):
    call = {"patient_position": "HFS", "room": "G2", "mu_per_count": MU_PER_COUNT, "medium": medium}
    return compute_dose(layers, beam=beam or a_beam(), **(call | changes))


def bethe(energy_mev):
    """Mass stopping power of water, MeV cm2/g: Bethe with I = 75 eV, no shell or density correction."""
    tau = energy_mev / PROTON_MEV
    beta2 = 1 - 1 / (1 + tau) ** 2
    most = 2 * ELECTRON_MEV * beta2 * (1 + tau) ** 2
    most /= 1 + 2 * (1 + tau) * ELECTRON_MEV / PROTON_MEV + (ELECTRON_MEV / PROTON_MEV) ** 2
    within = 2 * ELECTRON_MEV * beta2 * (1 + tau) ** 2 * most / 75e-6**2
    return 0.307075 * 0.55508 / beta2 * (0.5 * np.log(within) - beta2)


def bethe_range(energy_mev):
    steps = np.linspace(1.0, energy_mev, 4000)
    return 0.0025 + np.trapezoid(1 / bethe(steps), steps)  # PSTAR: 1 MeV goes 0.00246 g/cm2


def r80_mm(depth_mm, dose):
    top = int(np.argmax(dose))
    below = top + int(np.argmax(dose[top:] < 0.8 * dose[top]))
    step = (dose[below - 1] - 0.8 * dose[top]) / (dose[below - 1] - dose[below])
    return depth_mm[below - 1] + step * (depth_mm[below] - depth_mm[below - 1])


@pytest.mark.parametrize("energy_mev", PSTAR)
def test_the_distal_80_percent_depth_is_pstars_range_within_half_a_millimetre(energy_mev):
    depth_cm = np.arange(0, 40, 0.005)
    found = r80_mm(10 * depth_cm, depth_dose(depth_cm, float(energy_mev)))
    assert found == pytest.approx(10 * PSTAR[energy_mev], abs=0.5)


def test_energies_between_the_tables_ones_have_pstars_range_too():
    assert range_g_cm2(230.0) == pytest.approx(32.95, abs=0.02)
    assert range_g_cm2(110.0) == pytest.approx(9.14, abs=0.03)


@pytest.mark.parametrize("energy_mev", [70.0, 120.0, 160.0, 230.0])
def test_the_range_is_that_of_an_integral_of_the_bethe_formula(energy_mev):
    assert range_g_cm2(energy_mev) == pytest.approx(bethe_range(energy_mev), rel=0.01)


@pytest.mark.parametrize("energy_mev", [70.0, 150.0, 230.0])
def test_the_plateau_is_the_bethe_stopping_power_of_the_protons_that_are_left(energy_mev):
    energies = np.linspace(1.0, energy_mev, 4000)
    path = np.concatenate([[0], np.cumsum(np.diff(energies) / bethe((energies[1:] + energies[:-1]) / 2))])
    depth = np.array([0.05, 0.3, 0.6]) * range_g_cm2(energy_mev)
    residual = np.interp(path[-1] - depth, path, energies)
    whole = 1 + 0.012 * range_g_cm2(energy_mev)
    left = (1 + 0.012 * (range_g_cm2(energy_mev) - depth)) / whole
    expected = left * bethe(residual) + 0.6 * 0.012 / whole * residual
    assert depth_dose(depth, energy_mev) == pytest.approx(expected, rel=0.03)


def test_the_curve_is_the_one_that_bortfeld_printed_for_water():
    # Equations (28) and (29) of the paper, with their numbers for p = 1.77, alpha = 0.0022 and epsilon 0.
    energy_mev, spread = 150.0, 0.007
    range_cm = range_g_cm2(energy_mev)
    sigma = np.hypot(0.012 * range_cm**0.935, spread * 1.77 * range_cm)
    plateau = np.array([1.0, 5.0, 9.0, 12.0])
    printed = 17.93 * (range_cm - plateau) ** -0.435 + 0.444 * (range_cm - plateau) ** 0.565
    assert depth_dose(plateau, energy_mev, spread) == pytest.approx(
        printed / (1 + 0.012 * range_cm), rel=0.01
    )
    peak = np.array([15.0, 15.5, 15.77, 16.0])
    zeta = (range_cm - peak) / sigma
    printed = 11.26 / sigma * pbdv(-0.565, -zeta)[0] + 0.157 * pbdv(-1.565, -zeta)[0]
    printed *= np.exp(-(zeta**2) / 4) * sigma**0.565 / (1 + 0.012 * range_cm)
    assert depth_dose(peak, energy_mev, spread) == pytest.approx(printed, rel=0.01)
    assert gamma(1 / 1.77) * 17.93 / np.sqrt(2 * np.pi) == pytest.approx(11.26, rel=0.01)  # the paper's own


@pytest.mark.parametrize("energy_mev", [29.9, 250.1, 0.0, np.nan])
def test_an_energy_outside_the_tables_is_refused(energy_mev):
    with pytest.raises(ValidationError, match="MeV"):
        range_g_cm2(energy_mev)


def test_protons_per_mu_rise_with_energy_as_the_sites_tables_do_and_stay_clinical():
    assert protons_per_mu(230.0) / protons_per_mu(70.0) == pytest.approx(2.89392498 * 0.85242327)
    assert protons_per_mu(60.0) == protons_per_mu(70.0)
    assert all(1e8 < protons_per_mu(float(energy)) < 1e9 for energy in range(70, 231))


def highland_sigma_mm(energy_mev, depth_mm):
    """Lateral spread by the generalised Highland formula (Gottschalk 1993), integrated here by itself."""
    range_cm, depth = range_g_cm2(energy_mev), depth_mm / 10
    at = np.linspace(0, min(depth, 0.999 * range_cm), 4000)
    kinetic = energy_mev * (1 - at / range_cm) ** (1 / 1.77)
    pv = kinetic * (kinetic + 2 * PROTON_MEV) / (kinetic + PROTON_MEV)
    integral = np.trapezoid(((depth - at) / pv) ** 2, at)
    return 10 * 14.1 * (1 + np.log10(depth / 36.08) / 9) * np.sqrt(integral / 36.08)


def width_mm(values, spacing_mm):
    place = (np.arange(len(values)) - (len(values) - 1) / 2) * spacing_mm
    mean = np.average(place, weights=values)
    return float(np.sqrt(np.average((place - mean) ** 2, weights=values)))


def test_a_spot_widens_with_depth_as_highland_says():
    grid = water((81, 170, 81), 1.0, (0.0, 85.0, 0.0))  # the beam enters at y = 0, the isocentre
    dose = dose_of([a_layer(energy_mev=150.0)], grid).values
    for depth_mm in (50, 100, 145):
        slab = dose[:, depth_mm]
        for axis, sigma0 in ((0, SPOT_SIGMA_MM[0]), (1, SPOT_SIGMA_MM[1])):
            found = width_mm(slab.sum(axis=axis), 1.0)
            expected = np.hypot(sigma0, highland_sigma_mm(150.0, depth_mm + 0.5))
            assert found == pytest.approx(expected, rel=0.02)


def test_sigma_scale_widens_the_spot_in_air():
    grid = water((60, 10, 60), 2.0, (0.0, 10.0, 0.0))
    narrow, wide = (dose_of([a_layer()], grid, sigma_scale=scale).values[:, 0] for scale in (1.0, 1.5))
    assert width_mm(wide.sum(axis=0), 2.0) / width_mm(narrow.sum(axis=0), 2.0) == pytest.approx(1.5, rel=0.02)


@settings(max_examples=15, deadline=None)
@given(x=st.floats(-20, 20), y=st.floats(-20, 20))
def test_a_spot_stands_where_its_row_says_and_as_wide_wherever_it_stands(x, y):
    grid = water((90, 4, 90), 1.5)
    slab = dose_of([a_layer(x_mm=(x,), y_mm=(y,))], grid).values.sum(axis=1)
    place = (np.arange(90) - 44.5) * 1.5
    assert np.average(place, weights=slab.sum(axis=0)) == pytest.approx(x, abs=0.05)
    assert np.average(place, weights=slab.sum(axis=1)) == pytest.approx(y, abs=0.05)
    assert width_mm(slab.sum(axis=0), 1.5) == pytest.approx(SPOT_SIGMA_MM[0], rel=0.03)


def test_spots_diverge_from_the_two_virtual_sources():
    beam = a_beam(sad_mm=(1000.0, 2000.0))
    grid = water((100, 60, 100), 2.0)  # y from -60 to 60
    dose = dose_of([a_layer(energy_mev=170.0, x_mm=(40.0,), y_mm=(40.0,))], grid, beam).values
    place = (np.arange(100) - 49.5) * 2.0
    for row, depth in ((2, -55.0), (57, 55.0)):
        slab = dose[:, row]
        assert np.average(place, weights=slab.sum(axis=0)) == pytest.approx(40 * (1 + depth / 1000), abs=0.1)
        assert np.average(place, weights=slab.sum(axis=1)) == pytest.approx(40 * (1 + depth / 2000), abs=0.1)


@pytest.mark.parametrize("angles", [(0, 0), (90, 0), (45, 0), (37, 20)])
def test_the_energy_of_all_protons_but_the_nuclear_part_is_deposited(angles):
    gantry, couch = angles
    layers = some_layers(4, 300, 70.0)
    grid = water((70, 70, 70), 2.0)
    dose = dose_of(layers, grid, a_beam(gantry_angle_deg=float(gantry), couch_angle_deg=float(couch)))
    deposited_mev = dose.values.sum() * 0.2**3 / MEV_PER_G_GY  # 2 mm voxels of 1 g/cm3
    expected = 0.0
    for layer in layers:
        range_cm = range_g_cm2(layer.energy_mev)
        depth = np.linspace(0, range_cm, 20001)
        kinetic = layer.energy_mev * (1 - depth / range_cm) ** (1 / 1.77)
        left = (1 + 0.012 * (range_cm - depth)) / (1 + 0.012 * range_cm)
        lost = 0.4 * np.trapezoid(kinetic, depth) * 0.012 / (1 + 0.012 * range_cm)  # leaves the water
        assert left[0] == 1
        expected += (
            layer.counts.sum() * MU_PER_COUNT * protons_per_mu(layer.energy_mev) * (layer.energy_mev - lost)
        )
    assert deposited_mev == pytest.approx(expected, rel=0.005)


def test_one_mu_over_a_broad_field_gives_the_dose_of_its_fluence():
    # 1 MU of 150 MeV on 80 x 80 mm: in the middle at 30 mm depth, fluence times Bethe's stopping power.
    x, y = np.meshgrid(np.arange(-39, 40, 2.0), np.arange(-39, 40, 2.0))
    counts = round(1 / MU_PER_COUNT / x.size)
    grid = water((30, 20, 30), 2.0, (0.0, 30.0, 0.0))  # from y = 10 to 50; the isocentre is in air
    layer = a_layer(energy_mev=150.0, x_mm=x.ravel(), y_mm=y.ravel(), counts=counts)
    beam = a_beam(sad_mm=(1e6, 1e6), isocentre_mm=(0.0, 10.0, 0.0))
    dose = dose_of([layer], grid, beam).values[14:16, 15, 14:16].mean()  # y = 41: 31 mm deep
    residual = (range_g_cm2(150.0) - 3.1) / range_g_cm2(150.0)
    fluence = protons_per_mu(150.0) / 64.0  # per cm2
    left = (1 + 0.012 * residual * range_g_cm2(150.0)) / (1 + 0.012 * range_g_cm2(150.0))
    local = 0.6 * 0.012 / (1 + 0.012 * range_g_cm2(150.0)) * 135
    expected = fluence * (left * bethe(150.0 * residual ** (1 / 1.77)) + local) * MEV_PER_G_GY
    assert dose == pytest.approx(expected, rel=0.02)


def test_the_sum_of_two_halves_is_the_whole():
    layers = some_layers(2, 100)
    grid = water((40, 60, 40), 2.0)
    whole = dose_of(layers, grid).values
    halves = [dose_of([layer], grid).values for layer in layers]
    assert np.allclose(halves[0] + halves[1], whole, rtol=1e-3, atol=1e-4 * whole.max())


def _lump(grid: DoseGrid) -> DoseGrid:
    """Bone in one quarter of the water, so that no symmetry hides a mistake."""
    values = grid.values.copy()
    values[:20, 10:30, 30:] = 1.6
    return grid.with_values(values)


@pytest.mark.parametrize(("gantry", "couch"), [(90.0, 0.0), (37.0, 0.0), (215.0, 20.0), (300.0, 340.0)])
def test_turning_beam_and_phantom_together_turns_the_dose(gantry, couch):
    layers, centre = some_layers(3, 60), np.array([7.0, -3.0, 11.0])

    def turned(g, c):
        x_b, y_b, downstream = bev_axes(g, c, 0, "HFS")
        grid = _lump(water((50, 50, 60), 2.0, centre, np.stack([x_b, downstream, -y_b])))
        beam = a_beam(gantry_angle_deg=g, couch_angle_deg=c, isocentre_mm=tuple(centre))
        return dose_of(layers, grid, beam).values

    upright = turned(0.0, 0.0)
    assert np.allclose(turned(gantry, couch), upright, rtol=1e-6, atol=1e-9 * upright.max())


@pytest.mark.parametrize(("gantry", "axis", "sign"), [(0, 1, 1), (90, 2, -1), (180, 1, -1), (270, 2, 1)])
def test_the_beam_stops_on_the_far_side_from_its_source(gantry, axis, sign):
    # 100 MeV stop 77 mm behind the surface, which is 60 mm before the isocentre: at +17 mm downstream.
    dose = dose_of(
        [a_layer(energy_mev=100.0)], water((120, 120, 120), 1.0), a_beam(gantry_angle_deg=float(gantry))
    )
    profile = dose.values.sum(axis=tuple({0, 1, 2} - {axis}))
    place = (np.arange(120) - 59.5) * sign
    order = np.argsort(place)
    assert r80_mm(place[order], profile[order]) == pytest.approx(17.2, abs=0.5)


def test_bone_shortens_and_air_lengthens_the_range():
    grid = water((30, 150, 30), 1.0)
    found = []
    for rsp in (1.0, 1.6, 0.001):
        values = grid.values.copy()
        values[:, 20:30] = rsp
        found.append(
            r80_mm(
                np.arange(150.0),
                dose_of([a_layer(energy_mev=100.0)], grid.with_values(values)).values[15, :, 15],
            )
        )
    assert found[0] - found[1] == pytest.approx(6.0, abs=0.4)
    assert found[2] - found[0] == pytest.approx(10.0, abs=0.4)


@pytest.mark.parametrize(
    ("room", "shifter", "thickness_mm"), [("G1", "SNOUT_DEG_S", 41.0), ("G2", "SNOUT_DEG_B", 39.37)]
)
def test_a_range_shifter_takes_its_water_equivalent_thickness_off_the_range(room, shifter, thickness_mm):
    beam = a_beam(range_shifters=(RangeShifter(1, shifter),))
    assert range_shifter_mm(beam, room) == thickness_mm
    grid = water((90, 180, 90), 1.0, (0.0, 0.0, 0.0))
    layer = a_layer(energy_mev=150.0)
    without, shifted = (dose_of([layer], grid, each, room=room).values for each in (a_beam(), beam))
    depth = np.arange(180.0)
    moved = r80_mm(depth, without.sum(axis=(0, 2))) - r80_mm(depth, shifted.sum(axis=(0, 2)))
    assert moved == pytest.approx(thickness_mm * RANGE_SHIFTER_RSP, abs=0.3)
    # What is scattered in the shifter flies 250 - 90 mm of air before the water.
    assert width_mm(shifted[:, 2].sum(axis=0), 1.0) > 1.2 * width_mm(without[:, 2].sum(axis=0), 1.0)


def test_a_snout_farther_away_widens_the_spots_behind_a_range_shifter():
    grid = water((120, 10, 120), 2.0)
    shifter = (RangeShifter(1, "SNOUT_DEG_B"),)
    near, far = (
        width_mm(
            dose_of([a_layer()], grid, a_beam(range_shifters=shifter, snout_position_mm=snout)).values.sum(
                axis=(0, 1)
            ),
            2.0,
        )
        for snout in (60.0, 400.0)
    )
    assert far > near + 2


def test_an_unknown_range_shifter_or_room_is_refused_by_name():
    beam = a_beam(range_shifters=(RangeShifter(1, "SNOUT_DEG_S"),))
    with pytest.raises(ValidationError, match="SNOUT_DEG_S"):
        range_shifter_mm(beam, "G2")
    with pytest.raises(ValidationError, match="G3"):
        range_shifter_mm(beam, "G3")


def test_ct_numbers_of_water_and_air_are_water_and_air():
    assert relative_stopping_power(np.array([-2000.0, -1000.0, 0.0, 200.0, 5000.0])) == pytest.approx(
        [0.001, 0.001, 1.0, 1.2, 2.53061]
    )


def test_water_as_ct_and_as_phantom_give_one_dose(tmp_path):
    files = write_ct(tmp_path, (30, 30, 30), 4.0)
    beam, layers = a_beam(gantry_angle_deg=90.0), some_layers(2, 30)
    from_ct = dose_of(layers, None, beam, ct_files=files)
    again = dose_of(layers, read_ct_rsp(read_ct_series(files)), beam)
    assert np.array_equal(from_ct.values, again.values)
    phantom = water_phantom(beam, "HFS", count=(30, 30, 30), unit_mm=(4, 4, 4), position_mm=(-60, -60, -60))
    boxed = dose_of(layers, water_box(phantom.box), beam, score=phantom.score)
    # The phantom's axes: i = x_b = +z... of the patient, k against the beam.
    points = (boxed.points_mm() - from_ct.origin_mm) / 4.0
    i, j, k = np.moveaxis(np.rint(points).astype(int), -1, 0)
    assert np.abs(points - np.rint(points)).max() < 1e-9
    assert np.allclose(boxed.values, from_ct.values[k, j, i], rtol=1e-9, atol=1e-9 * boxed.values.max())


def test_the_two_centimetre_slice_is_the_phantoms_dose_at_its_depth():
    beam, layers = a_beam(), some_layers(2, 30, 120.0)
    place = {"count": (40, 40, 100), "unit_mm": (2, 2, 2), "position_mm": (-40, -40, -180)}
    whole = water_phantom(beam, "HFS", **place)
    slice_ = water_phantom(beam, "HFS", **place, two_centimetre_mode=True)
    assert slice_.score.shape == (1, 400, 400)
    assert slice_.score.axes[2] == (0.0, -1.0, 0.0)
    deep = dose_of(layers, water_box(whole.box), beam, score=whole.score).values
    flat = dose_of(layers, water_box(slice_.box), beam, score=slice_.score).values[0]
    middle = flat[160:240, 160:240].reshape(40, 2, 40, 2).mean(axis=(1, 3))
    # Slices 89 and 90 of the phantom meet in the middle of the one slice, at z = 0.
    expected = (deep[89] + deep[90]) / 2
    assert np.allclose(middle, expected, rtol=0.03, atol=0.01 * expected.max())


@pytest.mark.parametrize(
    ("layers", "changes", "words"),
    [
        ([], {}, "nothing to compute"),
        ([a_layer(counts=(0,))], {}, "nothing to compute"),
        ([a_layer(counts=(-1,))], {}, "negative"),
        ([a_layer(x_mm=(501.0,))], {}, "beyond"),
        ([a_layer(y_mm=(np.nan,))], {}, "beyond"),
        ([a_layer(energy_mev=20.0)], {}, "20 MeV"),
        ([a_layer()], {"mu_per_count": 0.0}, "MU per count"),
        ([a_layer()], {"mu_per_count": np.nan}, "MU per count"),
        ([a_layer()], {"medium": None}, "either"),
        ([a_layer()], {"beam": a_beam(sad_mm=(0.0, 0.0))}, "source-axis"),
        ([a_layer()], {"beam": a_beam(isocentre_mm=(0.0, 5000.0, 0.0))}, "does not pass"),
        ([a_layer()], {"patient_position": "FFS"}, "FFS"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_its_reason(layers, changes, words):
    with pytest.raises(ValidationError, match=words):
        dose_of(layers, **({"medium": water((10, 10, 10), 4.0)} | changes))


def test_a_beam_beside_the_patient_gives_no_dose_there():
    beam = a_beam(isocentre_mm=(400.0, 0.0, 0.0))
    assert dose_of([a_layer()], water((20, 20, 20), 4.0), beam).values.max() == 0.0


def test_a_layer_that_ends_before_the_wanted_slice_adds_nothing():
    beam = a_beam()
    phantom = water_phantom(
        beam, "HFS", count=(9, 9, 9), unit_mm=(2, 2, 2), position_mm=(0, 0, 0), two_centimetre_mode=True
    )
    both = [a_layer(1, 120.0), a_layer(2, 35.0)]  # 35 MeV end at 12 mm
    deep, all_ = (
        dose_of(rows, water_box(phantom.box), beam, score=phantom.score).values for rows in (both[:1], both)
    )
    assert np.array_equal(deep, all_)


def test_the_table_holds_its_ends():
    table = proton_table(100.0)
    assert table.at(table.energy, np.array([-1.0, 50.0])) == pytest.approx([0.0, table.energy[-1]])
    assert table.at(table.dose, np.array([50.0])) == pytest.approx([0.0], abs=1e-6)
