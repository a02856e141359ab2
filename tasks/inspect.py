"""inspect_case: is it whole, and what exactly will be computed?"""

from __future__ import annotations

import time
from pathlib import Path

from prefect import task

from mqi.case import CaseManifest
from mqi.errors import ValidationError
from mqi.intake import CaseLook, IntakeRules, find_case_folders, freeze, is_case_folder, is_settled, look

__all__ = ["inspect_case"]


@task(name="inspect-case", task_run_name="inspect", persist_result=False)
def inspect_case(
    case: str,
    plan: str | None,
    fraction: str | None,
    deliveries: list[str] | None,
    inbox: tuple[str, ...],
    rules: IntakeRules,
) -> CaseManifest:
    """Look at a case folder and freeze one fraction of it. Never cached: it is looked at as it is now.

    Parameters
    ----------
    case
        The case folder, or a folder that holds one: absolute, or a name below one of the inboxes.
    plan
        SOP instance UID of the plan, where the folder holds several.
    fraction
        The fraction's id (its first delivery). None: the first whole one.
    deliveries
        A person's choice of deliveries, where the same beam was delivered twice.
    """
    named, root = _find(case, inbox)
    folder = _case_in(named, rules)
    first = look(folder, root, rules, plan_uid=plan, choose=deliveries or ())
    if time.time() - _newest_change(folder) < rules.settle_s:
        time.sleep(rules.settle_s)
    manifest = freeze(first, fraction or _first_whole(first))
    if not is_settled(first, look(folder, root, rules, plan_uid=plan, choose=deliveries or ())):
        raise ValidationError(
            "a file changed while the case was read",
            path=folder,
            todo="Wait until it is copied; then press Retry",
        )
    return manifest


def _find(case: str, inbox: tuple[str, ...]) -> tuple[Path, Path]:
    """The case folder and the inbox that it lies in (its parent, where it lies in none)."""
    for root in map(Path, inbox):
        folder = root / case
        if folder.is_dir() and folder.resolve().is_relative_to(root.resolve()):
            return folder, root
    folder = Path(case)
    if not folder.is_absolute() or not folder.is_dir():
        raise ValidationError(
            "there is no such folder",
            path=case,
            todo="Give the absolute path of a case, or its name in the inbox",
        )
    return folder, folder.parent


def _case_in(named: Path, rules: IntakeRules) -> Path:
    """The folder itself, or the one case in it: a person names the patient's folder."""
    if is_case_folder(named, rules):
        return named
    cases = list(find_case_folders(named, rules))
    if len(cases) > 1:
        names = ", ".join(str(case.relative_to(named)) for case in cases)
        raise ValidationError(
            f"there are {len(cases)} cases in this folder: {names}",
            path=named,
            todo="Give one of their folders",
        )
    return cases[0] if cases else named


def _first_whole(seen: CaseLook) -> str:
    for fraction in seen.fractions:
        if fraction.whole:
            return fraction.fraction_id
    if seen.problems:
        raise ValidationError(
            "the case cannot be computed as it is: " + "; ".join(seen.problems),
            case=seen.key,
            path=seen.folder,
            todo="Correct the files; the scanner looks again by itself and starts the case once it is right",
        )
    missing = [
        f"fraction {fraction.number}: {'; '.join(fraction.waiting_for)}" for fraction in seen.fractions
    ]
    raise ValidationError(
        "; ".join(missing) or "; ".join(seen.waiting_for) or "no delivery in it",
        case=seen.key,
        path=seen.folder,
        todo="Complete the case and press Retry; the scanner starts it by itself once it is whole",
    )


def _newest_change(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)
