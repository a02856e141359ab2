"""The worklist: what a physicist looks at to see where each case stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from mqi.case import Verdict
from mqi.scan import ScanRow
from mqi.words import VERDICT_SYMBOLS, VERDICT_WORDS

__all__ = ["publish_worklist"]

WORKLIST_KEY = "worklist"
MOST_ROWS = 500
"""An artifact stands in the server's database and is loaded whole by the page that shows it."""

_ORDER = ("refused", "failed", "partial", "processing", "queued", "waiting", "new", "completed")
_SPECIAL = re.compile(r"[\\`*\[\]<>|]")
"""Signs that the page would take for Markdown: a file's name must not become a link."""


def publish_worklist(rows: Iterable[ScanRow], told: Mapping[tuple[str, str], str], before: str = "") -> str:
    """Publish the worklist if it says something new; return what it says, for the next comparison.

    ``told`` holds what the Prefect server says of a fraction's run (key, fraction id), where that is news.
    What a person has to look at stands above, what is finished below.
    """
    ordered = sorted(rows, key=lambda row: row.since, reverse=True)
    ordered.sort(key=_rank)
    table = [_line(row, told) for row in ordered[:MOST_ROWS]]
    said = json.dumps(table)
    if said != before:
        more = len(ordered) - len(table)
        number = f"{len(ordered)} {'fraction' if len(ordered) == 1 else 'fractions'}"
        left_out = f", the last {more} not shown" if more else ""
        _publish(said, f"Worklist: {number}{left_out}. Changed {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.")
    return said


def _publish(data: str, description: str) -> None:
    """Keep one artifact up to date: its page can be bookmarked, and the database does not grow."""
    with get_client(sync_client=True) as client:
        standing = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[WORKLIST_KEY])),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
        if standing:
            client.update_artifact(standing[0].id, ArtifactUpdate(data=data, description=description))
            return
        run = runtime.flow_run.id
        client.create_artifact(
            ArtifactCreate(
                key=WORKLIST_KEY, type="table", data=data, description=description, flow_run_id=run
            )
        )


def _rank(row: ScanRow) -> int:
    looked_after = row.status != "completed" or row.verdict is Verdict.PASS
    return _ORDER.index(str(row.status)) if looked_after else _ORDER.index("partial")


def _line(row: ScanRow, told: Mapping[tuple[str, str], str]) -> dict[str, str]:
    news = told.get((row.key or row.folder, row.fraction_id or ""), "")
    verdict = f"{VERDICT_SYMBOLS[row.verdict]} {VERDICT_WORDS[row.verdict]}" if row.verdict else ""
    return {
        "case": _plain(row.key or row.folder),
        "fraction": f"{row.fraction_number or ''}",
        "status": str(row.status),
        "verdict": verdict,
        "run": f"[open](/runs/flow-run/{row.flow_run})" if row.flow_run else "",
        "waiting for": _plain("; ".join(row.waiting_for)),
        "message": _plain("; ".join(filter(None, (row.message, news)))),
        "since (UTC)": f"{row.since:%Y-%m-%d %H:%M}",
        "report": _plain(row.report or ""),
    }


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", text)
