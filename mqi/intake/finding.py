"""Which folders below the inbox are cases. Decided by what lies in a folder, never by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mqi.errors import ConfigurationError
from mqi.intake.dicom import ION_PLAN, headers_of
from mqi.intake.rules import ROOM_FOLDER, IntakeRules, files_in, is_delivery, is_text, subfolders

__all__ = [
    "find_case_folders",
    "holds_deliveries",
    "is_case_folder",
    "plan_files",
    "plan_files_in",
    "resolved_root",
]


def find_case_folders(root: Path, rules: IntakeRules) -> Iterator[Path]:
    """Yield each case folder below the inbox, in the order of their paths.

    A case folder holds timestamp folders, or an RT Ion Plan that has none below it yet. Layouts with and
    without room folder (G1, G2), patient folder and study folder are all found. The inbox itself and the
    room folders are never cases; links are never followed.

    Raises
    ------
    ConfigurationError
        When the inbox is not a folder that can be read.
    """
    yield from _cases_below(resolved_root(root), rules, rules.max_depth)


def resolved_root(root: Path) -> Path:
    """The inbox without links in its own path. Raises ConfigurationError when it is no readable folder."""
    try:
        resolved = root.resolve(strict=True)
        next(resolved.iterdir(), None)
    except OSError as error:
        raise ConfigurationError(
            f"the inbox cannot be read ({error.strerror})",
            path=root,
            todo="Check that it exists, is mounted, and may be read by this account",
        ) from None
    return resolved


def _cases_below(folder: Path, rules: IntakeRules, depth: int) -> Iterator[Path]:
    if depth == 0:
        return
    for child in subfolders(folder, rules):
        if not is_delivery(child, rules):
            yield from _cases_at(child, rules, depth)


def _cases_at(folder: Path, rules: IntakeRules, depth: int) -> Iterator[Path]:
    """The folder itself if it is a case, and the cases nested in it."""
    below = _cases_below(folder, rules, depth - 1)
    if ROOM_FOLDER.fullmatch(folder.name):
        yield from below
    elif holds_deliveries(folder, rules):
        yield folder
        yield from below
    else:
        nested = list(below)
        if not nested and plan_files_in(folder, rules):
            yield folder
        yield from nested


def is_case_folder(folder: Path, rules: IntakeRules) -> bool:
    """Whether this very folder holds timestamp folders or an RT Ion Plan."""
    return holds_deliveries(folder, rules) or bool(plan_files_in(folder, rules))


def holds_deliveries(folder: Path, rules: IntakeRules) -> bool:
    """Whether a timestamp folder lies directly in this folder."""
    return any(is_delivery(child, rules) for child in subfolders(folder, rules))


def plan_files(folder: Path, rules: IntakeRules) -> tuple[str, ...]:
    """RT Ion Plans of a case, relative to its folder: those directly in it, else those one folder down."""
    direct = plan_files_in(folder, rules)
    if direct:
        return direct
    return tuple(
        f"{child.name}/{name}"
        for child in subfolders(folder, rules)
        if not is_delivery(child, rules) and not holds_deliveries(child, rules)
        for name in plan_files_in(child, rules)
    )


def plan_files_in(folder: Path, rules: IntakeRules) -> tuple[str, ...]:
    """Names of the RT Ion Plans directly in a folder."""
    files = tuple(file for file in files_in(folder, rules) if is_text(file.path))
    headers = headers_of(folder, files)
    return tuple(header.path for header in headers if header.sop_class == ION_PLAN)
