"""From the ready marker to the running flow and to the report, and where the time goes.

    python tests/benchmarks/bench_case.py [--cases 8]

Starts a real installation (server, worker, scheduled scanner looking every 5 s), delivers small cases one
after the other and then the demo's case, and prints one JSON line: seconds from the ready marker to the
running flow (median, p95, and their ratio to the scan interval), and for the demo's case seconds from the
marker to the report, with the share of each step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun

from mqi.case import case_key
from mqi.synthesize import Recipe
from tests.flows.installation import SCAN_EVERY_S, Installation


def measure(installation: Installation, recipe: Recipe) -> tuple[float, float, dict[str, float]]:
    """Seconds from the marker to the running flow and to the report, and seconds by step."""
    case = installation.deliver(recipe)
    marked = time.time()

    def started() -> FlowRun | None:
        found = installation.runs(case_key(recipe.patient_id, case.plan.sop_uid))
        return found[0] if found and found[0].start_time else None

    run = installation.until(started, 120, "the case flow to run")
    assert run.start_time is not None
    installation.finished(case, 300)
    reported = time.time()
    with installation.client() as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    steps: dict[str, float] = defaultdict(float)
    for task in tasks:
        if task.total_run_time:
            steps[task.name.split(" beam")[0]] += task.total_run_time.total_seconds()
    return run.start_time.timestamp() - marked, reported - marked, dict(steps)


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=8, help="small cases to deliver, one after the other")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        installation = Installation(Path(folder))
        installation.up()
        try:
            with installation.settings():
                waits = [
                    measure(installation, Recipe.small(seed=number, patient_id=f"BENCH{number:03d}"))[0]
                    for number in range(options.cases)
                ]
                _, to_report_s, steps = measure(installation, Recipe(patient_id="BENCHDEMO"))
        finally:
            installation.down()
    waits.sort()
    figures = {
        "scan_interval_s": SCAN_EVERY_S,
        "marker_to_running_median_s": round(statistics.median(waits), 1),
        "marker_to_running_p95_s": round(waits[min(len(waits) - 1, int(0.95 * len(waits)))], 1),
        "p95_over_scan_interval": round(waits[min(len(waits) - 1, int(0.95 * len(waits)))] / SCAN_EVERY_S, 2),
        "demo_marker_to_report_s": round(to_report_s, 1),
        "demo_task_seconds_by_step": {name: round(seconds, 1) for name, seconds in sorted(steps.items())},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
