"""Gamma against pymedphys on one pair of doses; prints one line of JSON.

The pair: a box of 2 Gy with penumbras against itself, moved by 1 mm (and 0.7 mm), 0.5 % more, 1 % noise of
a gray; 3 %/2 mm, global, threshold 10 %, voxels of 2 mm. Times are wall clock, compilation left out.

    python tests/benchmarks/bench_gamma.py [--size 200] [--hard] [--without-pymedphys]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings

import numpy as np
from scipy.special import erf

from mqi.dose.gamma import GammaCriteria, gamma, warm_up
from mqi.dose.grid import DoseGrid, checked_grid

SPACING_MM = 2.0


def pair(size: int, hard: bool) -> tuple[DoseGrid, DoseGrid]:
    shift_mm, scale = (3.0, 1.03) if hard else (1.0, 1.005)
    along = np.arange(size) * SPACING_MM
    z, y, x = np.meshgrid(along, along, along, indexing="ij", sparse=True)
    centre = size * SPACING_MM / 2

    def box(at: np.ndarray, half: float, penumbra: float) -> np.ndarray:
        return 0.5 * (erf((at - centre + half) / penumbra) - erf((at - centre - half) / penumbra))

    side, deep = 0.4 * centre, 0.5 * centre
    reference = 2 * box(x, side, 5) * box(y, side, 5) * box(z, deep, 4)
    moved = 2 * scale * box(x - shift_mm, side, 5) * box(y, side, 5) * box(z - 0.7 * shift_mm, deep, 4)
    evaluated = moved + np.random.default_rng(1).normal(0, 0.01, reference.shape)
    spacing = (SPACING_MM,) * 3
    return checked_grid(reference, (0, 0, 0), spacing), checked_grid(evaluated, (0, 0, 0), spacing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=200, help="voxels along each side")
    parser.add_argument(
        "--hard", action="store_true", help="3 mm and 3 % instead: about half the points fail"
    )
    parser.add_argument("--without-pymedphys", action="store_true")
    options = parser.parse_args()
    reference, evaluated = pair(options.size, options.hard)
    line: dict[str, object] = {
        "pair": "hard" if options.hard else "easy",
        "size": options.size,
        "criteria": "3%/2mm",
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }
    warm_up()
    seconds = {}
    for interpolation in (10, 20):
        start = time.perf_counter()
        result = gamma(reference, evaluated, GammaCriteria(interpolation=interpolation))
        seconds[interpolation] = time.perf_counter() - start
        line["points"] = result.evaluated_points
        line[f"ours_{interpolation}_s"] = round(seconds[interpolation], 3)
        line[f"ours_{interpolation}_pass_percent"] = result.pass_rate_percent
    if not options.without_pymedphys:
        warnings.simplefilter("ignore")
        logging.disable()  # pymedphys logs its progress
        import pymedphys

        axes = (np.arange(options.size) * SPACING_MM,) * 3
        start = time.perf_counter()
        theirs = pymedphys.gamma(
            axes, reference.values, axes, evaluated.values, 3, 2,
            lower_percent_dose_cutoff=10, interp_fraction=10, max_gamma=2,
        )  # fmt: skip
        pymedphys_s = time.perf_counter() - start
        points = theirs[~np.isnan(theirs)]
        line["pymedphys_10_s"] = round(pymedphys_s, 3)
        line["pymedphys_10_pass_percent"] = 100 * float((points <= 1).mean())
        line["ratio_10"] = round(pymedphys_s / seconds[10], 1)
        line["ratio_20"] = round(pymedphys_s / seconds[20], 1)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
