"""scan-cases: what has arrived, what can start, and where everything stands."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, runtime
from prefect.logging import get_run_logger

from blocks import Site, load_site
from mqi.scan import SETTLING, ScanIndex, ScanRow, scan
from tasks import alive
from tasks.recovery import recover_runs
from tasks.runs import start_case, start_refused
from tasks.worklist import publish_worklist

__all__ = ["scan_cases"]


@flow(name="scan-cases", flow_run_name="scan", persist_result=False)
def scan_cases(look_every_s: float = 60.0, period_s: float = 60.0, host: str = "local") -> None:
    """Look at the inboxes, start what is whole, and publish the worklist.

    A run looks again and again until the next scheduled one is due: a look costs milliseconds, a run costs
    the start of a process.

    Args:
        look_every_s: Pause between two looks.
        period_s: The schedule's interval. The run ends before the next one is due.
        host: Name of the compute host's block, for the cases that it starts.
    """
    with alive():
        site = load_site(host)
        due = _next_run_due(period_s)
        told: dict[tuple[str, str], str] = {}
        published = ""
        with ScanIndex(Path(site.results)) as index:
            while True:
                for sentence in recover_runs():
                    get_run_logger().warning(sentence)
                rows = _look(site, index, host, told)
                published = publish_worklist(rows, told, published)
                pause = _settling_pause(rows, site, look_every_s)
                if time.time() + pause >= due:
                    return
                time.sleep(pause)


def _look(site: Site, index: ScanIndex, host: str, told: dict[tuple[str, str], str]) -> list[ScanRow]:
    rows: list[ScanRow] = []
    for inbox in site.inbox:
        result = scan(Path(inbox), Path(site.results), site.rules, index, datetime.now(UTC))
        for ready in result.ready:
            told[ready.key, ready.fraction_id] = start_case(ready, host)
            index.mark_submitted(ready.key, ready.fraction_id, ready.attempt, datetime.now(UTC))
        for row in result.rows:
            name = (row.key or row.folder, row.fraction_id or "")
            if row.status == "refused" and name not in told:
                told[name] = start_refused(row, host)
        rows.extend(result.rows)
    return rows


def _next_run_due(period_s: float) -> float:
    """When this run has to end. One that starts late, after an outage, still fills the rest of its period."""
    now = time.time()
    scheduled = runtime.flow_run.scheduled_start_time
    began = scheduled.timestamp() if scheduled else now
    periods = max(1, math.ceil((now - began) / period_s))
    return began + periods * period_s - 2.0


def _settling_pause(rows: list[ScanRow], site: Site, look_every_s: float) -> float:
    """Look again soon when something only has to lie still for a while."""
    settling = any(SETTLING in row.waiting_for for row in rows)
    return min(look_every_s, site.rules.settle_s) if settling else look_every_s
