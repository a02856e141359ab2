"""The worklist: what a physicist looks at to see where each case stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prefect.artifacts import create_table_artifact

from mqi.scan import ScanRow

__all__ = ["publish_worklist"]

WORKLIST_KEY = "worklist"
MOST_ROWS = 500
"""An artifact stands in the server's database and is loaded whole by the page that shows it."""

_ORDER = ("refused", "failed", "partial", "processing", "queued", "waiting", "new", "completed")


def publish_worklist(rows: Iterable[ScanRow], told: Mapping[tuple[str, str], str], before: str = "") -> str:
    """Publish the worklist if it says something new; return what it says, for the next comparison.

    ``told`` holds what the Prefect server says of a fraction's run (key, fraction id), where that is news.
    """
    ordered = sorted(rows, key=lambda row: row.since, reverse=True)
    ordered.sort(key=lambda row: _ORDER.index(str(row.status)))
    table = [_line(row, told) for row in ordered[:MOST_ROWS]]
    said = repr(table)
    if said != before:
        more = len(ordered) - len(table)
        description = f"{len(ordered)} fractions" + (f", the {more} oldest not shown" if more else "")
        create_table_artifact(table, key=WORKLIST_KEY, description=description)
    return said


def _line(row: ScanRow, told: Mapping[tuple[str, str], str]) -> dict[str, str]:
    news = told.get((row.key or row.folder, row.fraction_id or ""), "")
    return {
        "case": row.key or row.folder,
        "fraction": f"{row.fraction_number or ''}",
        "status": str(row.status),
        "since (UTC)": f"{row.since:%Y-%m-%d %H:%M:%S}",
        "waiting for": "; ".join(row.waiting_for),
        "verdict": str(row.verdict or ""),
        "message": "; ".join(filter(None, (row.message, news))),
        "report": row.report or "",
    }
