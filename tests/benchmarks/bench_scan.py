"""A scan over 100,000 finished cases, against a bare os.walk over the same inbox in the same run.

    python3 -m tests.benchmarks.bench_scan [--cases 100000]

Prints one JSON line: seconds of the scan (best and median of five), of the walk, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from mqi.intake import IntakeRules
from mqi.record import RECORD_NAME
from mqi.scan import ScanIndex, scan
from mqi.scan.index import CASE, PASSAGE, Known
from mqi.scan.scanning import rules_digest

ROUNDS = 5


def make_finished(inbox: Path, results: Path, index: ScanIndex, rules: IntakeRules, count: int) -> None:
    """Folders as 100,000 finished cases leave them (one delivery each), and the index that knows them.

    Content is left out: a scan must not open it. What the scanner remembers is what it would write itself.
    """
    folders: list[tuple[str, int, str]] = []
    records: list[tuple[str, str]] = []
    room = inbox / "G1"
    room.mkdir(parents=True)
    for number in range(count):
        patient = f"G1/P{number:06d}"
        study = f"{patient}/1.2.840.{number}"
        os.makedirs(f"{inbox}/{study}/2026010120000000")  # noqa: PTH103 - half a million folders
        record = f"P{number:06d}-00000000/2026010120000000"
        os.makedirs(f"{results}/{record}")  # noqa: PTH103
        with open(f"{results}/{record}/{RECORD_NAME}", "wb"):  # noqa: PTH123
            pass
        mtime_ns = os.stat(f"{results}/{record}/{RECORD_NAME}").st_mtime_ns  # noqa: PTH116
        records.append((study, json.dumps([[f"{record}/{RECORD_NAME}", mtime_ns]])))
        folders += [(patient, 0, PASSAGE), (study, 0, CASE)]
    folders += [("", 0, PASSAGE), ("G1", 0, PASSAGE)]
    with index.transaction():
        index.forget_other_rules(rules_digest(inbox, results, rules))
        index.set_folders((path, os.stat(inbox / path).st_mtime_ns, kind) for path, _, kind in folders)  # noqa: PTH116
        remembered = Known("signature", 0.0, 0.0, "", "[]", "[]")
        for study, of_case in records:
            index.set_case(study, remembered, of_case, 1.0)


def timed(action: Callable[[], object]) -> float:
    """Seconds that the action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    """Make the folders, scan and walk them in turn, print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    count: int = parser.parse_args().cases
    rules = IntakeRules()
    with tempfile.TemporaryDirectory() as place:
        inbox, results = Path(place).resolve() / "inbox", Path(place).resolve() / "results"
        with ScanIndex(results) as index:
            make_finished(inbox, results, index, rules, count)
            now = datetime.now(UTC)
            found = scan(inbox, results, rules, index, now)
            if found.finished != count or found.rows or found.ready:
                raise SystemExit(f"the scan found {found.finished} finished cases, not {count}")
            scans, walks = [], []
            for _ in range(ROUNDS):
                scans.append(timed(lambda: scan(inbox, results, rules, index, now)))
                walks.append(timed(lambda: sum(1 for _ in os.walk(inbox))))
    line = {
        "benchmark": "scan",
        "cases": count,
        "scan_s": round(statistics.median(scans), 3),
        "scan_best_s": round(min(scans), 3),
        "os_walk_s": round(statistics.median(walks), 3),
        "ratio": round(statistics.median(scans) / statistics.median(walks), 3),
        "limit_s": 2.0,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
