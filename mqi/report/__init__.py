"""The QA report: one HTML file and one PDF, from the same content.

What draws and what writes stand in ``mqi.report.pictures`` and ``mqi.report.write``: importing them takes a
second, which only a process that draws pays.
"""

from __future__ import annotations

from mqi.report.content import (
    BeamPage,
    CalibrationFacts,
    EngineFacts,
    FileHash,
    Picture,
    ReportContent,
    ReportFiles,
)
from mqi.report.markdown import beam_artifact_markdown, case_artifact_markdown

__all__ = [
    "BeamPage",
    "CalibrationFacts",
    "EngineFacts",
    "FileHash",
    "Picture",
    "ReportContent",
    "ReportFiles",
    "beam_artifact_markdown",
    "case_artifact_markdown",
]
