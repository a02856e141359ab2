"""The report as a PDF: the same words, tables and pictures as the HTML file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import partial

from reportlab.lib.colors import HexColor, white
from reportlab.lib.enums import TA_CENTER
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, KeepTogether, PageBreak, Paragraph, SimpleDocTemplate, Spacer, Table

from mqi.report import tables, view
from mqi.report.content import BeamPage, ReportContent
from mqi.report.pdf_parts import (
    BODY,
    CASE,
    H2,
    H3,
    INK,
    MARGIN,
    NOTE,
    SMALL,
    TITLE,
    TONES,
    WIDTH,
    NumberedCanvas,
    boxed,
    bullets,
    cell_paragraph,
    cell_style,
    coloured,
    paragraph,
    picture_flowable,
    plain_table,
    register_fonts,
    ruled_table,
)
from mqi.words import VERDICT_NOTES, VERDICT_SYMBOLS, VERDICT_WORDS, WORDS

__all__ = ["pdf_report"]


def pdf_report(content: ReportContent) -> bytes:
    """Lay the content out on A4. The same content gives the same bytes."""
    register_fonts()
    buffer = io.BytesIO()
    case_key = view.short(content.case_key, 90)
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=13 * mm,
        bottomMargin=17 * mm,
        title=f"{VERDICT_WORDS[content.verdict.verdict]} – {case_key}",
        author=WORDS["software"],
        invariant=1,
    )
    footer = f"{case_key}   ·   {WORDS['software']} {view.short(content.software_version, 40)}"
    if content.engine.analytic:
        footer = f"{WORDS['not_clinical']}   ·   {footer}"
    document.build(_story(content), canvasmaker=partial(NumberedCanvas, footer=footer))
    return buffer.getvalue()


def _story(content: ReportContent) -> list[Flowable]:
    verdict = content.verdict
    story: list[Flowable] = []
    if content.engine.analytic:
        banner = paragraph(f"{WORDS['not_clinical']}. {WORDS['not_clinical_why']}", BODY)
        story += [boxed(banner, "#fff8c5", "#9a6700"), Spacer(1, 3 * mm)]
    story += [paragraph(WORDS["title"], TITLE), Spacer(1, 2 * mm), _head(content), Spacer(1, 3 * mm)]
    if verdict.reasons:
        tone, wash = TONES[verdict.verdict]
        reasons = [paragraph(WORDS["why"], H3), *bullets(view.headline_reasons(verdict.reasons))]
        story.append(boxed(reasons, wash, tone))
    story += [paragraph(WORDS["beams"], H2), _summary(content), paragraph(WORDS["summary_note"], NOTE)]
    for title, items in (
        (WORDS["not_evaluated"], verdict.not_evaluated),
        (WORDS["warnings"], content.warnings),
    ):
        if items:
            story += [paragraph(title, H3), *bullets(items)]
    story += [Spacer(1, 14 * mm), _signature()]
    for page in content.pages:
        story += [PageBreak(), *_beam(page, content)]
    return [*story, PageBreak(), *_back(content)]


def _head(content: ReportContent) -> Table:
    case_key = view.short(content.case_key, 90)
    tone, _ = TONES[content.verdict.verdict]
    word = VERDICT_WORDS[content.verdict.verdict]
    size = 24 if len(word) < 8 else 17
    badge = [
        _badge_line(VERDICT_SYMBOLS[content.verdict.verdict], 28),
        _badge_line(word, size),
        _badge_line(VERDICT_NOTES[content.verdict.verdict], 7.5),
    ]
    rows = view.identity_rows(content)
    pairs = [[paragraph(name, NOTE), paragraph(value, BODY)] for name, value in rows]
    who = [
        paragraph(case_key, CASE),
        Spacer(1, 1 * mm),
        plain_table(pairs, (27 * mm, WIDTH - 83 * mm)),
    ]
    return Table(
        [[badge, "", who]],
        colWidths=(50 * mm, 4 * mm, WIDTH - 54 * mm),
        style=[
            ("BACKGROUND", (0, 0), (0, 0), HexColor(tone)),
            ("VALIGN", (0, 0), (0, 0), "MIDDLE"),
            ("VALIGN", (2, 0), (2, 0), "TOP"),
            ("LEFTPADDING", (2, 0), (2, 0), 0),
            ("TOPPADDING", (2, 0), (2, 0), 0),
        ],
    )


def _badge_line(text: str, size: float) -> Paragraph:
    style = ParagraphStyle(
        "badge",
        fontName="Report-Bold",
        fontSize=size,
        leading=size * 1.25,
        textColor=white,
        alignment=TA_CENTER,
    )
    return paragraph(text, style)


def _summary(content: ReportContent) -> Table:
    rows: list[list[Paragraph]] = [[paragraph(heading, NOTE) for heading in view.SUMMARY_HEADINGS]]
    style: list[tuple[object, ...]] = []
    for number, row in enumerate(view.summary_rows(content), start=1):
        tone, _ = TONES[row.verdict]
        chip = f"{VERDICT_SYMBOLS[row.verdict]} {VERDICT_WORDS[row.verdict]}"
        rows.append([paragraph(row.label, BODY), coloured(chip, "#ffffff", SMALL)])
        style.append(("BACKGROUND", (1, number), (1, number), HexColor(tone)))
        for column, cell in enumerate(row.cells, start=2):
            rows[-1].append(cell_paragraph(cell))
            style += cell_style(cell, column, number)
    widths = [29 * mm, 25 * mm, 20 * mm, 20 * mm, 18 * mm, 31 * mm]
    return ruled_table(rows, [*widths, WIDTH - sum(widths)], style)


def _beam(page: BeamPage, content: ReportContent) -> list[Flowable]:
    beam = page.verdict
    tone, _ = TONES[beam.verdict]
    title = f"{VERDICT_SYMBOLS[beam.verdict]} {VERDICT_WORDS[beam.verdict]}"
    label = view.beam_label(beam.beam_number, beam.beam_name)
    story: list[Flowable] = [coloured(f"{title}   {label}", tone, CASE), *bullets(beam.reasons)]
    for picture in page.pictures:
        story.append(
            KeepTogether(
                [paragraph(picture.title, H3), picture_flowable(picture), paragraph(picture.caption, NOTE)]
            )
        )
    headings, layers = tables.layer_rows(beam, content.verdict.criteria)
    if layers:
        rows = [[paragraph(heading, NOTE) for heading in headings]]
        style: list[tuple[object, ...]] = [
            ("TOPPADDING", (0, 0), (-1, -1), 0.5),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 0.5),
        ]
        for number, layer in enumerate(layers, start=1):
            rows.append([cell_paragraph(cell, SMALL) for cell in layer])
            for column, cell in enumerate(layer):
                style += cell_style(cell, column, number)
        story += [
            paragraph(WORDS["layers"], H3),
            ruled_table(rows, [WIDTH / len(headings)] * len(headings), style),
        ]
    account = [[paragraph(name, SMALL), paragraph(value, SMALL)] for name, value in tables.account_rows(beam)]
    table = plain_table(account, (70 * mm, WIDTH - 70 * mm))
    return [
        *story,
        KeepTogether([paragraph(WORDS["account"], H3), table, paragraph(WORDS["account_note"], NOTE)]),
    ]


def _back(content: ReportContent) -> list[Flowable]:
    verdict = content.verdict
    widths = (45 * mm, WIDTH - 45 * mm)

    def pairs(rows: Iterable[tuple[str, str]]) -> Table:
        return plain_table(
            [[paragraph(name, SMALL), paragraph(value, SMALL)] for name, value in rows], widths
        )

    story: list[Flowable] = [
        paragraph(WORDS["details"], H2),
        paragraph(WORDS["criteria"], H3),
        pairs(tables.criteria_rows(verdict.criteria)),
        paragraph(WORDS["criteria_note"], NOTE),
        paragraph(WORDS["assumptions"], H3),
        *bullets(verdict.assumptions),
    ]
    gammas = [
        [paragraph(text, SMALL) for text in row] for row in tables.gamma_rows(tables.gammas_of(content))
    ]
    if len(gammas) > 1:
        wide = [30 * mm, 30 * mm, 30 * mm]
        rest = [(WIDTH - sum(wide)) / 6] * 6
        story += [paragraph(WORDS["gammas"], H3), ruled_table(gammas, [*wide, *rest], [])]
    story += [paragraph(WORDS["computing"], H3), pairs(tables.computing_rows(content))]
    for title, files in tables.provenance(content):
        if files:
            rows = [[paragraph(name, SMALL), paragraph(sha256, SMALL)] for name, sha256 in files]
            heading = f"{WORDS['provenance']}: {title}"
            story += [paragraph(heading, H3), plain_table(rows, (70 * mm, WIDTH - 70 * mm))]
    return story


def _signature() -> Table:
    names = (
        f"{WORDS['signature']}: {WORDS['signature_name']}",
        "",
        WORDS["signature_date"],
        "",
        WORDS["signature_sign"],
    )
    lines = [("LINEABOVE", (column, 0), (column, 0), 0.6, INK) for column in (0, 2, 4)]
    gap = 8 * mm
    third = (WIDTH - 2 * gap) / 5
    return Table(
        [[paragraph(name, NOTE) for name in names]],
        colWidths=(2 * third, gap, third, gap, 2 * third),
        style=lines,
    )
