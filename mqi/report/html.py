"""The report as one HTML file that opens anywhere, without a network and without a second file."""

from __future__ import annotations

from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template

from mqi.case import Verdict
from mqi.report import tables, view
from mqi.report.content import BeamPage, ReportContent
from mqi.words import VERDICT_NOTES, VERDICT_SYMBOLS, VERDICT_WORDS, WORDS

__all__ = ["html_report"]


def html_report(content: ReportContent) -> str:
    """Lay the content out. Whatever a name holds, it is shown as text."""
    verdict = content.verdict
    clean = view.clean
    return _template().render(
        w=WORDS,
        verdict_words=VERDICT_WORDS,
        symbols=VERDICT_SYMBOLS,
        notes=VERDICT_NOTES,
        content=content,
        v=verdict,
        case_key=view.short(content.case_key),
        version=view.short(content.software_version),
        identity=view.identity_rows(content),
        reasons=view.headline_reasons(verdict.reasons),
        headings=view.SUMMARY_HEADINGS,
        rows=view.summary_rows(content),
        pages=[_page(page, content) for page in content.pages],
        criteria=tables.criteria_rows(verdict.criteria),
        gammas=tables.gamma_rows(tables.gammas_of(content)),
        computing=tables.computing_rows(content),
        not_evaluated=(WORDS["not_evaluated"], list(map(clean, verdict.not_evaluated))),
        warnings=(WORDS["warnings"], list(map(clean, content.warnings))),
        provenance=tables.provenance(content),
    )


def _page(page: BeamPage, content: ReportContent) -> dict[str, object]:
    beam = page.verdict
    headings, layers = tables.layer_rows(beam, content.verdict.criteria)
    return {
        "beam": beam,
        "label": view.beam_label(beam.beam_number, beam.beam_name),
        "open": beam.verdict is not Verdict.PASS,
        "reasons": list(map(view.clean, beam.reasons)),
        "pictures": page.pictures,
        "layer_headings": headings,
        "layers": layers,
        "account": tables.account_rows(beam),
    }


@cache
def _template() -> Template:
    source = resources.files("mqi.report").joinpath("template.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
