"""What a synthetic case is made of: a value from which every byte of it follows."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydicom.uid import UID, generate_uid

from mqi.case import Frozen
from mqi.engines.contract import Medium

__all__ = ["SETUP_BEAM_NUMBER", "CtSize", "Interruption", "Recipe", "Shift", "Target"]

SETUP_BEAM_NUMBER = 1
"""The site's plans number their setup field 1 and their treatment beams from 2 on (measured)."""

MAX_SEED = 2**32 - 1


class Target(Frozen):
    """A sphere around the isocentre. ``depth_mm``: its centre below the phantom's anterior surface."""

    diameter_mm: Annotated[float, Field(gt=5, le=120)] = 50.0
    depth_mm: Annotated[float, Field(ge=20, le=250)] = 80.0


class CtSize(Frozen):
    """The CT: square slices of ``columns`` x ``columns`` cubic voxels of ``voxel_mm``."""

    columns: Annotated[int, Field(ge=16, le=512)] = 80
    slices: Annotated[int, Field(ge=8, le=400)] = 60
    voxel_mm: Annotated[float, Field(ge=1, le=10)] = 3.0


class Shift(Frozen):
    """A delivery error: the beam stands this far from the plan, on one layer or (None) on all."""

    beam_number: int
    layer: int | None = None
    x_mm: float = 0.0
    y_mm: float = 0.0


class Interruption(Frozen):
    """The beam stops after ``part`` of a layer's time, and goes on later: or never, or in the same log.

    ``resumed``: ``later`` in a delivery of its own that begins with this layer, ``same-log`` inside the
    layer's own log after an interlock, ``never`` not at all.
    """

    beam_number: int
    layer: Annotated[int, Field(ge=1)]
    part: Annotated[float, Field(gt=0.05, lt=0.95)] = 0.5
    resumed: Literal["later", "same-log", "never"] = "later"


class Recipe(Frozen):
    """All that decides a synthetic case. The same recipe always writes the same bytes.

    ``mu_scale`` and ``shifts`` are errors of the delivery, by DICOM beam number; ``range_codes`` forces
    the dose monitors' range codes, layer after layer in turn (empty: by the layer's intensity);
    ``delivery_order`` names the beams in the order of their delivery in each fraction (None: the plan's
    order), and may leave out or repeat some. ``revision`` tells a re-plan from the first plan.
    ``patient_name`` and ``birth_date`` (YYYYMMDD) stand in the DICOM files: to see that they stay there.
    """

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 1
    patient_id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^/\\\x00-\x1f]+$")] = "SYN00001"
    patient_name: Annotated[str, Field(max_length=64, pattern=r"^[^\\\x00-\x1f]*$")] = "SYNTHETIC^CASE"
    birth_date: Annotated[str, Field(pattern=r"^(\d{8})?$")] = ""
    room: Literal["G1", "G2"] = "G2"
    spot_tags: Literal["standard", "private", "both"] = "private"
    scan_mode: Literal["LINE", "MODULATED"] = "LINE"
    gantry_angles_deg: Annotated[tuple[float, ...], Field(min_length=1, max_length=12)] = (0.0, 90.0, 225.0)
    target: Target = Target()
    medium: Medium = Medium.CT
    ct: CtSize = CtSize()
    prescription_gy: Annotated[float, Field(gt=0, le=20)] = 2.0
    layer_spacing_mm: Annotated[float, Field(ge=1, le=15)] = 2.6
    spot_spacing_mm: Annotated[float, Field(ge=2, le=15)] = 6.0
    min_spot_mu: Annotated[float, Field(gt=0, le=1)] = 0.002
    paintings: Annotated[int, Field(ge=1, le=20)] = 1
    range_codes: tuple[Annotated[int, Field(ge=1, le=5)], ...] = ()
    fractions: Annotated[int, Field(ge=1, le=40)] = 1
    first_delivery_at: datetime = datetime(2026, 1, 12, 20, 15, 8)
    mu_scale: dict[int, Annotated[float, Field(gt=0, le=3)]] = Field(default_factory=dict)
    shifts: tuple[Shift, ...] = ()
    delivery_order: tuple[int, ...] | None = None
    interruption: Interruption | None = None
    tps_dose: bool = True
    revision: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _names_its_own_beams(self) -> Self:
        """Refuse errors and orders that speak of a beam that the plan will not have."""
        known = set(self.beam_numbers)
        named = {*self.mu_scale, *(shift.beam_number for shift in self.shifts), *(self.delivery_order or ())}
        if self.interruption is not None:
            named.add(self.interruption.beam_number)
        if unknown := sorted(named - known):
            raise ValueError(f"there is no treatment beam {unknown[0]}: the beams are {sorted(known)}")
        if self.patient_id in (".", ".."):
            raise ValueError("the patient ID becomes a folder's name and can't be '.' or '..'")
        return self

    @classmethod
    def small(cls, **changes: object) -> Recipe:
        """A case for tests: 2 treatment beams, 4 or 5 coarse layers each, well below 1 MB of logs."""
        small: dict[str, object] = {
            "gantry_angles_deg": (0.0, 90.0),
            "target": Target(diameter_mm=20.0, depth_mm=62.0),
            "ct": CtSize(columns=30, slices=24, voxel_mm=5.0),
            "prescription_gy": 0.3,
            "layer_spacing_mm": 5.0,
        }
        return cls.model_validate(small | changes)

    @property
    def beam_numbers(self) -> tuple[int, ...]:
        """DICOM numbers of the treatment beams, in the plan's order."""
        first = SETUP_BEAM_NUMBER + 1
        return tuple(range(first, first + len(self.gantry_angles_deg)))

    def uid(self, *what: object) -> UID:
        """A UID that follows from the case's identity (seed, patient, revision) and ``what`` it names."""
        identity = [self.seed, self.patient_id, self.revision, *what]
        return generate_uid(entropy_srcs=[repr(part) for part in identity])

    def random(self, *what: int) -> np.random.Generator:
        """The case's own random numbers for ``what``: independent of the order in which things are made."""
        return np.random.default_rng([self.seed, self.revision, *what])
