"""The machine: from a planned layer to what it logs (formats and figures: measured on one G2 case)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mqi.errors import ConfigurationError
from mqi.log.calibration import CalibrationSet
from mqi.plan import PlanLayer
from mqi.synthesize.timing import Timeline, plan_timeline

__all__ = ["MGN_DTYPE", "PTN_DTYPE", "WHOLE", "LayerRecord", "Part", "choose_range_code", "record_layer"]

PLAN_ON, ACTUAL_ON = 0x8000, 0x4000
"""Flag bits of bank 8: the beam should be on, the beam is on."""

ACTUAL_DELAY_ROWS = 2
"""The actual beam flag trails the planned one by two samples."""

LAG_MS = 0.18
"""Positions trail the planned trajectory by this."""

POSITION_NOISE_MM = 0.12
"""Residual of each axis, one standard deviation."""

DOSE_NOISE = 0.08
"""Relative spread of the dose signal from sample to sample."""

RISE_ROWS = 16.5
"""Time constant of the dose signal after beam on: 90 % after 38 samples."""

DECAY_ROWS = 5.5
"""Time constant of the dose signal after beam off."""

OFF_COUNTS, OFF_COUNTS_SD, OFF_COUNTS_MAX = 44.0, 20.0, 100.0
"""Dose signal without beam."""

MONITOR_RATIO = 0.999
"""Dose monitor 2 over monitor 1."""

AFTERGLOW_ROWS = 5
"""The position signal lasts this long after beam off; then the registers park."""

SIZE_COUNTS, SIZE_COUNTS_SD = (640.0, 815.0), 15.0
"""Beam size registers x, y."""

PARKED_X = (65197, 65252)
PARKED_Y = ((33, 191), (65444, 65511))
"""Where the position registers stand without beam: one value per layer out of these ranges."""

IDLE_MS = (6.0, 22.0)
"""Recording begins this long before the beam."""

TAIL_US = 12_000
"""The last record of the magnets' file follows the last spot by this."""

MAGNETS_OFF = 0x8000
"""Amplitude and preset words of the magnets' file at rest."""

TYPICAL_COUNTS = 6000.0
"""The range code is the smallest in which a layer's signal stays below this."""

CODES = (2, 3, 4, 5)
"""Range codes to choose from; code 1 only on request: no layer is as faint as that."""

Scale = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""A calibration's way from raw counts to mm."""

MAX_RAW = 65535
AMP_COUNTS_PER_MM = 50
"""Magnet amplitude per mm. The true ratio depends on the energy; nothing here reads it."""

PTN_DTYPE = np.dtype(">u2")
MGN_DTYPE = np.dtype(
    [
        ("time_us", ">u4"),
        ("amp_x", ">u2"),
        ("amp_y", ">u2"),
        ("preset_x", ">u2"),
        ("preset_y", ">u2"),
        ("flag", ">u2"),
    ]
)


@dataclass(frozen=True)
class Part:
    """The part of a layer's time in which the beam is really on: 0 to 1 is the whole layer."""

    begin: float = 0.0
    end: float = 1.0


WHOLE = Part()


@dataclass(frozen=True)
class LayerRecord:
    """What the machine logs for one layer. ``delivered_mu``: the meterset of its beam-on rows."""

    ptn: NDArray[np.uint16]
    mgn: NDArray[np.void]
    range_code: int
    delivered_mu: float


def choose_range_code(rate_mu_s: float, calibration: CalibrationSet) -> int:
    """Choose the dose monitors' range for a layer's intensity, as the machine does."""
    mu_per_row = rate_mu_s * calibration.time_gain_ms / 1000
    for code in CODES:
        if mu_per_row / _mu_per_raw(calibration, code) < TYPICAL_COUNTS:
            return code
    return CODES[-1]


def record_layer(
    layer: PlanLayer,
    scan_mode: str,
    calibration: CalibrationSet,
    rng: np.random.Generator,
    *,
    range_code: int | None = None,
    part: Part = WHOLE,
    mu_scale: float = 1.0,
    shift_mm: tuple[float, float] = (0.0, 0.0),
) -> LayerRecord:
    """Deliver one layer, or a part of it, and log it.

    The beam-on rows (both flag bits) sum up to the planned meterset of the part times ``mu_scale``
    whatever the noise: the machine counts what it delivers. A part that begins later follows idle shots:
    the plan flag alone, without dose. One that ends earlier breaks off there. Paintings follow each other.

    Raises
    ------
    ConfigurationError
        When the monitors' range cannot hold the layer's intensity.
    """
    timeline = plan_timeline(layer, scan_mode)
    code = choose_range_code(timeline.rate_mu_s, calibration) if range_code is None else range_code
    mu_per_raw = _mu_per_raw(calibration, code)
    rows: list[NDArray[np.uint16]] = []
    records: list[NDArray[np.void]] = []
    delivered, started_us = 0.0, 0
    for painting in range(1, layer.paintings + 1):
        on_ms = rng.uniform(*IDLE_MS)
        magnets = _magnet_records(timeline, layer, calibration, started_us, on_ms)
        clock = _Clock.of(timeline, on_ms, calibration.time_gain_ms, part)
        raw, sum_raw = _dose_counts(timeline, clock, mu_scale / mu_per_raw, rng)
        if raw.max() > MAX_RAW:
            raise ConfigurationError(
                f"layer {layer.number} at {timeline.rate_mu_s:.3g} MU/s is too intense for range code {code}",
                todo="Give the recipe a larger range code, or none",
            )
        ptn = np.empty((clock.rows, 8), dtype=np.uint16)
        _log_positions(ptn, timeline, clock, calibration=calibration, shift_mm=shift_mm, rng=rng)
        ptn[:, 4] = raw
        ptn[:, 5] = np.rint(raw * MONITOR_RATIO)
        ptn[:, 6] = layer.number
        ptn[:, 7] = clock.flags(painting)
        rows.append(ptn)
        records.append(magnets)
        delivered += sum_raw * mu_per_raw
        started_us = int(magnets["time_us"][-1])
    return LayerRecord(np.concatenate(rows), np.concatenate(records), code, delivered)


def _mu_per_raw(calibration: CalibrationSet, range_code: int) -> float:
    """MU of one raw count of dose monitor 1."""
    return calibration.mu_per_count * calibration.range_factor(range_code) / calibration.dose_divisor


@dataclass(frozen=True)
class _Clock:
    """Rows of a recording: ``plan`` on from row to row, ``beam`` really on, in all ``rows``."""

    time_ms: NDArray[np.float64]  # since the planned beam on
    beam_ms: tuple[float, float]  # the part of it in which the beam is on
    plan_begin: int
    plan_end: int
    beam_begin: int
    beam_end: int

    @classmethod
    def of(cls, timeline: Timeline, on_ms: float, step_ms: float, part: Part) -> _Clock:
        """Lay a layer's part on the samples of the recorder."""
        off_ms = on_ms + part.end * timeline.end_ms
        rows = round((off_ms + TAIL_US / 1000) / step_ms)
        plan_begin, plan_end = math.ceil(on_ms / step_ms), math.ceil(off_ms / step_ms)
        beam_begin = math.ceil((on_ms + part.begin * timeline.end_ms) / step_ms)
        return cls(
            time_ms=np.arange(rows, dtype=np.float64) * step_ms - on_ms,
            beam_ms=(part.begin * timeline.end_ms, part.end * timeline.end_ms),
            plan_begin=plan_begin,
            plan_end=plan_end,
            beam_begin=beam_begin + ACTUAL_DELAY_ROWS,
            beam_end=plan_end + ACTUAL_DELAY_ROWS,
        )

    @property
    def rows(self) -> int:
        return len(self.time_ms)

    @property
    def counted(self) -> slice:
        """The rows with both flags: what is delivered."""
        return slice(self.beam_begin, self.plan_end)

    def flags(self, painting: int) -> NDArray[np.uint16]:
        flags = np.full(self.rows, painting, dtype=np.uint16)
        flags[self.plan_begin : self.plan_end] |= PLAN_ON
        flags[self.beam_begin : self.beam_end] |= ACTUAL_ON
        return flags


def _dose_counts(
    timeline: Timeline, clock: _Clock, raw_per_mu: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """Raw counts of dose monitor 1 for all rows, and their sum over the rows with both flags."""
    step_ms = clock.time_ms[1] - clock.time_ms[0]
    raw = np.rint(np.clip(rng.normal(OFF_COUNTS, OFF_COUNTS_SD, clock.rows), 0, OFF_COUNTS_MAX)).astype(
        np.int64
    )
    on = clock.counted
    begin = clock.time_ms[on] - LAG_MS
    signal = np.diff(timeline.delivered_mu(np.append(begin, begin[-1] + step_ms)))
    signal *= -np.expm1(-np.arange(1, len(signal) + 1) / RISE_ROWS)
    signal *= np.clip(rng.normal(1.0, DOSE_NOISE, len(signal)), 0.5, 1.5)
    planned = float(np.ptp(timeline.delivered_mu(np.array(clock.beam_ms))))
    target = round(planned * raw_per_mu)
    counts = np.rint(signal * (target / signal.sum())).astype(np.int64)
    # Rounding leaves some counts over: they go to the strongest rows, one each, so that none turns negative.
    left = target - int(counts.sum())
    counts[np.argsort(signal, kind="stable")[::-1][: abs(left)]] += int(np.sign(left))
    raw[on] = counts
    after = np.arange(1, clock.rows - on.stop + 1)
    raw[on.stop :] += np.rint(np.median(counts) * np.exp(-after / DECAY_ROWS)).astype(np.int64)
    return raw, int(counts.sum())


def _log_positions(
    ptn: NDArray[np.uint16],
    timeline: Timeline,
    clock: _Clock,
    *,
    calibration: CalibrationSet,
    shift_mm: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """Write the position and size registers (banks 1 to 4)."""
    ptn[:, 0] = rng.integers(*PARKED_X)
    ptn[:, 1] = rng.integers(*PARKED_Y[int(rng.integers(len(PARKED_Y)))])
    ptn[:, 2:4] = 0
    # The first samples after beam on still show the parked registers.
    seen = slice(clock.beam_begin + int(rng.integers(1, 4)), clock.plan_end + AFTERGLOW_ROWS)
    position = timeline.position_mm(clock.time_ms[seen] - LAG_MS) + np.array(shift_mm)
    position += rng.normal(0.0, POSITION_NOISE_MM, position.shape)
    for bank, scale in enumerate((calibration.x_mm, calibration.y_mm)):
        ptn[seen, bank] = _registers(scale, position[:, bank])
        size = rng.normal(SIZE_COUNTS[bank], SIZE_COUNTS_SD, len(position))
        ptn[seen, 2 + bank] = np.rint(size)


def _magnet_records(
    timeline: Timeline, layer: PlanLayer, calibration: CalibrationSet, started_us: int, on_ms: float
) -> NDArray[np.void]:
    """Records of the magnets' file: at rest, all spots of a painting, at rest."""
    count = len(timeline.spot_ms)
    records = np.zeros(count + 2, dtype=MGN_DTYPE)
    time_us = np.rint((on_ms + timeline.spot_ms) * 1000).astype(np.int64)
    if timeline.spot_ms[0] > 0:
        time_us[0] = round(on_ms * 1000)
    records["time_us"] = started_us + np.concatenate([[0], time_us, time_us[-1:] + TAIL_US])
    for name in ("amp_x", "amp_y", "preset_x", "preset_y"):
        records[name] = MAGNETS_OFF
    presets = zip("xy", (calibration.preset_x_mm, calibration.preset_y_mm), layer.positions_mm.T, strict=True)
    for axis, scale, position in presets:
        records[f"preset_{axis}"][1:-1] = _registers(scale, position)
        records[f"amp_{axis}"][1:-1] = MAGNETS_OFF + np.rint(position * AMP_COUNTS_PER_MM)
    records["flag"][1:-2] = 1
    return records


def _registers(scale: Scale, position_mm: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Turn mm into raw counts: the inverse of the calibration's straight line."""
    zero, one = scale(np.array([0.0, 1.0]))
    raw = np.rint((position_mm - zero) / (one - zero))
    return np.asarray(np.clip(raw, 0, MAX_RAW), dtype=np.uint16)
