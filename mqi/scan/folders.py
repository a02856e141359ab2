"""Keeping the list of case folders up to date by looking only into folders that changed.

A folder's modification time changes when an entry is added, removed or renamed in it. So a folder that
has its remembered time has its remembered subfolders, and one ``stat`` replaces a listing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR

from mqi.intake.finding import plan_files_in
from mqi.intake.rules import ROOM_FOLDER, IntakeRules, delivery_kind, is_delivery, is_text, subfolders
from mqi.scan.index import CASE, PASSAGE, PLAN_ONLY

__all__ = ["RACY_S", "FolderChanges", "case_paths", "changed_folders"]

RACY_S = 10.0
"""A time younger than this is not remembered: the folder may change again within one tick of its clock."""


@dataclass
class FolderChanges:
    """The difference to what was remembered. Paths are relative to the inbox."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)  # mtime_ns, kind; new or changed
    gone: set[str] = field(default_factory=set)
    unnameable: list[str] = field(default_factory=list)  # names that are not UTF-8, in ASCII


def changed_folders(
    root: Path, rules: IntakeRules, known: Mapping[str, tuple[int, str]], now: float
) -> FolderChanges:
    """Compare the folders below the inbox with the remembered ones.

    ``known`` maps a path to its time and kind; ``now`` is UNIX time. After the changes are applied,
    case_paths gives the folders that find_case_folders would yield.
    """
    walk = _Walk(root, rules, known, now)
    changed = walk.outdated()
    for path in sorted(changed, key=lambda path: path.count("/"), reverse=True):
        walk.enter(path)
    return walk.changes


class _Walk:
    def __init__(
        self, root: Path, rules: IntakeRules, known: Mapping[str, tuple[int, str]], now: float
    ) -> None:
        self.root = root
        self.rules = rules
        self.known = known
        self.now = now
        self.changes = FolderChanges()

    def outdated(self) -> list[str]:
        """Folders whose time is not the remembered one; those that vanished are noted as gone."""
        changed = [] if "" in self.known else [""]
        prefix = f"{self.root}/"
        stat, gone = os.stat, self.changes.gone
        for path, (mtime_ns, _) in self.known.items():
            try:
                if stat(prefix + path).st_mtime_ns != mtime_ns:
                    changed.append(path)
            except OSError:
                gone.add(path)
        return changed

    def enter(self, path: str) -> None:
        """Look into one folder, and into those of its subfolders that are not known yet."""
        if path in self.changes.found:
            return
        folder = self.root / path
        try:
            facts = folder.lstat()
        except OSError:
            self.changes.gone.add(path)
            return
        if not S_ISDIR(facts.st_mode):
            self.changes.gone.add(path)
            return
        if path and is_delivery(folder, self.rules):
            self._became_delivery(path)
            return
        depth = path.count("/") + 1 if path else 0
        has_delivery = unsure = False
        for child in subfolders(folder, self.rules):
            below = f"{path}/{child.name}" if path else child.name
            if not is_text(child.name):
                self.changes.unnameable.append(f"{below!a}")
                unsure = True
                continue
            if below in self.known and below not in self.changes.gone:
                continue
            kind = delivery_kind(child, self.rules)
            if kind is not None:
                has_delivery = True
                unsure = unsure or kind == "empty"
            elif depth < self.rules.max_depth:
                self.enter(below)
        racy = unsure or self.now - facts.st_mtime_ns / 1e9 < RACY_S
        self.changes.found[path] = (0 if racy else facts.st_mtime_ns, self._kind(path, folder, has_delivery))

    def _became_delivery(self, path: str) -> None:
        """A folder that was empty got log files: it is part of the case above it."""
        inside = [one for one in (*self.known, *self.changes.found) if one.startswith(f"{path}/")]
        self.changes.gone |= {path, *inside}
        for one in inside:
            self.changes.found.pop(one, None)
        above = path.rpartition("/")[0]
        self.changes.found.pop(above, None)
        self.enter(above)

    def _kind(self, path: str, folder: Path, has_delivery: bool) -> str:
        if not path or ROOM_FOLDER.fullmatch(folder.name):
            return PASSAGE
        if has_delivery:
            return CASE
        return PLAN_ONLY if plan_files_in(folder, self.rules) else PASSAGE


def case_paths(kinds: Mapping[str, str]) -> list[str]:
    """The folders that are cases now: a plan above other cases is none, its deliveries belong to them."""
    cases = [path for path, kind in kinds.items() if kind != PASSAGE]
    lonely = tuple(f"{path}/" for path, kind in kinds.items() if kind == PLAN_ONLY)
    if not lonely:
        return cases
    below = [path for path in cases if path.startswith(lonely)]
    above = {prefix[:-1] for prefix in lonely if any(path.startswith(prefix) for path in below)}
    return [path for path in cases if path not in above]
