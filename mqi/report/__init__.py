"""The QA report: one HTML file and one PDF, from the same content."""

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
from mqi.report.pictures import BeamScene, LayerTime, beam_page
from mqi.report.write import write_report

__all__ = [
    "BeamPage",
    "BeamScene",
    "CalibrationFacts",
    "EngineFacts",
    "FileHash",
    "LayerTime",
    "Picture",
    "ReportContent",
    "ReportFiles",
    "beam_artifact_markdown",
    "beam_page",
    "case_artifact_markdown",
    "write_report",
]
