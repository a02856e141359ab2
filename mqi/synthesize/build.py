"""Write a whole case folder, as planning system, record system and machine leave it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mqi.errors import ConfigurationError
from mqi.log.calibration import builtin_calibration
from mqi.plan import IonPlan
from mqi.synthesize.delivery import SyntheticDelivery, schedule, write_delivery
from mqi.synthesize.dicom import write_ct, write_plan
from mqi.synthesize.phantom import make_phantom
from mqi.synthesize.recipe import Recipe
from mqi.synthesize.sobp import plan_beams, setup_beam
from mqi.synthesize.tps import write_tps_doses

__all__ = ["READY_MARKER", "SyntheticCase", "mark_ready", "write_case"]

READY_MARKER = "_CASE_READY"


@dataclass(frozen=True)
class SyntheticCase:
    """A case that was written, and the truth about it.

    Attributes
    ----------
    folder, study
        The patient's folder, and the study's folder in it.
    plan, plan_path, ct, doses
        The plan as planned and its file; CT slices; RT Dose files by DICOM beam number, None for the sum.
    planned_mu, delivered_mu
        By DICOM beam number: meterset in the plan, and on the beam-on rows of all its deliveries.
    """

    folder: Path
    study: Path
    recipe: Recipe
    plan: IonPlan
    plan_path: Path
    ct: tuple[Path, ...]
    doses: dict[int | None, Path]
    deliveries: tuple[SyntheticDelivery, ...]

    @property
    def planned_mu(self) -> dict[int, float]:
        """Planned meterset of each treatment beam."""
        return {beam.number: beam.meterset_mu for beam in self.plan.treatment_beams}

    @property
    def delivered_mu(self) -> dict[int, float]:
        """Delivered meterset of each treatment beam, over all deliveries."""
        total = dict.fromkeys(self.planned_mu, 0.0)
        for delivery in self.deliveries:
            total[delivery.shot.beam_number] += sum(delivery.layer_mu.values())
        return total


def write_case(out: Path, recipe: Recipe, *, folder_name: str | None = None) -> SyntheticCase:
    """Write ``<out>/<patient ID>/<study UID>/...``, all but the ready marker.

    A second case of the same patient (another seed or revision) goes beside the first one; the marker is
    taken away before it is written. ``folder_name`` stands in place of the patient ID.

    Raises
    ------
    ConfigurationError
        The study's folder is there already, or the recipe asks for what no beam can do.
    """
    folder = out / (folder_name or recipe.patient_id)
    study = folder / recipe.uid("study")
    if study.exists():
        raise ConfigurationError(
            "this synthetic case is there already", path=study, todo="Choose another folder, seed or revision"
        )
    phantom = make_phantom(recipe)
    beams = plan_beams(recipe, phantom)
    calibration = builtin_calibration(recipe.room)
    (folder / READY_MARKER).unlink(missing_ok=True)
    study.mkdir(parents=True)
    every_beam = (setup_beam(recipe.room, phantom.isocentre_mm), *beams)
    plan_path = write_plan(study, recipe, every_beam)
    plan = IonPlan(
        path=plan_path,
        sop_uid=recipe.uid("plan"),
        study_uid=recipe.uid("study"),
        frame_of_reference_uid=recipe.uid("frame of reference"),
        patient_id=recipe.patient_id,
        label=f"{recipe.room} Treatment",
        machine=recipe.room,
        patient_position="HFS",
        fractions_planned=max(recipe.fractions, 14),
        beams=every_beam,
    )
    ct = write_ct(study / "CT", recipe, phantom)
    doses = write_tps_doses(study, recipe, plan, calibration, ct) if recipe.tps_dose else {}
    deliveries = tuple(
        write_delivery(
            study, recipe, shot, beam=plan.beam(shot.beam_number), calibration=calibration, index=index
        )
        for index, shot in enumerate(schedule(recipe, beams))
    )
    return SyntheticCase(folder, study, recipe, plan, plan_path, ct, doses, deliveries)


def mark_ready(folder: Path) -> None:
    """Set the ready marker: the transfer is over."""
    (folder / READY_MARKER).touch()
