"""The commands of ``python3 -m mqi``: each takes arguments and gives an Answer, without printing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError as ModelError

from mqi.errors import ConfigurationError, ValidationError
from mqi.intake import CaseLook, IntakeRules, find_case_folders, freeze, is_case_folder, look, looks
from mqi.plan import read_plan

__all__ = [
    "OK",
    "REFUSED",
    "Answer",
    "gamma_command",
    "inspect_command",
    "interpret_command",
    "synthesize_command",
]

OK: Final = 0
REFUSED: Final = 1

_WHAT_A_CASE_IS: Final = "A case folder holds an RT Ion Plan and timestamp folders with PlanInfo.txt"


class Answer(NamedTuple):
    """What a command found: the exit status, the lines for a person, the same for a program."""

    status: int
    lines: Sequence[str]
    data: dict[str, Any]


def _rules(arguments: argparse.Namespace) -> IntakeRules:
    try:
        return IntakeRules(ready_marker=None if arguments.no_marker else arguments.marker)
    except ModelError as error:
        raise ConfigurationError(f"the marker {arguments.marker!r} is no file name") from error


def inspect_command(arguments: argparse.Namespace) -> Answer:
    """Say what a case folder holds and what it waits for."""

    rules, case = _rules(arguments), arguments.case.resolve()
    if not case.is_dir():
        raise ValidationError("there is no such folder", path=arguments.case)
    inbox = arguments.inbox or Path(case.anchor)
    folders = _case_folders(case, rules)
    if arguments.plan:
        found = [
            look(folder, inbox, rules, plan_uid=arguments.plan, choose=arguments.choose) for folder in folders
        ]
    else:
        found = [one for folder in folders for one in looks(folder, inbox, rules, choose=arguments.choose)]
    if not found:
        raise ValidationError("holds no case", path=arguments.case, todo=_WHAT_A_CASE_IS)
    well = all(one.fractions and not one.problems and all(f.whole for f in one.fractions) for one in found)
    lines = [line for one in found for line in _described(one)]
    return Answer(OK if well else REFUSED, lines, {"cases": [one.model_dump(mode="json") for one in found]})


def _case_folders(case: Path, rules: IntakeRules) -> list[Path]:
    """The folder itself if it is a case, else the cases below it."""
    return [case] if is_case_folder(case, rules) else list(find_case_folders(case, rules))


def _described(one: CaseLook) -> list[str]:
    lines = [f"{one.key or 'unknown case'}  {one.folder}"]
    if one.plan:
        lines.append(f"  plan {one.plan}, room {one.machine}")
    companions = one.companions
    lines.append(
        f"  {len(companions.ct)} CT slices, TPS doses of {len(companions.beam_doses)} beams"
        + (" and of the plan" if companions.plan_dose else "")
    )
    lines += [f"  REFUSED: {problem}" for problem in one.problems]
    lines += [f"  note: {warning}" for warning in companions.warnings]
    if not one.fractions:
        lines += [f"  waits: {what}" for what in one.waiting_for]
    for fraction in one.fractions:
        state = "whole" if fraction.whole else "refused" if one.problems else "waits"
        lines.append(f"  fraction {fraction.number} ({fraction.fraction_id}): {state}")
        lines += [
            f"    delivery {d.id}: beam {d.beam_number}, layers {d.start_layer}-{d.stop_layer}"
            for d in fraction.deliveries
        ]
        lines += [f"    waits: {what}" for what in fraction.waiting_for]
        lines += [f"    note: {warning}" for warning in fraction.warnings]
    return lines


def interpret_command(arguments: argparse.Namespace) -> Answer:
    """Turn the logs of one whole fraction into spots and accounts."""
    from mqi.log.calibration import builtin_calibration
    from mqi.log.interpret import interpret_beam, save_spots

    rules, case = _rules(arguments), arguments.case.resolve()
    inbox = arguments.inbox or Path(case.anchor)
    folders = _case_folders(case, rules)
    if not folders:
        raise ValidationError("holds no case", path=arguments.case, todo=_WHAT_A_CASE_IS)
    if len(folders) > 1:
        named = ", ".join(str(folder) for folder in folders)
        raise ValidationError(
            f"holds {len(folders)} cases", path=arguments.case, todo=f"Name one of them: {named}"
        )
    found = look(folders[0], inbox, rules, plan_uid=arguments.plan, choose=arguments.choose)
    fraction_id = arguments.fraction
    if fraction_id is None:
        if len(found.fractions) > 1:
            ids = ", ".join(fraction.fraction_id for fraction in found.fractions)
            raise ValidationError(
                f"the case has {len(found.fractions)} fractions",
                case=found.key,
                todo=f"Choose with --fraction: {ids}",
            )
        fraction_id = found.fractions[0].fraction_id if found.fractions else ""
    manifest = freeze(found, fraction_id)
    folder = Path(manifest.folder)
    plan = read_plan(folder / manifest.plan.path)
    calibration = builtin_calibration(manifest.machine)
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines, accounts = [f"{manifest.key}, fraction {manifest.fraction_number}, room {manifest.machine}"], []
    for beam in manifest.beams:
        interpreted = interpret_beam(folder, beam, plan, calibration)
        account = interpreted.account
        save_spots(arguments.out / f"beam_{beam.number}_spots.npz", interpreted.spots)
        (arguments.out / f"beam_{beam.number}_account.json").write_text(account.model_dump_json(indent=1))
        accounts.append(account.model_dump(mode="json"))
        lines.append(
            f"  beam {beam.number} ({beam.name}): {len(account.layers)} layers, "
            f"planned {account.planned_mu:.3f} MU, "
            f"delivered {account.delivered_mu:.3f} MU ({round(account.mu_deviation_percent, 2) + 0.0:+.2f} %)"
        )
    lines += [f"  note: {warning}" for warning in manifest.warnings]
    return Answer(OK, lines, {"manifest": manifest.model_dump(mode="json"), "accounts": accounts})


def synthesize_command(arguments: argparse.Namespace) -> Answer:
    """Write a synthetic case."""
    from mqi.synthesize import SPOILS, Recipe, synthesize_case

    if arguments.list_spoils:
        lines = [f"{spoil.name:24}{spoil.expect:10}{spoil.description}" for spoil in SPOILS.values()]
        data: dict[str, Any] = {
            s.name: {"expect": s.expect, "description": s.description} for s in SPOILS.values()
        }
        return Answer(OK, lines, {"spoils": data})
    if arguments.out is None:
        raise ConfigurationError("no folder was given", todo="Write: python3 -m mqi synthesize OUT")
    make = Recipe.small if arguments.small else Recipe
    try:
        recipe = make(seed=arguments.seed, room=arguments.room, patient_id=arguments.patient_id)
    except ModelError as error:
        raise ConfigurationError(error.errors()[0]["msg"], todo="See --help") from error
    case = synthesize_case(arguments.out, recipe, arguments.spoil)
    lines = [
        f"wrote {case.folder}",
        f"  plan {case.plan_path.name}, {len(case.ct)} CT slices, deliveries: {len(case.deliveries)}",
        f"  look at it: python3 -m mqi inspect {case.study}",
    ]
    wrote: dict[str, Any] = {"folder": str(case.folder), "case": str(case.study), "plan": str(case.plan_path)}
    return Answer(OK, lines, wrote)


def gamma_command(arguments: argparse.Namespace) -> Answer:
    """Compare two doses."""
    from mqi.dose.gamma import GammaCriteria, gamma
    from mqi.dose.rtdose import read_rtdose

    try:
        criteria = GammaCriteria.model_validate(
            {
                "dose_percent": arguments.dose_percent,
                "distance_mm": arguments.distance_mm,
                "threshold_percent": arguments.threshold_percent,
                "local": arguments.local,
            }
        )
    except ModelError as error:
        first = error.errors()[0]
        raise ConfigurationError(f"{first['loc'][0]}: {first['msg']}", todo="See gamma --help") from error
    reference, evaluated = read_rtdose(arguments.reference), read_rtdose(arguments.evaluated)
    result = gamma(reference.dose, evaluated.dose, criteria)
    rate = result.pass_rate_percent
    passed = rate is not None and rate >= arguments.pass_percent
    name = (
        f"{criteria.dose_percent:g} %/{criteria.distance_mm:g} mm {'local' if criteria.local else 'global'}"
    )
    if rate is None:
        lines = [f"gamma {name}: not evaluable, no point of the reference is above the threshold"]
    else:
        lines = [
            f"gamma {name}: {rate:.2f} % of {result.evaluated_points} points pass "
            f"({'reaches' if passed else 'does not reach'} {arguments.pass_percent:g} %)",
            f"  mean {result.mean:.3f}, maximum {result.maximum:.3f}",
        ]
    if reference.patient_id != evaluated.patient_id:
        lines.append("  note: the two doses are of different patients")
    data = {
        "pass_rate_percent": rate,
        "passed": passed,
        "evaluated_points": result.evaluated_points,
        "passed_points": result.passed_points,
        "mean": result.mean,
        "maximum": result.maximum,
        "criteria": criteria.model_dump(mode="json"),
    }
    return Answer(OK if passed else REFUSED, lines, data)
