"""What goes wrong in a clinic, each thing by name, and what intake or interpretation must make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np

from mqi.errors import ConfigurationError
from mqi.synthesize import damage as harm
from mqi.synthesize.build import SyntheticCase, mark_ready, write_case
from mqi.synthesize.recipe import Interruption, Recipe, Shift

__all__ = ["SPOILS", "Spoil", "synthesize_case"]

MIDDLE = 0.5
"""Where an interrupted layer stops, unless the spoil is given another value."""

EARLY_LAYER = 2
"""The layer that is interrupted or shifted: every beam of every recipe has more."""

RE_PLANNED_AFTER = timedelta(days=2)


def _same(recipe: Recipe, value: float) -> Recipe:
    """Leave the recipe as it is."""
    return recipe


@dataclass(frozen=True)
class Spoil:
    """One way in which a case is not as it should be.

    Attributes
    ----------
    description
        What happens in a clinic.
    expect
        ``waiting``: not whole, something may still arrive or a person must choose; ``refused``: it
        contradicts itself, intake or interpretation says so; ``computed``: it runs through.
    message
        What then stands in the message, warning or result; empty where nothing does.
    change, damage
        What is done: another recipe, and changes of the written files, before the marker is set.
    value
        How much of it, where that can be set (``mu-off=5``); its meaning is in the description.
    folder_name
        Name of the patient's folder, where it is not the patient ID.
    ready
        Whether the ready marker is set.
    beside_the_unspoilt
        Whether the unspoilt case of the same patient is written first.
    """

    name: str
    description: str
    expect: Literal["waiting", "refused", "computed"]
    message: str = ""
    change: Callable[[Recipe, float], Recipe] = _same
    damage: Callable[[SyntheticCase, float], None] = harm.nothing
    value: float | None = None
    folder_name: str | None = None
    ready: bool = True
    beside_the_unspoilt: bool = False


def synthesize_case(out: Path, recipe: Recipe, spoil: str | None = None) -> SyntheticCase:
    """Write a case folder, spoilt or not; the ready marker comes last.

    Parameters
    ----------
    out
        Folder in which the patient's folder is made, an inbox for instance.
    spoil
        A name of SPOILS, or ``name=value`` where the spoil has a value.

    Raises
    ------
    ConfigurationError
        An unknown spoil, a value where none belongs, a case that is there already, a recipe that no beam
        can do.
    """
    if spoil is None:
        case = write_case(out, recipe)
        mark_ready(case.folder)
        return case
    chosen, value = _parse(spoil)
    changed = chosen.change(recipe, value)
    if chosen.beside_the_unspoilt:
        synthesize_case(out, recipe)
    case = write_case(out, changed, folder_name=chosen.folder_name)
    chosen.damage(case, value)
    if chosen.ready:
        mark_ready(case.folder)
    return case


def _parse(text: str) -> tuple[Spoil, float]:
    """Split ``name=value``."""
    name, equals, number = text.partition("=")
    if name not in SPOILS:
        raise ConfigurationError(
            f"there is no spoil {name[:60]!r}", todo=f"Choose one of: {', '.join(sorted(SPOILS))}"
        )
    spoil = SPOILS[name]
    if not equals:
        return spoil, spoil.value or 0.0
    try:
        value = float(number)
    except ValueError:
        value = np.nan
    if spoil.value is None or not np.isfinite(value):
        raise ConfigurationError(
            f"{text[:60]!r} is no spoil: {name} takes {'no value' if spoil.value is None else 'a number'}",
            todo=f"Write {name}" if spoil.value is None else f"Write {name}={spoil.value:g}",
        )
    return spoil, value


def _interrupted(resumed: Literal["later", "same-log", "never"]) -> Callable[[Recipe, float], Recipe]:
    def change(recipe: Recipe, value: float) -> Recipe:
        stop = Interruption(
            beam_number=recipe.beam_numbers[0], layer=EARLY_LAYER, part=value, resumed=resumed
        )
        return recipe.model_copy(update={"interruption": stop})

    return change


def _order(new: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Callable[[Recipe, float], Recipe]:
    def change(recipe: Recipe, value: float) -> Recipe:
        return recipe.model_copy(update={"delivery_order": new(recipe.beam_numbers)})

    return change


def _mu_off(recipe: Recipe, percent: float) -> Recipe:
    scale = recipe.mu_scale | {recipe.beam_numbers[-1]: 1 + percent / 100}
    return Recipe.model_validate(recipe.model_dump() | {"mu_scale": scale})


def _position_off(recipe: Recipe, shift_mm: float) -> Recipe:
    shift = Shift(beam_number=recipe.beam_numbers[-1], layer=EARLY_LAYER, x_mm=shift_mm)
    return recipe.model_copy(update={"shifts": (*recipe.shifts, shift)})


_ALL = (
    Spoil(
        "half-copied-file",
        "The transfer broke off: one layer's log has an odd length.",
        "waiting",
        "no multiple of 16",
        damage=harm.half_copy,
    ),
    Spoil(
        "missing-layer",
        "One layer's log, which PlanRange names, has not arrived.",
        "waiting",
        "has not arrived",
        damage=harm.remove_log,
    ),
    Spoil(
        "empty-layer",
        "One layer's log was created but nothing was copied into it.",
        "waiting",
        "has 0 bytes",
        damage=harm.empty_log,
    ),
    Spoil(
        "interrupted",
        "The first beam stopped after `value` of a layer's time and was never resumed.",
        "waiting",
        "not delivered",
        change=_interrupted("never"),
        value=MIDDLE,
    ),
    Spoil(
        "interrupted-resumed",
        "The first beam stopped after `value` of a layer's time; a second delivery began with this layer "
        "again, with idle shots over what had been delivered, and finished the beam.",
        "computed",
        "delivered in 2 parts",
        change=_interrupted("later"),
        value=MIDDLE,
    ),
    Spoil(
        "interlock",
        "An interlock stopped a layer of the first beam after `value` of its time; it was scanned again from "
        "its first spot within the same log.",
        "computed",
        change=_interrupted("same-log"),
        value=MIDDLE,
    ),
    Spoil(
        "other-order",
        "The beams were delivered in another order than the plan's.",
        "computed",
        change=_order(lambda beams: beams[::-1]),
    ),
    Spoil(
        "two-fractions",
        "The plan was delivered on two days: two fractions of one case.",
        "computed",
        change=lambda recipe, _: recipe.model_copy(update={"fractions": 2}),
    ),
    Spoil(
        "beam-twice",
        "One beam was delivered twice in one session; nobody but a person knows which one counts.",
        "waiting",
        "delivered twice",
        change=_order(lambda beams: (*beams, beams[0])),
    ),
    Spoil(
        "re-plan",
        "The patient was planned again: a second study with a plan of its own lies beside the first.",
        "computed",
        change=lambda recipe, _: recipe.model_copy(
            update={
                "revision": recipe.revision + 1,
                "first_delivery_at": recipe.first_delivery_at + RE_PLANNED_AFTER,
            }
        ),
        beside_the_unspoilt=True,
    ),
    Spoil(
        "patient-mismatch",
        "One delivery is of another patient than the plan.",
        "refused",
        "of another patient than the plan",
        damage=harm.change_patient,
    ),
    Spoil(
        "unknown-range-code",
        "PlanRange gives a dose monitor range code that no calibration knows.",
        "refused",
        "range code 7 is unknown",
        damage=harm.change_range_code,
    ),
    Spoil(
        "unknown-machine",
        "The plan is for a treatment machine that is not known here.",
        "refused",
        "is not known",
        damage=harm.change_machine,
    ),
    Spoil(
        "wrong-layer-number",
        "A log's own rows say that it is another layer than PlanRange says.",
        "refused",
        "the log is of layer",
        damage=harm.change_layer_number,
    ),
    Spoil(
        "hostile-name",
        "The patient's folder has a name that a careless shell would run.",
        "computed",
        folder_name="$(touch pwned)",
    ),
    Spoil(
        "hostile-name-quotes",
        "The patient's folder has quotes, blanks, a semicolon and a leading dash in its name.",
        "computed",
        folder_name="-rf 'a\" `id`; & b",
    ),
    Spoil(
        "hostile-name-newline",
        "The patient's folder has a line break in its name.",
        "computed",
        folder_name="QA\n01",
    ),
    Spoil(
        "hostile-name-korean",
        "The patient's folder has a Korean name.",
        "computed",
        folder_name="환자 01",
    ),
    Spoil(
        "link-out",
        "A log is a link to a file outside the case's folder.",
        "refused",
        "is a link out of the case folder",
        damage=harm.link_out,
    ),
    Spoil(
        "damaged-dicom",
        "The plan's file is cut off after six tenths.",
        "refused",
        "RP.",
        damage=harm.cut_plan,
    ),
    Spoil(
        "no-marker",
        "The transfer goes on: the ready marker is not there.",
        "waiting",
        "marker",
        ready=False,
    ),
    Spoil(
        "missing-beam",
        "The last beam was not delivered.",
        "waiting",
        "not delivered",
        change=_order(lambda beams: beams[:-1]),
    ),
    Spoil(
        "mu-off",
        "The machine delivers `value` percent too much on the last beam.",
        "computed",
        change=_mu_off,
        value=3.0,
    ),
    Spoil(
        "position-off",
        "The beam stands `value` mm off in x on one layer of the last beam.",
        "computed",
        change=_position_off,
        value=2.0,
    ),
)

SPOILS: dict[str, Spoil] = {spoil.name: spoil for spoil in _ALL}
"""All spoils by name."""
