"""Write the report: both files are there whole, or the old ones still are."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from mqi.errors import ResourceError
from mqi.files import atomic_path
from mqi.report.content import ReportContent, ReportFiles
from mqi.report.html import html_report
from mqi.report.pdf import pdf_report

__all__ = ["write_report"]


def write_report(folder: Path, content: ReportContent) -> ReportFiles:
    """Write ``report.html`` and ``report.pdf`` into ``folder``, which is made if it is missing.

    Both are laid out and on the disk under other names before either takes its place.

    Raises ResourceError when the folder cannot be written.
    """
    files = ReportFiles(html=folder / "report.html", pdf=folder / "report.pdf")
    written = ((files.html, html_report(content).encode("utf-8")), (files.pdf, pdf_report(content)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as both:
            for path, data in written:
                both.enter_context(atomic_path(path)).write_bytes(data)
    except OSError as error:
        raise ResourceError(
            f"the report could not be written: {error.strerror or error}",
            case=content.case_key,
            path=folder,
            todo="Look at the disk's free space and at who may write there; the step is repeated by itself.",
        ) from error
    return files
