"""What lies in a case folder, read once: plans, deliveries, DICOM headers, names and sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from mqi.case import Delivery
from mqi.errors import ValidationError
from mqi.files import sha256_of
from mqi.intake.dicom import Header, headers_of
from mqi.intake.finding import plan_files
from mqi.intake.grouping import Arriving
from mqi.intake.rules import (
    IntakeRules,
    Seen,
    files_below,
    irradiation_time,
    is_delivery,
    is_text,
    marker_has_arrived,
    subfolders,
)
from mqi.log.planinfo import read_delivery
from mqi.plan import IonPlan, machine_room, read_plan

__all__ = ["CaseContent", "leads_inside", "read_content", "signature_of_files"]


class CaseContent(NamedTuple):
    """Everything in a case folder, before it is known which plan it belongs to."""

    path: Path
    seen: dict[str, Seen]
    headers: tuple[Header, ...]
    plans: dict[str, IonPlan]  # by relative path
    deliveries: tuple[Delivery, ...]
    arriving: tuple[Arriving, ...]
    problems: tuple[str, ...]
    waiting_for: tuple[str, ...]
    signature: str


def signature_of_files(files: Sequence[Seen], marker: bool) -> str:
    """Digest over names, sizes and times, and whether the ready marker has arrived."""
    digest = hashlib.sha256(f"{marker}".encode())
    for seen in files:
        digest.update(
            f"\0{seen.path}\0{seen.size}\0{seen.mtime_ns}\0{seen.is_link}".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def read_content(path: Path, inbox: Path, rules: IntakeRules) -> CaseContent:
    """Read a case folder below the inbox (both resolved). What cannot be read is a problem, not an error."""
    every = files_below(path, rules)
    files = tuple(file for file in every if is_text(file.path))
    marker = marker_has_arrived(path, inbox, rules)
    seen = {file.path: file for file in files}
    logs = {
        child.name for child in subfolders(path, rules) if is_text(child.name) and is_delivery(child, rules)
    }
    beside_logs = tuple(
        file for file in files if file.path.partition("/")[0] not in logs or "/" not in file.path
    )
    headers = headers_of(path, beside_logs)
    problems = [f"{header.path} {header.damage}" for header in headers if header.damage]
    problems += [f"the name {file.path!a} is not UTF-8" for file in every if not is_text(file.path)]
    problems += [
        f"{file.path} is a link out of the case folder"
        for file in files
        if file.is_link and not leads_inside(path, file.path)
    ]
    waiting = [] if marker else [f"ready marker {rules.ready_marker} has not arrived"]
    waiting += [f"{f.path} has 0 bytes" for f in beside_logs if not f.size and f.name[-4:].lower() == ".dcm"]
    plans, plan_problems = _read_plans(path, plan_files(path, rules))
    deliveries: list[Delivery] = []
    arriving: list[Arriving] = []
    for name in sorted(logs):
        lacking = _not_readable_yet(name, seen)
        if lacking:
            arriving.append(Arriving(id=name, at=_arrival(path / name), waiting_for=lacking))
            continue
        try:
            deliveries.append(read_delivery(path / name, path))
        except ValidationError as error:
            problems.append(f"{_relative(error, path, name)}: {error.what}")
    return CaseContent(
        path=path,
        seen=seen,
        headers=headers,
        plans=plans,
        deliveries=tuple(deliveries),
        arriving=tuple(arriving),
        problems=tuple(problems + plan_problems),
        waiting_for=tuple(waiting),
        signature=signature_of_files(every, marker),
    )


def leads_inside(folder: Path, path: str) -> bool:
    """Whether a link in the case folder leads to something that lies in it too."""
    return (folder / path).resolve().is_relative_to(folder)


def _not_readable_yet(name: str, seen: dict[str, Seen]) -> str:
    """Which of PlanInfo and PlanRange is missing or still empty; "" when both can be read."""
    info = seen.get(f"{name}/PlanInfo.txt")
    table = seen.get(f"{name}/PlanRange.txt") or seen.get(f"{name}/PlanRange.csv")
    for what, file in (("PlanInfo.txt", info), ("PlanRange.txt", table)):
        if file is None:
            return f"{what} has not arrived"
        if not file.size:
            return f"{file.name} has 0 bytes"
    return ""


def _arrival(folder: Path) -> datetime:
    """When an unread delivery was irradiated: by the folder's name, else by its time on this disk."""
    named = irradiation_time(folder.name)
    if named is not None:
        return named
    try:
        return datetime.fromtimestamp(folder.stat().st_mtime)  # the machine's clock has no zone
    except OSError:
        return datetime.min


def _relative(error: ValidationError, folder: Path, fallback: str) -> str:
    path = Path(error.path) if error.path else None
    return path.relative_to(folder).as_posix() if path and path.is_relative_to(folder) else fallback


def _read_plans(folder: Path, paths: Sequence[str]) -> tuple[dict[str, IonPlan], list[str]]:
    """Read the plans; the same plan twice is one plan when the bytes agree, else a problem."""
    plans: dict[str, IonPlan] = {}
    problems: list[str] = []
    for path in paths:
        try:
            plan = read_plan(folder / path)
            machine_room(plan.machine)
        except ValidationError as error:
            problems.append(f"{path}: {error.what}")
            continue
        twin = next((known for known, other in plans.items() if other.sop_uid == plan.sop_uid), None)
        if twin is None:
            plans[path] = plan
        elif sha256_of(folder / twin) != sha256_of(folder / path):
            problems.append(f"{twin} and {path} are different plans under the same UID")
    return plans, problems
