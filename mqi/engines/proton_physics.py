"""Protons in water: range, depth dose, multiple scattering, and how many of them a monitor unit is.

Depth dose: T. Bortfeld, "An analytical approximation of the Bragg curve for therapeutic proton beams",
Med. Phys. 24 (1997) 2024. Its range-energy constant alpha is set for each energy so that the range is that
of NIST PSTAR. Scattering: the differential Highland scattering power of B. Gottschalk, "On the scattering
power of radiotherapy protons", Med. Phys. 37 (2010) 352.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.special import gamma, pbdv

from mqi.errors import ValidationError

__all__ = [
    "LEAST_ENERGY_MEV",
    "MEV_PER_G_GY",
    "MOST_ENERGY_MEV",
    "ProtonTable",
    "depth_dose",
    "proton_table",
    "protons_per_mu",
    "range_g_cm2",
]

MEV_PER_G_GY = 1.602176634e-10
"""Gy in 1 MeV/g (CODATA 2018, exact)."""

ENERGY_SPREAD = 0.007
"""Relative standard deviation of the energy at the nozzle's exit: a usual value, not measured here."""

LEAST_ENERGY_MEV, MOST_ENERGY_MEV = 30.0, 250.0

# NIST PSTAR, liquid water: kinetic energy in MeV, CSDA range in g/cm2.
_PSTAR_ENERGY_MEV = np.array(
    [10, 20, 30, 40, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 100, 125, 150, 175, 200, 225, 250.0]
)
_PSTAR_RANGE_G_CM2 = np.array(
    [
        0.1230,
        0.4260,
        0.8853,
        1.489,
        2.227,
        2.644,
        3.093,
        3.572,
        4.080,
        4.618,
        5.184,
        5.777,
        6.398,
        7.045,
        7.718,
        11.46,
        15.77,
        20.62,
        25.96,
        31.74,
        37.94,
    ]
)

# Bortfeld 1997, table I, water.
_P = 1.77
_BETA_PER_CM = 0.012  # slope of the fluence's fall by nuclear interactions
_GAMMA = 0.6  # part of the energy lost in nuclear interactions that is deposited where it happens
_STRAGGLING_CM, _STRAGGLING_POWER = 0.012, 0.935  # sigma_mono = 0.012 R0^0.935

_PROTON_REST_MEV = 938.272
_WATER_X0_G_CM2 = 36.08
_SCATTERING_MEV = 15.0
_LAST_OF_RANGE = 0.999  # where 1/(pv)^2 is cut off before it diverges

_TABLE_STEP_CM = 0.01

# Relative to 70 MeV, at 70, 80, ..., 230 MeV: protons per dose and dose per monitor count, as the site's own
# engine has them for gantry 2 (mu_correction.py of its PTN checker). Their product is protons per count.
_TABLE_ENERGY_MEV = np.arange(70.0, 231.0, 10.0)
_PROTONS_PER_DOSE = np.array(
    [
        1.0,
        1.12573609,
        1.25147616,
        1.36888442,
        1.48668286,
        1.60497205,
        1.71741195,
        1.82898327,
        1.94071715,
        2.04829231,
        2.16168787,
        2.27629228,
        2.39246902,
        2.50561983,
        2.63593474,
        2.75663921,
        2.89392498,
    ]
)
_DOSE_PER_COUNT = np.array(
    [
        1.0,
        0.98925572,
        0.97342173,
        0.96728177,
        0.95821563,
        0.94693784,
        0.94268568,
        0.94016891,
        0.93116142,
        0.91876268,
        0.90456950,
        0.88816459,
        0.87668905,
        0.87282620,
        0.87154097,
        0.85948117,
        0.85242327,
    ]
)
PROTONS_PER_MU_70 = 2.0e8
"""Protons per MU at 70 MeV.

Not measured: chosen so that a 60 mm cube gets about 1 Gy from 80 MU (the site's plans: 53 to 99 MU a beam).
"""

_range_of_energy = PchipInterpolator(np.log(_PSTAR_ENERGY_MEV), np.log(_PSTAR_RANGE_G_CM2))
_protons_per_mu = PchipInterpolator(
    _TABLE_ENERGY_MEV, PROTONS_PER_MU_70 * _PROTONS_PER_DOSE * _DOSE_PER_COUNT
)


def range_g_cm2(energy_mev: float) -> float:
    """CSDA range in water, g/cm2 (NIST PSTAR, interpolated in the logarithms).

    Raises ValidationError outside 30 to 250 MeV.
    """
    if not LEAST_ENERGY_MEV <= energy_mev <= MOST_ENERGY_MEV:
        raise ValidationError(
            f"an energy of {energy_mev:g} MeV is outside {LEAST_ENERGY_MEV:g} to {MOST_ENERGY_MEV:g} MeV",
            todo="Check the layer's energy in the log and in the plan",
        )
    return float(np.exp(_range_of_energy(np.log(energy_mev))))


def protons_per_mu(energy_mev: float) -> float:
    """Protons in 1 MU, constant outside 70 to 230 MeV: the one owner of MU -> protons in this engine."""
    return float(_protons_per_mu(np.clip(energy_mev, _TABLE_ENERGY_MEV[0], _TABLE_ENERGY_MEV[-1])))


def depth_dose(
    depth_cm: NDArray[np.float64], energy_mev: float, energy_spread: float = ENERGY_SPREAD
) -> NDArray[np.float64]:
    """Bortfeld's Bragg curve in water: MeV cm2/g for each proton that enters, at each depth (any shape).

    Equations (26) and (27) of the paper, with epsilon 0 (no low-energy tail).
    """
    range_cm = range_g_cm2(energy_mev)
    alpha = range_cm / energy_mev**_P
    sigma_cm = _range_sigma_cm(range_cm, energy_spread)
    scale = 1.0 / (_P * alpha ** (1 / _P) * (1 + _BETA_PER_CM * range_cm))
    slope = _BETA_PER_CM / _P + _GAMMA * _BETA_PER_CM
    dose = np.zeros(np.shape(depth_cm))
    plateau = depth_cm < range_cm - 10 * sigma_cm
    peak = ~plateau & (depth_cm < range_cm + 6 * sigma_cm)
    residual_cm = range_cm - depth_cm[plateau]
    dose[plateau] = scale * (residual_cm ** (1 / _P - 1) + _P * slope * residual_cm ** (1 / _P))
    zeta = (range_cm - depth_cm[peak]) / sigma_cm
    cylinder = pbdv(-1 / _P, -zeta)[0] / sigma_cm + slope * pbdv(-1 / _P - 1, -zeta)[0]
    front = np.exp(-(zeta**2) / 4) * sigma_cm ** (1 / _P) * gamma(1 / _P) / np.sqrt(2 * np.pi)
    dose[peak] = scale * front * cylinder
    return dose


def _range_sigma_cm(range_cm: float, energy_spread: float) -> float:
    """Standard deviation of the range: straggling and the energies' spread (Bortfeld 1997, section C)."""
    return float(np.hypot(_STRAGGLING_CM * range_cm**_STRAGGLING_POWER, energy_spread * _P * range_cm))


@dataclass(frozen=True)
class ProtonTable:
    """What a layer's energy means in water, tabulated at equal steps of water-equivalent depth.

    Attributes
    ----------
    range_cm, end_cm
        CSDA range; depth beyond which no dose is left.
    dose
        (n,) MeV cm2/g per proton.
    energy
        (n,) MeV per proton deposited from depth 0 (the integral of ``dose``).
    scattering
        (n,) radian^2: the integral of the scattering power from depth 0.
    """

    range_cm: float
    end_cm: float
    dose: NDArray[np.float64]
    energy: NDArray[np.float64]
    scattering: NDArray[np.float64]

    def at(self, table: NDArray[np.float64], depth_cm: NDArray[np.float64]) -> NDArray[np.float64]:
        """One of the tables, interpolated; constant beyond its ends."""
        place = np.clip(depth_cm * (1 / _TABLE_STEP_CM), 0.0, len(table) - 1.000001)
        index = place.astype(np.int32)
        step = np.diff(table)
        return np.asarray(table[index] + (place - index) * step[index])


@lru_cache(maxsize=256)
def proton_table(energy_mev: float, energy_spread: float = ENERGY_SPREAD) -> ProtonTable:
    """Tabulate one energy. Raises ValidationError outside 30 to 250 MeV."""
    range_cm = range_g_cm2(energy_mev)
    end_cm = range_cm + 6 * _range_sigma_cm(range_cm, energy_spread)
    depth_cm = np.arange(0.0, end_cm + 3 * _TABLE_STEP_CM, _TABLE_STEP_CM)
    dose = depth_dose(depth_cm, energy_mev, energy_spread)
    return ProtonTable(
        range_cm,
        end_cm,
        dose,
        _running_integral(dose),
        _running_integral(_scattering_power(depth_cm, energy_mev)),
    )


def _running_integral(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Trapezoidal integral from the start, at each step of the table."""
    return np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2)]) * _TABLE_STEP_CM


def _scattering_power(depth_cm: NDArray[np.float64], energy_mev: float) -> NDArray[np.float64]:
    """Gottschalk's differential Highland scattering power, radian^2/cm; 0 beyond the range."""
    range_cm = range_g_cm2(energy_mev)
    reached_cm = np.minimum(depth_cm, _LAST_OF_RANGE * range_cm)
    kinetic_mev = energy_mev * (1 - reached_cm / range_cm) ** (1 / _P)
    pv_mev = kinetic_mev * (kinetic_mev + 2 * _PROTON_REST_MEV) / (kinetic_mev + _PROTON_REST_MEV)
    length = np.log(np.maximum(depth_cm, _TABLE_STEP_CM / 2) / _WATER_X0_G_CM2)
    highland = 0.970 * (1 + length / 20.7) * (1 + length / 22.7)
    power = highland * (_SCATTERING_MEV / pv_mev) ** 2 / _WATER_X0_G_CM2
    return np.where(depth_cm <= range_cm, power, 0.0)
