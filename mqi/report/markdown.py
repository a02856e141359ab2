"""Short Markdown for a workflow tool's artifact: verdict, table, small pictures within a budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mqi.case import Verdict
from mqi.report.content import BeamPage, Picture, ReportContent
from mqi.report.view import (
    SUMMARY_HEADINGS,
    Cell,
    beam_label,
    clean,
    headline_reasons,
    identity_rows,
    short,
    signed,
    summary_rows,
)
from mqi.words import VERDICT_NOTES, VERDICT_SYMBOLS, VERDICT_WORDS, WORDS

__all__ = ["MOST_BYTES", "beam_artifact_markdown", "case_artifact_markdown"]

MOST_BYTES = 300_000
"""An artifact stands in the workflow tool's database and is loaded with its page: it stays below this."""

_MOST_TEXT = 400
"""Of one name or sentence, characters."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#!|~&$]|:(?=/))")

_SHORTER = {WORDS[f"gamma_{what}"]: WORDS[f"gamma_{what}_short"] for what in ("plan", "tps")}
_HEADINGS = tuple(_SHORTER.get(heading, heading) for heading in SUMMARY_HEADINGS)
"""The tool's page is narrow: the last column must not be cut off."""

_URGENT = (Verdict.FAIL, Verdict.NOT_EVALUABLE, Verdict.ACTION, Verdict.PASS)


def beam_artifact_markdown(page: BeamPage) -> str:
    """One beam: verdict, reasons, figures, and the overview picture if it fits."""
    beam = page.verdict
    account = beam.account
    deviation = f"{signed(account.mu_deviation_percent, 2)} %"
    rows = [
        f"| {WORDS['planned_mu']} | {account.planned_mu:.3f} |",
        f"| {WORDS['delivered_mu']} | {account.delivered_mu:.3f} ({deviation}) |",
    ]
    for gamma in beam.gammas:
        rate = WORDS["nothing"] if gamma.pass_rate_percent is None else f"{gamma.pass_rate_percent:.1f} %"
        rows.append(f"| γ {gamma.dose_percent:g} %/{gamma.distance_mm:g} mm, {gamma.against} | {rate} |")
    text = "\n".join(
        [
            f"## {_say(beam.verdict)} · {_plain(beam_label(beam.beam_number, beam.beam_name))}",
            "",
            *_bullets(beam.reasons, beam.verdict),
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
        ]
    )
    return text + _pictures([("", page.overview)], MOST_BYTES - len(text.encode()))


def case_artifact_markdown(content: ReportContent, files: Sequence[Path] = ()) -> str:
    """The whole fraction: verdict, reasons, the summary table, and the beams' overviews, the worst first.

    ``files``: where the whole report lies.
    """
    verdict = content.verdict
    fraction = f"{WORDS['fraction'].lower()} {content.fraction_number}"
    lines = [f"# {_say(verdict.verdict)} · {_plain(content.case_key)} · {fraction}", ""]
    if content.engine.analytic:
        lines += [f"> **{WORDS['not_clinical']}.** {WORDS['not_clinical_why']}", ""]
    lines += [*_bullets(verdict.reasons, verdict.verdict), ""]
    lines += ["| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * len(_HEADINGS)]
    for row in summary_rows(content):
        cells = " | ".join(map(_cell, row.cells))
        lines.append(f"| {_plain(row.label)} | {_say(row.verdict)} | {cells} |")
    lines += ["", *(f"- {WORDS['report']}: {_plain_path(file)}" for file in files), ""]
    text = "\n".join(lines)
    identity = "\n".join(f"- {name}: {_plain(value)}" for name, value in identity_rows(content))
    pages = sorted(content.pages, key=lambda page: _URGENT.index(page.verdict.verdict))
    overviews = [
        (_plain(beam_label(page.verdict.beam_number, page.verdict.beam_name)), page.overview)
        for page in pages
    ]
    text += _pictures(overviews, MOST_BYTES - len((text + identity).encode()) - 2)
    return f"{text}\n{identity}\n"


def _pictures(overviews: list[tuple[str, Picture | None]], budget: int) -> str:
    text = ""
    for name, picture in overviews:
        if picture is None:
            continue
        heading = f"\n### {name}\n" if name else ""
        block = f"{heading}\n![{_plain(picture.title)}]({picture.data_uri})\n"
        if len((text + block).encode()) <= budget:
            text += block
    return text


def _bullets(reasons: tuple[str, ...], verdict: Verdict) -> list[str]:
    return [f"- {_plain(reason)}" for reason in headline_reasons(reasons)] or [VERDICT_NOTES[verdict]]


def _cell(cell: Cell) -> str:
    text = _plain(cell.text)
    return text if cell.verdict in (None, Verdict.PASS) else f"**{text} {VERDICT_SYMBOLS[cell.verdict]}**"


def _say(verdict: Verdict) -> str:
    return f"{VERDICT_SYMBOLS[verdict]} {VERDICT_WORDS[verdict]}"


def _plain_path(file: Path) -> str:
    """A path to copy: whole, however long."""
    return _SPECIAL.sub(r"\\\1", clean(str(file)))


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return _SPECIAL.sub(r"\\\1", short(text, _MOST_TEXT))
