"""Case folders for the tests of intake, scan and command line: synthetic, written once, copied each time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from mqi.intake import IntakeRules
from mqi.synthesize import Recipe, SyntheticCase, synthesize_case

NO_MARKER = IntakeRules(ready_marker=None)
RULES = IntakeRules()


class CaseFolder:
    """A case in an inbox, with names for what the tests change."""

    def __init__(self, inbox: Path, folder: Path) -> None:
        self.inbox = inbox
        self.folder = folder

    @property
    def deliveries(self) -> list[Path]:
        return sorted(p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    @property
    def plan(self) -> Path:
        return next(self.folder.glob("RP.*"))

    @property
    def doses(self) -> list[Path]:
        return sorted(self.folder.glob("RD.*"))

    @property
    def ct(self) -> list[Path]:
        return sorted(p for p in self.folder.rglob("CT*") if p.is_file())

    def layer(self, delivery: int, layer: int, suffix: str = "ptn") -> Path:
        return sorted(self.deliveries[delivery].glob(f"*.{suffix}"))[layer - 1]

    def edit_text(self, delivery: int, name: str, old: str, new: str) -> None:
        path = self.deliveries[delivery] / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def edit_dicom(self, path: Path, change: Callable[[Dataset], object]) -> None:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)

    def copy_delivery(self, index: int, new_id: str) -> Path:
        """The same irradiation again, at another time."""
        source = self.deliveries[index]
        target = self.folder / new_id
        shutil.copytree(source, target)
        for name in ("PlanInfo.txt", "PlanRange.txt"):
            path = target / name
            path.write_text(path.read_text().replace(source.name, new_id))
        return target


def adopt(inbox: Path, case: SyntheticCase) -> CaseFolder:
    return CaseFolder(inbox, inbox / case.study.relative_to(case.folder.parent))


@pytest.fixture(name="pristine", scope="session")
def pristine_fixture(tmp_path_factory: pytest.TempPathFactory) -> SyntheticCase:
    """A whole case with CT and TPS doses: two beams of four or five layers."""
    return synthesize_case(tmp_path_factory.mktemp("pristine"), Recipe.small())


@pytest.fixture(name="case")
def case_fixture(tmp_path: Path, pristine: SyntheticCase) -> CaseFolder:
    inbox = tmp_path / "inbox"
    shutil.copytree(pristine.folder.parent, inbox)
    return adopt(inbox, pristine)
