"""From a look to the manifest: the exact bytes that will be computed."""

from __future__ import annotations

from pathlib import Path

from mqi.case import BeamManifest, CaseManifest, Delivery, FileFact
from mqi.errors import ValidationError
from mqi.files import fact_of, inside
from mqi.intake.fitting import LOG_RECORD_BYTES
from mqi.intake.grouping import FractionLook
from mqi.intake.looking import CaseLook
from mqi.log.planinfo import read_delivery
from mqi.plan import PlanBeam, read_plan

__all__ = ["freeze"]


def freeze(look: CaseLook, fraction_id: str) -> CaseManifest:
    """Hash everything that a fraction's computation will use.

    Raises
    ------
    ValidationError
        The case has problems, has no such fraction, the fraction is not whole, or a file changed since
        the look or while it was read.
    """
    fraction = _whole(look, fraction_id)
    folder = Path(look.folder)
    if not (look.key and look.patient_id and look.plan_uid and look.plan and look.machine):
        raise ValidationError("the folder holds no plan that can be read", path=look.folder)
    plan_fact = _fact(look, look.plan)
    plan = read_plan(folder / look.plan)
    if (plan.sop_uid, plan.patient_id) != (look.plan_uid, look.patient_id):
        raise _changed(look, look.plan)
    beams = tuple(_beam(look, fraction, beam) for beam in plan.treatment_beams)
    companions = look.companions
    return CaseManifest(
        key=look.key,
        patient_id=look.patient_id,
        plan_uid=look.plan_uid,
        folder=look.folder,
        plan=plan_fact,
        machine=look.machine,
        fraction_id=fraction.fraction_id,
        fraction_number=fraction.number,
        beams=beams,
        ct=tuple(_fact(look, path) for path in companions.ct),
        tps_plan_dose=_fact(look, companions.plan_dose) if companions.plan_dose else None,
        warnings=fraction.warnings + companions.warnings,
    )


def _whole(look: CaseLook, fraction_id: str) -> FractionLook:
    if look.problems:
        raise ValidationError(
            "the case cannot be computed as it is: " + "; ".join(look.problems),
            case=look.key,
            path=look.folder,
            todo="Correct the files; the next scan looks again by itself",
        )
    try:
        fraction = look.fraction(fraction_id)
    except KeyError:
        known = ", ".join(one.fraction_id for one in look.fractions) or "none"
        raise ValidationError(
            f"the case has no fraction {fraction_id}", case=look.key, todo=f"Its fractions are: {known}"
        ) from None
    if not fraction.whole:
        raise ValidationError(
            f"fraction {fraction.number} ({fraction_id}) is not whole: " + "; ".join(fraction.waiting_for),
            case=look.key,
            path=look.folder,
            todo="Wait for what is missing, or send it again",
        )
    return fraction


def _beam(look: CaseLook, fraction: FractionLook, beam: PlanBeam) -> BeamManifest:
    deliveries = tuple(d for d in fraction.deliveries if d.beam_number == beam.number)
    tps_dose = dict(look.companions.beam_doses).get(beam.number)
    return BeamManifest(
        number=beam.number,
        name=beam.name,
        layer_count=len(beam.layers),
        meterset_mu=beam.meterset_mu,
        deliveries=deliveries,
        files=tuple(fact for delivery in deliveries for fact in _delivery_facts(look, delivery)),
        tps_dose=_fact(look, tps_dose) if tps_dose else None,
    )


def _delivery_facts(look: CaseLook, delivery: Delivery) -> list[FileFact]:
    folder = Path(look.folder)
    names = ["PlanInfo.txt"]
    names += [
        name for name in ("PlanRange.txt", "PlanRange.csv") if (folder / delivery.folder / name).exists()
    ]
    facts = [_fact(look, f"{delivery.folder}/{name}") for name in names]
    if read_delivery(folder / delivery.folder, folder) != delivery:
        raise _changed(look, delivery.folder)
    for layer in delivery.layers:
        for name in filter(None, (layer.ptn, layer.mgn)):
            fact = _fact(look, f"{delivery.folder}/{name}")
            if not fact.size or fact.size % LOG_RECORD_BYTES[Path(name).suffix.lower()]:
                raise _changed(look, fact.path)
            facts.append(fact)
    return facts


def _fact(look: CaseLook, relative: str) -> FileFact:
    """Hash one file, and make sure that nobody wrote to it meanwhile."""
    folder = Path(look.folder)
    path = inside(folder, relative)
    try:
        before = path.stat()
        fact = fact_of(path, folder)
        after = path.stat()
    except OSError as error:
        raise ValidationError(f"cannot be read ({error.strerror})", case=look.key, path=relative) from None
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (
        after.st_size,
        after.st_mtime_ns,
        after.st_ino,
    ):
        raise _changed(look, relative)
    return fact


def _changed(look: CaseLook, relative: str) -> ValidationError:
    return ValidationError(
        "the file changed while the case was being accepted",
        case=look.key,
        path=relative,
        todo="The transfer was not over; run the case again when it is",
    )
