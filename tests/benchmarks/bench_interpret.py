"""How fast a case of 44 MB of logs (3 beams, 108 layers, 2.75 million rows) is interpreted.

``python tests/benchmarks/bench_interpret.py`` prints one JSON line: the time of interpreting (reading,
sorting rows, mm, MU, spots), of only reading the same bytes, and of the incumbent's way (row by row
through ``csv.writer``, on every 50th file, extrapolated). All in the same process, the best of three.
"""

from __future__ import annotations

import csv
import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mqi.log.calibration import builtin_calibration
from mqi.log.interpret import interpret_beam
from tests.unit.handmade import (
    HandmadeCase,
    ion_plan,
    line_layer,
    mgn_bytes,
    plan_beam,
    spot_times_ms,
    write_texts,
)

BEAMS, LAYERS, SPOTS, ROWS = 3, 36, 90, 25_500
SAMPLE = 50
IDLE_ROWS, TAIL_ROWS = 200, 200


def write_case(folder: Path) -> list[HandmadeCase]:
    """Three beams of 36 layers; every layer has the same rows but for its number."""
    layers = [line_layer(number, 170.0 - 2 * number, spots=SPOTS) for number in range(1, LAYERS + 1)]
    plan = ion_plan(*(plan_beam(layers, number) for number in range(2, 2 + BEAMS)))
    rows = _rows()
    cases = []
    for number in range(2, 2 + BEAMS):
        at = f"20260101120{number}0000"
        (folder / at).mkdir()
        table = []
        for layer in layers:
            rows[:, 6] = layer.number
            ptn, mgn = (
                f"02_0014046_001_{number:03}_{layer.number:03}.ptn",
                f"02_QA_{number}_{layer.number:03}.mgn",
            )
            rows.tofile(folder / at / ptn)
            (folder / at / mgn).write_bytes(_stretched(mgn_bytes(layer, IDLE_ROWS)))
            table.append((at, layer.number, layer.energy_mev, "QA0001", number, 2, 2, 2, 2, ptn, mgn))
        write_texts(folder / at, table, number, 1, LAYERS)
        cases.append(HandmadeCase(folder, plan, [at]))
    return cases


def _rows() -> np.ndarray:
    on = ROWS - IDLE_ROWS - TAIL_ROWS
    first = line_layer(spots=SPOTS)
    at = np.linspace(0, 1, on) * spot_times_ms(first)[-1]
    rows = np.zeros((ROWS, 8), dtype=">u2")
    rows[:, 0], rows[:, 1], rows[:, 7] = 65200, 100, 1
    delivered = slice(IDLE_ROWS, IDLE_ROWS + on)
    noise = np.random.default_rng(1).normal(0, 0.12, (2, on))
    x_mm, y_mm = (np.interp(at, spot_times_ms(first), axis) for axis in first.positions_mm.T)
    rows[delivered, 0] = np.rint((x_mm + noise[0]) / 0.00726 + 24580)
    rows[delivered, 1] = np.rint((y_mm + noise[1]) / 0.0071411 + 32772)
    rows[delivered, 4] = np.random.default_rng(2).integers(3800, 4700, on)
    rows[delivered, 5] = rows[delivered, 4]
    rows[delivered, 7] = 0xC001
    return rows


def _stretched(mgn: bytes) -> bytes:
    on = ROWS - IDLE_ROWS - TAIL_ROWS
    records = list(struct.iter_unpack(">IHHHHH", mgn))
    begin, end = records[1][0], records[-2][0]
    out = []
    for index, record in enumerate(records):
        time_us = round(begin + (record[0] - begin) * on * 60 / (end - begin)) if index else 0
        if index == len(records) - 1:
            time_us = out[-1][0] + 12_000
        out.append((time_us, *record[1:]))
    return b"".join(struct.pack(">IHHHHH", *record) for record in out)


def interpret(cases: Sequence[HandmadeCase]) -> None:
    """Interpret each beam as the flow does."""
    calibration = builtin_calibration("G2")
    for number, case in enumerate(cases, start=2):
        interpret_beam(case.folder, case.manifest(number), case.plan, calibration)


def read_only(paths: Sequence[Path]) -> None:
    """Read the same bytes and do nothing with them."""
    for path in paths:
        np.fromfile(path, dtype=">u2")


def row_by_row(paths: Sequence[Path], out: Path) -> None:
    """Write one CSV row per log row in pure Python, as the incumbent's interpreter does."""
    for path in paths:
        rows = np.fromfile(path, dtype=">u2").reshape(-1, 8)
        with out.open("w", newline="") as file:
            writer = csv.writer(file)
            for index in range(len(rows)):
                x_mm = (int(rows[index][0]) - 24580) * 0.00726
                y_mm = (int(rows[index][1]) - 32772) * 0.0071411
                count = round(int(rows[index][4]) * 1.0)
                writer.writerow([index * 0.06, x_mm, y_mm, count])


def best_s(work: Callable[[], None], repeat: int = 3) -> float:
    """Shortest of a few runs, s."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> dict[str, float]:
    """Measure, and give the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = write_case(folder)
        paths = sorted(folder.rglob("*.ptn"))
        sampled = paths[::SAMPLE]
        interpret_s = best_s(lambda: interpret(cases))
        read_s = best_s(lambda: read_only(paths))
        rows_s = best_s(lambda: row_by_row(sampled, folder / "out.csv"), repeat=1) * len(paths) / len(sampled)
        return {
            "bytes": sum(path.stat().st_size for path in paths),
            "rows": BEAMS * LAYERS * ROWS,
            "interpret_s": round(interpret_s, 4),
            "read_only_s": round(read_s, 4),
            "row_by_row_s": round(rows_s, 2),
            "times_read_only": round(interpret_s / read_s, 1),
            "times_faster_than_row_by_row": round(rows_s / interpret_s, 1),
        }


if __name__ == "__main__":
    print(json.dumps(main()))
