"""Synthetic cases: case folders as the planning system, the record system and the machine leave them.

No patient is in them. ``synthesize_case`` writes one, whole or spoilt in one of the ways of ``SPOILS``; all
of it follows from its Recipe.
"""

from mqi.synthesize.build import READY_MARKER, SyntheticCase
from mqi.synthesize.delivery import Shot, SyntheticDelivery
from mqi.synthesize.recipe import CtSize, Interruption, Recipe, Shift, Target
from mqi.synthesize.spoil import SPOILS, Spoil, synthesize_case

__all__ = [
    "READY_MARKER",
    "SPOILS",
    "CtSize",
    "Interruption",
    "Recipe",
    "Shift",
    "Shot",
    "Spoil",
    "SyntheticCase",
    "SyntheticDelivery",
    "Target",
    "synthesize_case",
]
