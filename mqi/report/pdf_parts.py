"""Fonts, styles and building blocks of the PDF."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape

import matplotlib as mpl
from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Image, Paragraph, Table

from mqi.case import Verdict
from mqi.report.content import Picture
from mqi.report.view import Cell, short
from mqi.words import WORDS

__all__ = [
    "BODY",
    "CASE",
    "H2",
    "H3",
    "INK",
    "MARGIN",
    "NOTE",
    "SMALL",
    "TITLE",
    "TONES",
    "WIDTH",
    "NumberedCanvas",
    "boxed",
    "bullets",
    "cell_paragraph",
    "cell_style",
    "coloured",
    "paragraph",
    "picture_flowable",
    "plain_table",
    "register_fonts",
    "ruled_table",
]

MARGIN = 15 * mm
WIDTH = A4[0] - 2 * MARGIN
TONES = {
    Verdict.PASS: ("#1a7f37", "#e9f6ec"),
    Verdict.ACTION: ("#b35900", "#fff3e0"),
    Verdict.FAIL: ("#b42318", "#fdecea"),
    Verdict.NOT_EVALUABLE: ("#57606a", "#eef0f2"),
}
INK, _QUIET, _LINE = HexColor("#1f2933"), HexColor("#52606d"), HexColor("#d9e0e6")
_LONGEST_CELL = 400
"""Characters of a paragraph that may stand in a table: a row that does not fit a page cannot be laid out."""

_LONGEST_TEXT = 2000
"""Characters of a paragraph that may go on over the page."""

_HANGUL = re.compile(r"([\u1100-\u11ff\u3000-\u303f\u3130-\u318f\uac00-\ud7af]+)")
_HANGUL_FONT = "HYGothic-Medium"

BODY, SMALL, NOTE, H2, H3, CASE, TITLE = (
    ParagraphStyle(
        name, fontName=font, fontSize=size, leading=size * 1.3, textColor=colour, spaceBefore=before
    )
    for name, font, size, colour, before in (
        ("body", "Report", 9, INK, 0),
        ("small", "Report", 7, INK, 0),
        ("note", "Report", 7, _QUIET, 2),
        ("h2", "Report-Bold", 12, INK, 10),
        ("h3", "Report-Bold", 9.5, INK, 6),
        ("case", "Report-Bold", 15, INK, 0),
        ("title", "Report-Bold", 10, _QUIET, 0),
    )
)


def picture_flowable(picture: Picture) -> Image:
    """A picture over the whole width."""
    return Image(io.BytesIO(picture.png), width=WIDTH, height=WIDTH * picture.height_px / picture.width_px)


def _markup(text: str, most: int = _LONGEST_CELL) -> str:
    """Escape, and give Korean letters a font that has them."""
    return _HANGUL.sub(rf'<font name="{_HANGUL_FONT}">\1</font>', escape(short(text, most)))


def paragraph(text: str, style: ParagraphStyle) -> Paragraph:
    """A paragraph that shows the text as it is."""
    return Paragraph(_markup(text), style)


def coloured(text: str, colour: str, style: ParagraphStyle) -> Paragraph:
    """A bold paragraph in a colour."""
    return Paragraph(f'<font name="Report-Bold" color="{colour}">{_markup(text)}</font>', style)


def bullets(texts: Iterable[str]) -> list[Flowable]:
    """One bullet for each text."""
    style = ParagraphStyle("bullet", parent=BODY, leftIndent=10, bulletIndent=1, spaceBefore=1)
    return [Paragraph(_markup(text, _LONGEST_TEXT), style, bulletText="•") for text in texts]


def cell_paragraph(cell: Cell, style: ParagraphStyle = BODY) -> Paragraph:
    """The text of a cell; bold and in its verdict's colour where it is beyond tolerance."""
    if cell.verdict in (None, Verdict.PASS):
        return paragraph(cell.text, style)
    return coloured(cell.text, TONES[cell.verdict][0], style)


def cell_style(cell: Cell, column: int, row: int) -> list[tuple[object, ...]]:
    """The table style of a cell: its verdict's wash where it is beyond tolerance."""
    if cell.verdict in (None, Verdict.PASS):
        return []
    return [("BACKGROUND", (column, row), (column, row), HexColor(TONES[cell.verdict][1]))]


def plain_table(rows: Sequence[Sequence[Flowable]], widths: Sequence[float]) -> Table:
    """A table without lines."""
    style = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("TOPPADDING", (0, 0), (-1, -1), 0.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 0.5),
    ]
    return Table(rows, colWidths=widths, style=style)


def ruled_table(
    rows: Sequence[Sequence[Flowable]], widths: Sequence[float], style: Sequence[tuple[object, ...]]
) -> Table:
    """A table with a line below each row; the first row is repeated on each page."""
    base: list[tuple[object, ...]] = [
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE),
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
        ("LEFTPADDING", (0, 0), (-1, -1), 3),
        ("RIGHTPADDING", (0, 0), (-1, -1), 3),
    ]
    return Table(rows, colWidths=widths, style=[*base, *style], repeatRows=1)


def boxed(inside: Flowable | list[Flowable], background: str, edge: str) -> Table:
    """A box with a coloured edge."""
    style = [
        ("BACKGROUND", (0, 0), (-1, -1), HexColor(background)),
        ("LINEBEFORE", (0, 0), (0, -1), 3, HexColor(edge)),
        ("LEFTPADDING", (0, 0), (-1, -1), 8),
    ]
    return Table([[inside]], colWidths=(WIDTH,), style=style)


class NumberedCanvas(Canvas):  # type: ignore[misc]
    """A canvas that knows how many pages there are: the footers are drawn when all pages are."""

    def __init__(self, *args: object, footer: str, **options: object) -> None:
        super().__init__(*args, **options)
        self._footer = footer
        self._finished: list[dict[str, object]] = []

    def showPage(self) -> None:  # noqa: N802
        """Keep the page for later."""
        self._finished.append(dict(self.__dict__))
        self._startPage()

    def save(self) -> None:
        """Draw the footers and write."""
        for state in self._finished:
            self.__dict__.update(state)
            page = WORDS["page_of"].format(page=self._pageNumber, pages=len(self._finished))
            self.setFont("Report", 7)
            self.setFillColor(_QUIET)
            self.drawString(MARGIN, 9 * mm, self._footer)
            self.drawRightString(A4[0] - MARGIN, 9 * mm, page)
            super().showPage()
        super().save()


@cache
def register_fonts() -> None:
    """DejaVu Sans, which matplotlib ships; for Korean the font of the viewer's own."""
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    pdfmetrics.registerFont(TTFont("Report", str(folder / "DejaVuSans.ttf")))
    pdfmetrics.registerFont(TTFont("Report-Bold", str(folder / "DejaVuSans-Bold.ttf")))
    pdfmetrics.registerFont(UnicodeCIDFont(_HANGUL_FONT))
